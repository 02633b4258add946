"""Run a function on several local processes of one gloo group and collect what each returns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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
        mp.spawn(_worker, (world, folder, function, args), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
