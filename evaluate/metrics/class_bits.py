"""How single bits of a code relate to classes: which tell them apart, and which are shared by all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.metrics.arrays import as_bits, as_labels
from evaluate.metrics.codes import plug_in


@dataclass(frozen=True)
class ClassBits:
    """Rates of ones by class; an image of several classes counts once for each of them.

    classes (K,): the class indices that occur; images (K,): how many each has; rates (K, b): share of ones.
    """

    classes: np.ndarray
    images: np.ndarray
    rates: np.ndarray

    @property
    def rate(self) -> np.ndarray:
        """Share of ones over all images (b,)."""
        return self.images @ self.rates / self.images.sum()

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of each bit (b,), in bits."""
        return _binary_entropy(self.rate)

    @property
    def entropy_within(self) -> np.ndarray:
        """Entropy of each bit given the class (b,), in bits: 1 where it splits every class in halves.

        The larger, the more is the bit shared across classes: it says something of an image that its class does not.
        """
        return self.images @ _binary_entropy(self.rates) / self.images.sum()

    @property
    def information(self) -> np.ndarray:
        """Mutual information of each bit and the class (b,), in bits: the larger, the more specific to classes."""
        return np.maximum(self.entropy - self.entropy_within, 0.0)


def class_bits(bits: Any, labels: Any) -> ClassBits:
    """Rates of ones by class for codes (n, b) of 0/1 and labels (n,) class indices or (n, C) class sets.

    Raises ValueError for other bits or labels, and where no image has a class.
    """
    array = as_bits(bits, "bits")
    found = as_labels(labels, len(array), "labels")
    if found.ndim == 1:
        classes, member = np.unique(found, return_inverse=True)
        sets = np.eye(len(classes), dtype=np.float32)[member]
    else:
        classes = np.flatnonzero(found.any(axis=0))
        sets = found[:, classes].astype(np.float32)
    if not len(classes):
        raise ValueError("no image has a class; labels are all zero")
    images = sets.sum(axis=0, dtype=np.float64)
    return ClassBits(classes, images, (sets.T @ array.astype(np.float32)) / images[:, None])  # counts below 2^24: exact


def _binary_entropy(p: np.ndarray) -> np.ndarray:
    return plug_in(np.stack([p, 1 - p], axis=-1).reshape(-1, 2)).reshape(p.shape)
