"""How far apart two clouds of features lie, without labels: Frechet distance and maximum mean discrepancy.

Computed in float64. Features of two backbones have different scales, so compare them on unit rows (`unit_float64`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluate.metrics.geometry import feature_rows

ROWS_AT_ONCE = 1024


def frechet_distance(x: Any, y: Any) -> float:
    """Squared Frechet distance of the normal distributions with the means and covariances of x (n, d) and y (m, d).

    |a - b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), never negative; covariances with divisor n - 1. Raises ValueError for
    fewer than two rows, NaN, infinity or unequal widths. Dowson and Landau 1982; for images Heusel et al. 2017.
    """
    left, right = both(x, y)
    a, b = np.cov(left, rowvar=False, ddof=1), np.cov(right, rowvar=False, ddof=1)
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    # tr((A B)^(1/2)) = tr((A^(1/2) B A^(1/2))^(1/2)), whose root is that of a symmetric matrix.
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0.0)).sum()
    apart = np.square(left.mean(axis=0) - right.mean(axis=0)).sum()
    return float(max(0.0, apart + np.trace(a) + np.trace(b) - 2 * shared))


def mmd(x: Any, y: Any, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of rows x (n, d) and y (m, d).

    The kernel is exp(-|u - v|^2 / (2 bandwidth^2)). The value is about 0, also a little below, where both come from
    one distribution. bandwidth: by default that with which the median pair of different rows has kernel 1/e, so that
    it follows from the data alone. Raises ValueError as
    `frechet_distance`, and for a bandwidth that is not positive. Gretton et al. 2012, equation 3.
    """
    left, right = both(x, y)
    square = median_square(np.concatenate([left, right])) if bandwidth is None else 2.0 * bandwidth**2
    if bandwidth is not None and bandwidth <= 0:
        raise ValueError(f"bandwidth={bandwidth} must be positive")
    if square == 0:
        return 0.0  # all rows are one point
    n, m = len(left), len(right)
    within_left = (kernel_sum(left, left, square) - n) / (n * (n - 1))  # a row with itself has kernel 1
    within_right = (kernel_sum(right, right, square) - m) / (m * (m - 1))
    return float(within_left + within_right - 2 * kernel_sum(left, right, square) / (n * m))


def both(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of feature rows in float64, or ValueError where they cannot be compared."""
    left, right = feature_rows(x, least=2).astype(np.float64), feature_rows(y, least=2).astype(np.float64)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"features of width {left.shape[1]} cannot be compared with those of width {right.shape[1]}")
    return left, right


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|u - v|^2 for every u of x (n, d) and v of y (m, d): (n, m), never negative."""
    product = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * x @ y.T
    return np.maximum(product, 0.0)


def median_square(rows: np.ndarray, most: int = 2048) -> float:
    """Median squared distance of different rows (n, d), of `most` evenly spaced ones where there are more."""
    used = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]
    return float(np.median(squared_distances(used, used)[np.triu_indices(len(used), 1)]))


def kernel_sum(x: np.ndarray, y: np.ndarray, square: float) -> float:
    """Sum over all pairs of exp(-|u - v|^2 / square), in blocks."""
    blocks = range(0, len(x), ROWS_AT_ONCE)
    return sum(float(np.exp(-squared_distances(x[i : i + ROWS_AT_ONCE], y) / square).sum()) for i in blocks)
