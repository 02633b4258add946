"""t-SNE of binary codes on their Hamming distances, and how far its picture can be trusted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from evaluate.metrics.arrays import as_bits

FEWEST = 5  # codes; fewer have no neighbourhoods to speak of


def hamming_distances(bits: Any) -> np.ndarray:
    """Share of differing bits between all codes (n, b): (n, n) float32; memory grows with the square of n."""
    signs = 2 * as_bits(bits, "bits").astype(np.float32) - 1
    return (0.5 - 0.5 / signs.shape[1] * (signs @ signs.T)).clip(0, 1)


def hamming_tsne(
    distances: np.ndarray, *, dimensions: int = 3, perplexity: float = 30, iterations: int = 1000, seed: int = 0
) -> np.ndarray:
    """Coordinates (n, dimensions) float32 by t-SNE (van der Maaten & Hinton 2008) of distances (n, n).

    scikit-learn's Barnes-Hut form from a random start, which distances that are given ask for, learning rate "auto"
    (at least 50, which in three dimensions is too fast to settle for fewer than about a hundred codes).
    A perplexity of n or more is lowered to (n - 1)/3 with a warning. Raises ValueError for fewer than five codes.
    """
    from sklearn.manifold import TSNE  # slow to load, and needed here alone

    n = len(distances)
    if n < FEWEST:
        raise ValueError(f"t-SNE of {n} codes; at least {FEWEST} are needed")
    if perplexity >= n:
        lower = (n - 1) / 3
        warnings.warn(f"t-SNE: perplexity {perplexity:g} needs more than {n} images; {lower:.3g} is used", stacklevel=2)
        perplexity = lower
    settings = {"perplexity": perplexity, "max_iter": iterations, "random_state": seed}
    made = TSNE(dimensions, metric="precomputed", init="random", learning_rate="auto", **settings)  # type: ignore[arg-type]
    np.fill_diagonal(distances, 0.0)
    return made.fit_transform(distances)


def trustworthiness(distances: np.ndarray, coordinates: np.ndarray, neighbours: int = 10) -> float:
    """Share in [0, 1] of neighbours in the picture that are neighbours by `distances`, weighted by rank.

    Venna & Kaski 2001; 1 is a faithful picture, about 0.5 a random one. Defined for 2 * neighbours < n; NaN otherwise.
    """
    from sklearn.manifold import trustworthiness as share

    if 2 * neighbours >= len(distances):
        return float("nan")
    return float(share(distances, coordinates, n_neighbors=neighbours, metric="precomputed"))
