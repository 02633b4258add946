"""Entropies of codes as means over images: the surprisal of each image, in bits (log2).

An image's surprisal is -log2 of the plug-in probability of its own bits; its mean over images is the plug-in entropy,
and minus that mean it is the entropy's influence function. So an interval of the mean is one of the entropy, to first
order, and two checkpoints can be compared image by image. It tells of the spread, not of the bias of the estimate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluate.metrics.arrays import as_bits
from evaluate.metrics.codes import check_block


def bit_surprisal(bits: Any) -> np.ndarray:
    """Mean over bits of -log2 p(bit) for each of the codes (n, b): (n,); averages to the mean of `bit_entropy`."""
    array = as_bits(bits, "bits")
    ones = array.mean(axis=0, dtype=np.float64)
    with np.errstate(divide="ignore"):  # a value that never occurs is never looked up
        one, zero = -np.log2(ones), -np.log2(1 - ones)
    return np.mean(np.where(array == 1, one, zero), axis=1)


def block_surprisal(bits: Any, block: int = 8) -> np.ndarray:
    """Mean over whole blocks of -log2 p(block) for each of the codes (n, b): (n,); averages to that of `block_entropy`.

    Raises ValueError for values other than 0/1, an empty input, and a block outside 1..min(b, 62).
    """
    array = as_bits(bits, "bits")
    check_block(block, array.shape[1])
    starts = range(0, array.shape[1] - block + 1, block)
    total = np.zeros(len(array))
    for start in starts:
        outcomes = array[:, start : start + block].astype(np.int64) @ (1 << np.arange(block, dtype=np.int64))
        _, index, counts = np.unique(outcomes, return_inverse=True, return_counts=True)
        total -= np.log2(counts / len(array))[index]
    return total / len(starts)
