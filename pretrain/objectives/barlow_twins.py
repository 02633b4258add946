"""Barlow Twins: the cross-correlation of two views should be the identity.

Source: arXiv 2103.03230 and its public code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.distributed import sum_over_processes
from pretrain.objectives.base import Objective, Output, global_rows
from pretrain.ops import at_least_float32


def normalised_columns(z: Tensor, scope: str) -> Tensor:
    """Columns with zero mean and unit (biased) variance, over the rows of all processes or of this one."""
    if scope == "local":
        mean, n = z.mean(0), len(z)
        var = (z - mean).square().mean(0)
    else:
        n = global_rows(len(z))
        mean = sum_over_processes(z.sum(0)) / n
        var = sum_over_processes((z - mean).square().sum(0)) / n
    return (z - mean) * torch.rsqrt(var + 1e-5)


def barlow_twins_loss(z_a: Tensor, z_b: Tensor, *, lambda_: float, norm_scope: str = "global") -> Tensor:
    """sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2 with C the cross-correlation over the rows of all processes.

    z_a, z_b (n, D) projections of two views. `norm_scope="local"` normalises each process's rows by themselves, as some
    libraries do. Collectives are differentiable (the authors' are not, which shrinks their gradient by the number of
    processes). Raises ValueError on shapes or scopes. Source: arXiv 2103.03230.
    """
    if z_a.shape != z_b.shape or z_a.ndim != 2:
        raise ValueError(f"views of shape {tuple(z_a.shape)} and {tuple(z_b.shape)}; expected two of (n, D)")
    if norm_scope not in ("global", "local"):
        raise ValueError(f"unknown norm_scope {norm_scope!r}; use global or local")
    with torch.autocast(z_a.device.type, enabled=False):
        a, b = (normalised_columns(at_least_float32(z), norm_scope) for z in (z_a, z_b))
        c = sum_over_processes(a.T @ b) / global_rows(len(a))
        on = c.diagonal()
        return (on - 1).square().sum() + lambda_ * (c.square().sum() - on.square().sum())


class BarlowTwins(Objective):
    """Barlow Twins; `scale` multiplies the loss (older versions of the public code use 0.024)."""

    uses_teacher = False
    two_views = True
    min_rows = 2
    batch_statistic = "cross-correlation"

    def __init__(
        self, head: dict[str, Any], *, lambda_: float = 0.0051, norm_scope: str = "global", scale: float = 1.0
    ):
        super().__init__(head)
        self.lambda_, self.norm_scope, self.scale = lambda_, norm_scope, scale

    def forward(self, student: Tensor, teacher: Tensor | None) -> Output:
        """Loss of one step on the two views."""
        loss = self.scale * barlow_twins_loss(student[0], student[1], lambda_=self.lambda_, norm_scope=self.norm_scope)
        return Output(loss, {"agreement": loss.detach()})
