"""Several processes, started by torchrun, that fill the feature store together before the main one goes on alone.

torchrun --nproc-per-node 8 -m evaluate checkpoints=[runs/a]

They meet at a barrier over gloo, which needs no GPU; features travel by the file system that holds the cache.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

LONGEST_WAIT = timedelta(days=30)  # a pass over a large image set may take days; one that died is noticed at once


@dataclass(frozen=True)
class Processes:
    """This process among all (`rank` of `world`) and among those of its machine (`local_rank` of `local_world`)."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        """What torchrun says in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; one process without it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        defaults = (0, 1, 0, 1)
        return cls(*(int(os.environ.get(name, value)) for name, value in zip(names, defaults, strict=True)))

    def device(self, asked: str) -> str:
        """The device meant by `asked` here: each process of a machine takes a GPU of its own."""
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        return f"cuda:{self.local_rank}" if asked == "cuda" and self.world > 1 else asked

    def meet(self) -> bool:
        """Wait until all processes have come here; False when one of them has ended before."""
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=LONGEST_WAIT)  # address and port from the environment
        try:
            work = dist.barrier(async_op=True)
            while not work.is_completed():
                time.sleep(0.05)  # not work.wait(): it would not hear Ctrl-C
            work.wait()
        except RuntimeError:  # the connection to a process was closed
            return False
        return True

    def part(self) -> None:
        """Leave the group; the main process takes over the threads of its machine."""
        dist.destroy_process_group()
        if self.rank == 0:
            torch.set_num_threads(torch.get_num_threads() * self.local_world)
