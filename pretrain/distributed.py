"""What a process group needs beyond Fabric: differentiable collectives and rank facts.

Every statistic formed from the rows of all processes goes through a collective whose backward sums the gradients over
processes. Each rank then holds W times the gradient of the global loss with respect to its own rows, and the usual
data-parallel mean of parameter gradients is exactly the gradient of the global loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group of more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes (1 without a process group)."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Index of this process (0 without a process group)."""
    return dist.get_rank() if is_distributed() else 0


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, with gradient: (n, ...) on each of W processes -> (W n, ...)."""
    return _GatherRows.apply(rows) if is_distributed() else rows


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum of a tensor over processes, with gradient; every process must hold the same shape."""
    return _SumOverProcesses.apply(value) if is_distributed() else value


@torch.no_grad()
def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over processes, without gradient."""
    if not is_distributed():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()
