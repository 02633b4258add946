"""What a process group needs beyond Fabric: differentiable collectives, rank facts, and tensors in shards.

Every statistic formed from the rows of all processes goes through a collective whose backward sums the gradients over
processes. Each rank then holds W times the gradient of the global loss with respect to its own rows, and the usual
data-parallel mean of parameter gradients is exactly the gradient of the global loss.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a slice of this tensor only (see `pretrain.sharding`)."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's slice of a tensor in shards, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of each tensor, whole or in shards: (n,)."""
    found = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors]))
    if not any(is_sharded(tensor) for tensor in tensors):
        return found
    squares = found.square()
    dist.all_reduce(squares)
    return squares.sqrt()


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """A tensor in shards as a whole one on the CPU of the main process, empty on the others; any other as it is.

    Every process must call this, in the same order.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    whole = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole.cpu() if rank() == 0 else whole.new_empty(0)


def split_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor that every process holds, cut into shards as `tensor` is; as it is where that is not sharded."""
    if not is_sharded(tensor):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    whole = whole.to(device=tensor.device, dtype=tensor.dtype)
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


@torch.no_grad()
def assign(tensor: Tensor, whole: Tensor) -> None:
    """Copy the values of a whole tensor, the same on every process, into a tensor that may be in shards."""
    local(tensor).copy_(local(split_like(whole, tensor)))
