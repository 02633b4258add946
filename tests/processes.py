"""Run a function on several local processes of one gloo group and collect what each returns.

They are forked where that is possible: a fresh interpreter would spend several seconds importing torch, which is most
of what such a test costs. A process that may have opened a GPU cannot be forked.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

#: how processes of tests begin
START = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def context() -> Any:
    """Processes for tests that start one by themselves."""
    return mp.get_context(START)


def join_group(rank: int, world: int) -> None:
    """Let training see the process group as torchrun describes it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


def _worker(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    try:
        torch.save(function(rank, *args), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_processes(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(rank, *args)` on each of `world` processes; returns the results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_worker, (world, folder, function, args), nprocs=world, start_method=START)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
