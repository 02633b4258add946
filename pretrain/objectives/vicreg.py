"""VICReg: invariance between views, variance of each dimension, decorrelation of dimensions.

Source: arXiv 2105.04906 and its public code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.distributed import gather_rows
from pretrain.objectives.base import Objective, Output
from pretrain.ops import at_least_float32


def spread(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(hinge on the standard deviation, squared off-diagonal covariance over D) of rows (n, D), unbiased."""
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)
    variance = covariance.diagonal()
    off = covariance.square().sum() - variance.square().sum()
    return F.relu(1 - torch.sqrt(variance + eps)).mean(), off / z.shape[1]


def vicreg_loss(
    z_a: Tensor, z_b: Tensor, *, sim_coeff: float = 25, std_coeff: float = 25, cov_coeff: float = 1, eps: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, invariance, variance, covariance): the three terms before their coefficients.

    z_a, z_b (n, D) projections of two views. Variance is the mean of both views' hinges (half of what libraries that
    sum them use), covariance their sum. Both are formed over the rows of all processes, invariance over this one's.
    Raises ValueError on shapes or fewer than two rows. Source: arXiv 2105.04906, public code.
    """
    if z_a.shape != z_b.shape or z_a.ndim != 2:
        raise ValueError(f"views of shape {tuple(z_a.shape)} and {tuple(z_b.shape)}; expected two of (n, D)")
    with torch.autocast(z_a.device.type, enabled=False):
        a, b = at_least_float32(z_a), at_least_float32(z_b)
        invariance = F.mse_loss(a, b)
        all_a, all_b = gather_rows(a), gather_rows(b)
        if len(all_a) < 2:
            raise ValueError("VICReg needs at least two rows for an unbiased variance")
        (std_a, cov_a), (std_b, cov_b) = spread(all_a, eps), spread(all_b, eps)
        variance, covariance = (std_a + std_b) / 2, cov_a + cov_b
    return sim_coeff * invariance + std_coeff * variance + cov_coeff * covariance, invariance, variance, covariance


class VICReg(Objective):
    """VICReg with its three coefficients."""

    uses_teacher = False
    two_views = True
    min_rows = 2
    batch_statistic = "variance and covariance"

    def __init__(
        self,
        head: dict[str, Any],
        *,
        sim_coeff: float = 25.0,
        std_coeff: float = 25.0,
        cov_coeff: float = 1.0,
        eps: float = 1e-4,
    ):
        super().__init__(head)
        self.options = {"sim_coeff": sim_coeff, "std_coeff": std_coeff, "cov_coeff": cov_coeff, "eps": eps}

    def forward(self, student: Tensor, teacher: Tensor | None) -> Output:
        """Loss of one step on the two views."""
        loss, invariance, variance, covariance = vicreg_loss(student[0], student[1], **self.options)
        return Output(
            loss, {"agreement": invariance.detach(), "variance": variance.detach(), "covariance": covariance.detach()}
        )
