"""How much of its space an embedding uses: spectrum of the covariance, effective dimensions, uniformity, alignment.

Computed in float64. Collapsed features (all rows equal) have a zero spectrum, and effective dimensions 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from evaluate.metrics.arrays import as_labels, as_numpy, check_finite, check_matrix

ROWS_AT_ONCE = 8_192


def spectrum(x: Any) -> np.ndarray:
    """Eigenvalues (d,) of the covariance of rows x (n, d), divisor n - 1, in descending order; never negative.

    With n < d the trailing d - n are 0. Raises ValueError for fewer than two rows and for NaN or infinity.
    """
    rows = feature_rows(x, least=2)
    # Taking the first row off first is exact, so equal rows give exactly zero whatever their values.
    first = rows[0].astype(np.float64)
    mean = sum((part.astype(np.float64) - first).sum(axis=0) for part in parts(rows)) / len(rows)
    if len(rows) < rows.shape[1]:
        centred = rows.astype(np.float64) - first - mean
        second = centred @ centred.T
    else:
        second = np.zeros((rows.shape[1], rows.shape[1]))
        for part in parts(rows):
            centred = part.astype(np.float64) - first - mean
            second += centred.T @ centred
    values = np.zeros(rows.shape[1])
    found = np.linalg.eigvalsh(second)[::-1] / (len(rows) - 1)
    values[: len(found)] = np.maximum(found, 0.0)
    return values


def feature_rows(x: Any, least: int) -> np.ndarray:
    """x as a finite matrix with at least `least` rows, or ValueError."""
    rows = as_numpy(x)
    check_matrix(rows, "features")
    check_finite(rows, "features")
    if len(rows) < least:
        raise ValueError(f"features have {len(rows)} row; at least {least} are needed")
    return rows


def parts(rows: np.ndarray) -> list[np.ndarray]:
    """Views of consecutive rows, so that float64 copies stay small."""
    return [rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE)]


def explained_variance(x: Any) -> np.ndarray:
    """Cumulative share (d,) of the variance in the leading directions, in [0, 1]; zeros for collapsed features."""
    values = spectrum(x)
    total = values.sum()
    return np.cumsum(values) / total if total > 0 else np.zeros_like(values)


def effective_dimension(x: Any) -> float:
    """(sum l)^2 / sum l^2 of the covariance eigenvalues l: 1 for a line, d for a sphere, 0 when collapsed."""
    values = spectrum(x)
    total = values.sum()
    return float(1.0 / np.square(values / total).sum()) if total > 0 else 0.0


def effective_rank(x: Any) -> float:
    """exp of the entropy of the covariance eigenvalues divided by their sum (Roy & Vetterli 2007); 0 when collapsed."""
    values = spectrum(x)
    return math.exp(entropy(values / values.sum())) if values.sum() > 0 else 0.0


def entropy(shares: np.ndarray) -> float:
    """Entropy of shares in nats, with 0 ln 0 = 0."""
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def rank_me(x: Any, eps: float = 1e-7) -> float:
    """RankMe: exp of the entropy of the singular values of x (n, d), not centred (Garrido et al. 2023, eq. 1).

    Raises ValueError for NaN, infinity, or an empty input.
    """
    rows = feature_rows(x, least=1)
    singular = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    if not singular.any():
        return 0.0
    shares = singular / singular.sum() + eps
    return float(np.exp(-(shares * np.log(shares)).sum()))


def uniformity(x: Any, t: float = 2.0) -> float:
    """ln of the mean of exp(-t |u - v|^2) over pairs of unit rows of x (n, d): lower is more uniform, 0 is collapsed.

    Wang & Isola 2020, section 4.1.2. Raises ValueError for fewer than two rows and for NaN or infinity.
    """
    unit = unit_float64(feature_rows(x, least=2))
    n, total = len(unit), 0.0
    squared = np.square(unit).sum(axis=1)
    for start in range(0, n, 1024):
        part = slice(start, start + 1024)
        # The product form of the distance; a pair's own rounding could make it negative.
        gap = squared[part, None] + squared - 2 * unit[part] @ unit.T
        total += float(np.exp(-t * np.maximum(gap, 0.0)).sum())
        total -= float(np.exp(-t * np.maximum(np.diagonal(gap, offset=start), 0.0)).sum())
    return math.log(total / (n * (n - 1)))


def alignment(x: Any, y: Any, alpha: float = 2.0) -> float:
    """Mean of |u - v|^alpha over unit rows u, v of paired x and y (n, d), two views of the same images; 0 is perfect.

    Wang & Isola 2020, section 4.1.1. Raises ValueError for unequal shapes and for NaN or infinity.
    """
    left, right = feature_rows(x, least=1), feature_rows(y, least=1)
    if left.shape != right.shape:
        raise ValueError(f"paired features must have one shape, got {left.shape} and {right.shape}")
    return float((np.linalg.norm(unit_float64(left) - unit_float64(right), axis=1) ** alpha).mean())


def class_alignment(x: Any, labels: Any) -> np.ndarray:
    """Mean of |u - v|^2 between each unit row u of x (n, d) and the other unit rows v of its class: (n,), 0 is perfect.

    NaN for a row that is alone in its class. Alignment of Wang & Isola 2020 with alpha 2 and all pairs of one class as
    positives. With n_c rows of class c, their sum S and their sum of squares q, the sum over v is
    n_c |u|^2 + q - 2 u S, in which u itself counts 0. Raises ValueError for labels (n,) that are no class indices.
    """
    rows = unit_float64(feature_rows(x, least=1))
    classes = as_labels(labels, len(rows), "labels")
    if classes.ndim != 1:
        raise ValueError(f"labels must be (n,) class indices, got shape {classes.shape}: rows have one class each")
    _, index, count = np.unique(classes, return_inverse=True, return_counts=True)
    squared = np.square(rows).sum(axis=1)
    total = np.zeros((len(count), rows.shape[1]))
    np.add.at(total, index, rows)
    apart = count[index] * squared + np.bincount(index, squared)[index] - 2 * (rows * total[index]).sum(axis=1)
    others = count[index] - 1.0
    return np.divide(np.maximum(apart, 0.0), others, out=np.full(len(rows), np.nan), where=others > 0)


def unit_float64(rows: np.ndarray) -> np.ndarray:
    """Unit rows in float64; a zero row stays zero."""
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(lengths > 0, lengths, 1.0)
