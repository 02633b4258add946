"""Softly discretised variables (IMSVD, arXiv 2501.03469; MUSIC, arXiv 2206.06461): probabilities, joint probabilities.

A head's output is S variables (segments) of k units (bins) each; a softmax over the k outputs of a variable says how
much an image belongs to each of its units. Entropies and information are in bits (log2), plug-in estimates.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluate.metrics.codes import plug_in


def unit_probabilities(logits: Tensor, bins: int, temperature: float) -> Tensor:
    """Softmax over each `bins` outputs: (n, S k) -> (n, S, k) float32.

    Raises ValueError when bins do not divide the width, a temperature is not positive, or a logit is not finite.
    """
    if logits.ndim != 2 or bins < 1 or logits.shape[1] % bins:
        raise ValueError(f"bins={bins} do not divide the width of outputs {tuple(logits.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        raise ValueError(f"outputs of the head hold NaN or infinity, first in row {int(finite.int().argmin())}")
    return torch.softmax(logits.float().unflatten(1, (-1, bins)) / temperature, -1)


def joint_information(joint: np.ndarray, bins: int) -> np.ndarray:
    """Mutual information (S, S) in bits between all pairs of variables, from joint probabilities (S k, S k).

    Each k x k block is a distribution that sums to 1. A block of the diagonal compares a variable with itself: log2 k
    where images fall decidedly and evenly into its units, 0 where every image is spread over all.
    """
    information = np.empty((len(joint) // bins, len(joint) // bins))
    for s, rows in enumerate(joint.reshape(-1, bins, len(joint))):  # one variable at a time: the matrix may be large
        blocks = rows.astype(np.float64).reshape(bins, -1, bins).transpose(1, 0, 2)  # (S, k, k)
        own, other = plug_in(blocks.sum(2)), plug_in(blocks.sum(1))
        information[s] = own + other - plug_in(blocks.reshape(len(blocks), -1))
    return np.maximum(information, 0.0)
