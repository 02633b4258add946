"""SimDINO: cosine agreement of student and teacher, and a coding rate that expands the features.

Source: Simplifying DINO via Coding Rate Regularization, arXiv 2502.10385, and its public code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.distributed import sum_over_processes
from pretrain.objectives.base import Objective, Output, check_views, global_rows, partners
from pretrain.ops import at_least_float32, coding_rate_bound, half_logdet, rate_factor


def simdino_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    eps: float,
    coeff: float,
    expa_type: int,
    reduce_cov: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, compression, expansion) with loss = -coeff compression - expansion.

    student (V, N, B), teacher (2, N, B) raw head outputs, L2-normalised inside. Compression is the mean cosine over
    cross pairs, expansion gamma times the mean half-logdet over the two global views of the student (`expa_type` 0) or
    of the mean of student and teacher (1). `reduce_cov` sums covariances over processes; without it each process keeps
    its own but divides by the global batch, as the published run did. `eps` is un-squared.
    Raises ValueError on another expa_type or shape. Source: SimDINO, arXiv 2502.10385, public code.
    """
    check_views(student, teacher)
    if expa_type not in (0, 1):
        raise ValueError(f"unknown expa_type {expa_type}; use 0 (student) or 1 (mean of student and teacher)")
    with torch.autocast(student.device.type, enabled=False):
        s = F.normalize(at_least_float32(student), dim=-1)
        t = F.normalize(at_least_float32(teacher.detach()), dim=-1)
        views, n, width = s.shape
        wanted, _ = partners(t, views)
        compression = (s * wanted).sum() / ((2 * views - 2) * n)
        rows = s[:2] if expa_type == 0 else (s[:2] + t) / 2
        covariance = rows.transpose(1, 2) @ rows  # (2, B, B)
        if reduce_cov:
            covariance = sum_over_processes(covariance)
        total = global_rows(n)
        rates = [half_logdet(c, width / (total * eps)) for c in covariance]
        expansion = rate_factor(total, width) * torch.stack(rates).mean()
    return -coeff * compression - expansion, compression, expansion


class SimDINO(Objective):
    """SimDINO; `reduce_cov=True` makes the value independent of the number of processes."""

    min_rows = 2
    batch_statistic = "coding rate"

    def __init__(
        self,
        head: dict[str, Any],
        *,
        eps: float = 0.05,
        coeff: float = 1.0,
        expa_type: int = 1,
        reduce_cov: bool = True,
    ):
        super().__init__(head)
        if eps <= 0:
            raise ValueError(f"simdino needs eps > 0, got {eps}")
        self.width = int(head.get("out", 0))
        self.eps, self.coeff, self.expa_type, self.reduce_cov = eps, coeff, expa_type, reduce_cov

    def floor(self, rows: int) -> float:
        """Share of its bound that the expansion has when all rows point one way."""
        return math.log1p(self.width / self.eps) / 2 / coding_rate_bound(rows, self.width, self.eps)

    def forward(self, student: Tensor, teacher: Tensor | None) -> Output:
        """Loss of one step; logs agreement (mean cosine), expansion and expansion over its bound."""
        assert teacher is not None
        loss, agreement, expansion = simdino_loss(
            student, teacher, eps=self.eps, coeff=self.coeff, expa_type=self.expa_type, reduce_cov=self.reduce_cov
        )
        rows, width = global_rows(student.shape[1]), student.shape[2]
        bound = rate_factor(rows, width) * coding_rate_bound(rows, width, self.eps)
        share = expansion.detach() / bound
        return Output(loss, {"agreement": agreement.detach(), "rate": -expansion.detach(), "rate_over_bound": share})
