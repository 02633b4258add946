"""Messages: logits of the binary channel as bits, packed or not, and how much they say."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_bits(logits: Tensor) -> Tensor:
    """Bits of a message: 1 where the logit is strictly positive, else 0 (a zero logit gives 0); bool, same shape.

    Source: BITS, arXiv 2602.09764, section 3 (sigma(logit) > 1/2).
    """
    return logits > 0


def pack(bits: np.ndarray) -> np.ndarray:
    """Pack bits (n, b) of 0/1 into uint8 (n, ceil(b/8)), most significant bit first."""
    return np.packbits(np.asarray(bits).astype(bool), axis=1)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of `pack`: uint8 (n, ceil(bits/8)) -> bool (n, bits)."""
    return np.unpackbits(packed, axis=1, count=bits).astype(bool)


def marginal_entropy(bits: Tensor) -> Tensor:
    """Entropy in bits of each column of a bit matrix (n, b) -> (b,); 0 where a bit never changes."""
    p = bits.double().mean(0)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / np.log(2)
