"""Entropies of binary codes in bits (log2), plug-in estimates without bias correction, and correlations of bits."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from evaluate.metrics.arrays import as_bits

LONGEST_BLOCK = 62  # a block is read as one int64


def bit_entropy(bits: Any) -> np.ndarray:
    """Entropy (b,) of each bit over codes (n, b) of 0/1, in [0, 1]; ValueError for other values or an empty input."""
    ones = as_bits(bits, "bits").mean(axis=0, dtype=np.float64)
    return plug_in(np.stack([ones, 1 - ones], axis=1))


def block_entropy(bits: Any, block: int = 8) -> np.ndarray:
    """Joint entropy (b // block,) of consecutive blocks of `block` bits over codes (n, b), in [0, block].

    Bits after the last whole block are left to `trailing_entropy`. The estimate falls short by about
    (2^block - 1) / (2 n ln 2) bits; a warning is given below 10 * 2^block codes, where that reaches 0.07. Raises
    ValueError for values other than 0/1, an empty input, and a block outside 1..min(b, 62).
    """
    array = as_bits(bits, "bits")
    check_block(block, array.shape[1])
    if len(array) < 10 * 2**block:
        bias = (2**block - 1) / (2 * len(array) * math.log(2))
        warnings.warn(f"{len(array)} codes for blocks of {block} bits: entropy is about {bias:.2g} low", stacklevel=2)
    whole = array.shape[1] // block * block
    return np.array([joint_entropy(array[:, i : i + block]) for i in range(0, whole, block)])


def trailing_entropy(bits: Any, block: int = 8) -> float:
    """Joint entropy of the b % block bits after the last whole block, in bits; NaN when there are none."""
    array = as_bits(bits, "bits")
    if not 1 <= block <= LONGEST_BLOCK:
        raise ValueError(f"block={block} is outside 1..{LONGEST_BLOCK}")
    rest = array.shape[1] % block
    return joint_entropy(array[:, -rest:]) if rest else math.nan


def check_block(block: int, bits: int) -> None:
    """Raises ValueError for a block that is not positive, longer than the code, or too long to count."""
    if not 1 <= block <= min(bits, LONGEST_BLOCK):
        raise ValueError(f"block={block} is outside 1..{min(bits, LONGEST_BLOCK)} for codes of {bits} bits")


def joint_entropy(block: np.ndarray) -> float:
    """Entropy of the rows of a 0/1 matrix (n, m), m <= 62, in bits."""
    outcomes = block.astype(np.int64) @ (1 << np.arange(block.shape[1], dtype=np.int64))
    counts = np.bincount(outcomes) if block.shape[1] <= 16 else np.unique(outcomes, return_counts=True)[1]
    return float(plug_in(counts[None] / len(block))[0])


def plug_in(shares: np.ndarray) -> np.ndarray:
    """Entropy in bits of each row of shares (m, outcomes), with 0 log 0 = 0."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.maximum(-(shares * logs).sum(axis=1), 0.0)


def bit_correlation(bits: Any) -> np.ndarray:
    """Pearson correlation (b, b) between the bits of codes (n, b); 0 where a bit is constant, its diagonal included.

    Raises ValueError for values other than 0/1 or an empty input.
    """
    array = as_bits(bits, "bits").astype(np.float64)
    ones = array.mean(axis=0)
    covariance = array.T @ array / len(array) - np.outer(ones, ones)
    # Spread from the counts rather than the covariance: exactly 0 for a constant bit.
    spread = np.sqrt(ones * (1 - ones))
    scale = np.outer(spread, spread)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
