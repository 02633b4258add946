"""Semantic segmentation scores from one confusion matrix."""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from evaluate.metrics.arrays import as_numpy

VOID = 255


def confusion(truth: Any, prediction: Any, classes: int, *, void: int = VOID) -> np.ndarray:
    """Pixel counts by true class (rows) and predicted class (columns).

    truth, prediction: integer label maps of one shape; pixels whose true label is `void` are left out. Returns
    (classes, classes) int64, to be summed over images. Raises ValueError for unequal shapes and for labels outside
    0..classes-1.
    """
    true, predicted = as_numpy(truth), as_numpy(prediction)
    if true.shape != predicted.shape:
        raise ValueError(f"truth has shape {true.shape}, prediction {predicted.shape}; they must agree")
    valid = true != void
    true, predicted = true[valid].astype(np.int64), predicted[valid].astype(np.int64)
    for name, labels in (("truth", true), ("prediction", predicted)):
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"{name} holds labels {labels.min()}..{labels.max()}; allowed are 0..{classes - 1}")
    return np.bincount(classes * true + predicted, minlength=classes**2).reshape(classes, classes)


def mean_iou(counts: np.ndarray, *, hungarian: bool = False, empty_as_zero: bool = False) -> float:
    """Mean over classes of the intersection over union of predicted and true pixels, in [0, 1].

    counts (C, C) from `confusion`. A class that is neither true nor predicted anywhere is left out, or scores 0 with
    `empty_as_zero`. `hungarian` first renames the predicted classes by the assignment with the largest sum of IoU, as
    is done for clusters. NaN when no pixel counts.
    """
    overlap = _pairwise_iou(counts)
    if hungarian:
        counts = counts[:, linear_sum_assignment(overlap, maximize=True)[1]]
        overlap = _pairwise_iou(counts)
    present = counts.sum(axis=0) + counts.sum(axis=1) > 0
    if not present.any():
        return float("nan")
    return float(overlap.diagonal().mean() if empty_as_zero else overlap.diagonal()[present].mean())


def _pairwise_iou(counts: np.ndarray) -> np.ndarray:
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    return counts / np.maximum(union, 1)
