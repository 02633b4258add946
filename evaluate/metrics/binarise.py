"""Binary codes of real-valued features, for backbones without a binary channel: sign, ITQ and random projection.

All three are bits of a centred linear map, (x - mean) directions > 0, fitted on rows that are not the queries. Features
are L2-normalised first, so that the codes approximate the cosine that retrieval by features ranks by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from evaluate.metrics.arrays import as_numpy
from evaluate.metrics.geometry import feature_rows, parts, unit_float64


@dataclass(frozen=True)
class Binariser:
    """Features (n, d) -> bits (n, b): the signs of (x - mean) directions, x L2-normalised.

    mean (d,), directions (d, b) float64; no directions leave the d coordinates as they are.
    """

    mean: np.ndarray
    directions: np.ndarray | None = None

    def project(self, x: Any) -> np.ndarray:
        """Real values (n, b) whose signs are the code; raises ValueError for NaN, infinity, or another width."""
        rows = feature_rows(x, least=1)
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"features of width {rows.shape[1]}, the codes were fitted on width {len(self.mean)}")
        centred = (unit_float64(part) - self.mean for part in parts(rows))
        return np.concatenate([part if self.directions is None else part @ self.directions for part in centred])

    def __call__(self, x: Any) -> np.ndarray:
        """Codes (n, b) bool of features (n, d); a value of exactly 0 gives 0."""
        return self.project(x) > 0


def sign_codes(x: Any) -> Binariser:
    """One bit for each coordinate: whether it lies above its mean over rows x (n, d)."""
    return Binariser(unit_float64(feature_rows(x, least=1)).mean(axis=0))


def random_projection(x: Any, bits: int, *, seed: int = 0) -> Binariser:
    """Signs of `bits` Gaussian projections, centred on rows x (n, d): locality-sensitive hashing (Charikar 2002).

    The first m bits are the code of m bits. Raises ValueError for fewer than one bit.
    """
    if bits < 1:
        raise ValueError(f"bits={bits} must be at least 1")
    mean = sign_codes(x).mean
    return Binariser(mean, np.random.default_rng(seed).standard_normal((bits, len(mean))).T)


def itq(x: Any, lengths: Sequence[int], *, iterations: int = 50, seed: int = 0) -> dict[int, Binariser]:
    """Iterative quantisation for each code length: that many principal directions of rows x (n, d), rotated to signs.

    Gong & Lazebnik 2011 (CVPR), section 2; 50 alternations from a random rotation as there. Raises ValueError for a
    length outside 1..min(n - 1, d), beyond which no direction has variance, and for NaN or infinity.
    """
    rows = unit_float64(feature_rows(x, least=2))
    most = min(len(rows) - 1, rows.shape[1])
    for bits in lengths:
        if not 1 <= bits <= most:
            raise ValueError(f"bits={bits} is outside 1..{most}, the principal directions of {len(rows)} features")
    mean = rows.mean(axis=0)
    rows -= mean
    axes = principal_directions(rows, max(lengths))
    v = rows @ axes
    rotations = {m: itq_rotation(v[:, :m], iterations=iterations, seed=seed)[0] for m in lengths}
    return {m: Binariser(mean, axes[:, :m] @ rotation) for m, rotation in rotations.items()}


def principal_directions(rows: np.ndarray, count: int) -> np.ndarray:
    """Unit directions (d, count) of most variance of centred rows (n, d), count < n, in descending order."""
    wide = len(rows) < rows.shape[1]
    second = rows @ rows.T if wide else rows.T @ rows
    last = len(second) - 1
    found = linalg.eigh(second, subset_by_index=[last - count + 1, last])[1][:, ::-1]
    if not wide:
        return found
    axes = rows.T @ found
    lengths = np.linalg.norm(axes, axis=0)
    return axes / np.where(lengths > 0, lengths, 1.0)


def itq_rotation(v: np.ndarray, *, iterations: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal R (b, b) that brings centred v (n, b) close to its signs, and |sign(v R) - v R|^2 by alternation.

    Alternates B = sign(v R) with the rotation that minimises |B - v R|^2 (orthogonal Procrustes): from B' v = S W T'
    follows R = T S'. The losses (iterations + 1,), the last that of the returned R, never increase.
    Gong & Lazebnik 2011, eq. 2.
    """
    v = as_numpy(v).astype(np.float64)
    rotation = random_rotation(v.shape[1], seed)
    losses = []
    for _ in range(iterations):
        turned = v @ rotation
        signs = np.where(turned > 0, 1.0, -1.0)
        losses.append(np.square(signs - turned).sum())
        left, _, right = linalg.svd(signs.T @ v)
        rotation = right.T @ left.T
    turned = v @ rotation
    return rotation, np.array([*losses, np.square(np.where(turned > 0, 1.0, -1.0) - turned).sum()])


def random_rotation(size: int, seed: int) -> np.ndarray:
    """Orthogonal matrix (size, size), uniformly distributed: QR of a Gaussian with the signs of R's diagonal fixed."""
    q, r = linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return q * np.sign(np.diag(r))
