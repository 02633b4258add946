"""Tensor mathematics shared by objectives: the coding rate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or unchanged in float64: losses never run in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def half_logdet(gram: Tensor, scale: float) -> Tensor:
    """Half the log-determinant of I + scale * gram for a symmetric positive semi-definite matrix (k, k).

    Raises FloatingPointError when the matrix has no Cholesky factor (NaN or infinity in the rows).
    """
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(eye + scale * gram)
    if info.item() != 0:
        raise FloatingPointError("coding rate: I + scale * A has no Cholesky factor; the logits hold NaN or infinity")
    return factor.diagonal().log().sum()  # sum of log-diagonals of the factor is already one half of the logdet


def coding_rate(
    rows: Tensor, eps: float, *, centered: bool = False, eps_squared: bool = False, normalize: bool = True
) -> Tensor:
    """Coding rate R = 1/2 logdet(I + (B/eps) A), A the second moment of the L2-normalised rows.

    rows: (M, B) raw logits; returns a scalar in nats. `normalize=False` takes the rows as they
    are, `centered` subtracts the column mean of the unit rows first,
    `eps_squared` reads `eps` as the paper prints it (B/eps^2). The smaller of the B x B and M x M forms is factored:
    both have the same value and gradient. Raises ValueError on an empty matrix or eps <= 0.
    Source: BITS, arXiv 2602.09764, eq. 9; SimDINO, arXiv 2502.10385.
    """
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"coding_rate needs a non-empty (rows, bits) matrix, got shape {tuple(rows.shape)}")
    if eps <= 0:
        raise ValueError(f"coding_rate needs eps > 0, got {eps}")
    with torch.autocast(rows.device.type, enabled=False):
        unit = at_least_float32(rows)  # (M, B)
        if normalize:
            unit = F.normalize(unit, dim=1, eps=1e-12)
        if centered:
            unit = unit - unit.mean(0)
        m, bits = unit.shape
        scale = bits / (eps**2 if eps_squared else eps) / m
        return half_logdet(unit @ unit.T if m < bits else unit.T @ unit, scale)


def coding_rate_bound(m: int, bits: int, eps: float) -> float:
    """Largest possible coding rate of m unit rows of `bits` columns, in nats; collapse is 1/2 ln(1 + bits/eps)."""
    rank = min(m, bits)
    return rank / 2 * math.log1p(bits / eps / rank)


def rate_factor(m: int, bits: int) -> float:
    """gamma = (B + M)/(B M), which makes the coding rate comparable between batch sizes."""
    return (bits + m) / (bits * m)
