"""DAVIS 2017 scores of video object segmentation: region similarity J, contour accuracy F and their statistics.

Perazzi et al. 2016 ("A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation") define J and F,
Pont-Tuset et al. 2017 ("The 2017 DAVIS Challenge on Video Object Segmentation") the averages over objects. Both
measures are ratios of numbers of pixels, which are counted for all objects of a frame at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.metrics.arrays import as_numpy
from evaluate.metrics.video_kernels import boundaries, confirmed, overlaps

VOID = 255
BOUND_FRACTION = 0.008  # tolerance of a contour match, as a share of the image diagonal

Mask = Any  # torch tensor or numpy array
Frames = Sequence[Mask] | np.ndarray


def region_similarity(truth: Mask, prediction: Mask, void: Mask | None = None) -> float:
    """Jaccard index J of two masks: intersection over union, 1 where both are empty.

    truth, prediction (H, W) boolean; void (H, W) boolean pixels to leave out. Raises ValueError for unequal shapes.
    Perazzi et al. 2016, section 5.
    """
    return float(_frame_scores(*_mask_pair(truth, prediction, void), 1)[0][0])


def contour_accuracy(truth: Mask, prediction: Mask, void: Mask | None = None) -> float:
    """Boundary F-measure F of two masks: harmonic mean of the confirmed shares of both boundaries.

    truth, prediction (H, W) boolean; void (H, W) boolean pixels counted as background. A boundary pixel is confirmed
    when the other boundary comes within ceil(0.008 * diagonal) pixels. Without any boundary F = 1, with only one F =
    0. Raises ValueError for unequal shapes. Perazzi et al. 2016, section 5.
    """
    return float(_frame_scores(*_mask_pair(truth, prediction, void), 1)[1][0])


def contour_tolerance(height: int, width: int) -> int:
    """Radius in pixels within which two boundaries match: 8 for 480 x 854."""
    return int(np.ceil(BOUND_FRACTION * np.linalg.norm((height, width))))


def sequence_statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, recall and decay of one object's per-frame scores.

    values (n,) scores of the evaluated frames in order. Recall is the share of frames above 0.5; decay the mean of
    the first quarter minus that of the last, where the quarters share their edge frames. Raises ValueError for no
    frames.
    """
    if len(values) == 0:
        raise ValueError(
            "no frame to evaluate: the first and the last frame do not count, so a sequence needs at least 3"
        )
    # Half a frame rounds up (2.5 -> 3); the tiny shift undoes round-half-to-even.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean())


@dataclass(frozen=True)
class SequenceScores:
    """J and F of every object and frame of one sequence.

    j, f (objects, frames) over all frames, in [0, 1]; the statistics leave the first and the last frame out.
    """

    j: np.ndarray
    f: np.ndarray

    def statistics(self) -> np.ndarray:
        """Mean, recall and decay per object and measure, (objects, 2, 3) float64; measures in the order J, F."""
        return np.array([[sequence_statistics(row[1:-1]) for row in rows] for rows in zip(self.j, self.f, strict=True)])


def evaluate_sequence(truth: Frames, prediction: Frames, *, name: str = "sequence") -> SequenceScores:
    """Score the predicted label maps of one sequence against the annotation.

    truth, prediction: T label maps (H, W) of integers, 0 background, 1..K the objects; label 255 of the annotation is
    void and counts as background. K is the largest label of the first annotation; objects that the prediction lacks
    score as empty. Raises ValueError, naming sequence and frame, for unequal lengths or sizes, no object in frame 0
    or a predicted label above K.
    """
    if len(truth) != len(prediction):
        raise ValueError(f"{name}: {len(prediction)} predicted frames for {len(truth)} annotated ones")
    objects = object_count(truth[0] if len(truth) else np.zeros((1, 1), np.uint8), name)
    j, f = np.empty((2, objects, len(truth)))
    for t, (annotation, result) in enumerate(zip(truth, prediction, strict=True)):
        j[:, t], f[:, t] = evaluate_frame(annotation, result, objects, where=f"{name}, frame {t}")
    return SequenceScores(j, f)


def object_count(first: Mask, name: str = "sequence") -> int:
    """Number of objects of a sequence, the largest label of its first annotation (H, W); ValueError for none."""
    labels = as_numpy(first)
    objects = int(np.where(labels == VOID, 0, labels).max())
    if objects < 1:
        raise ValueError(f"{name}: the annotation of frame 0 has no object; labels 1..K mark the objects to follow")
    return objects


def evaluate_frame(
    truth: Mask, prediction: Mask, objects: int, *, where: str = "frame"
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every object in one frame, two (objects,) float64; arguments and errors as `evaluate_sequence`."""
    annotation, result = as_numpy(truth), as_numpy(prediction)
    _check_frame(annotation, result, objects, where)
    return _frame_scores(_labels(annotation, objects), _labels(result, objects), objects)


def summarize_sequences(sequences: Sequence[SequenceScores]) -> dict[str, float]:
    """DAVIS totals over all objects of all sequences: JF_mean, then mean, recall and decay of J and of F.

    Every object weighs the same, however many its sequence has (Pont-Tuset et al. 2017, section 3).
    """
    per_object = np.concatenate([scores.statistics() for scores in sequences])  # (objects, 2, 3)
    means = per_object.mean(axis=0)
    totals = {"JF_mean": float(means[:, 0].mean())}
    for row, measure in zip(means, "JF", strict=True):
        totals |= {f"{measure}_{key}": float(v) for key, v in zip(("mean", "recall", "decay"), row, strict=True)}
    return totals


def _frame_scores(truth: np.ndarray, prediction: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """J and F, two (objects,), of contiguous label maps whose labels lie between 0 and `objects`."""
    in_truth, in_prediction, in_both = overlaps(truth.ravel(), prediction.ravel(), objects)[:, 1:]
    union = in_truth + in_prediction - in_both
    j = np.where(union, in_both / np.maximum(union, 1), 1.0)
    edges = boundaries(truth, objects), boundaries(prediction, objects)
    sizes = [np.bincount(edge[:, 0], minlength=objects + 1)[1:] for edge in edges]
    radius = contour_tolerance(*truth.shape)
    height, width = truth.shape
    near = [confirmed(one, other, objects, height, width, radius)[1:] for one, other in (edges, edges[::-1])]
    recall, precision = (count / np.maximum(size, 1) for count, size in zip(near, sizes, strict=True))
    total = precision + recall
    f = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)
    lacking = (sizes[0] == 0) | (sizes[1] == 0)
    return j, np.where(lacking, sizes[0] == sizes[1], f)


def _mask_pair(truth: Mask, prediction: Mask, void: Mask | None) -> tuple[np.ndarray, np.ndarray]:
    masks = [np.ascontiguousarray(as_numpy(mask), dtype=bool) for mask in (truth, prediction)]
    if masks[0].shape != masks[1].shape or masks[0].ndim != 2:
        raise ValueError(f"masks must be two (H, W) arrays of one size, got {masks[0].shape} and {masks[1].shape}")
    if void is not None:
        masks = [mask & ~np.asarray(as_numpy(void), dtype=bool) for mask in masks]
    return masks[0].view(np.uint8), masks[1].view(np.uint8)


def _labels(given: np.ndarray, objects: int) -> np.ndarray:
    """A label map with whatever is no object as background."""
    kind = np.uint8 if objects < VOID else np.int32
    if given.dtype != kind or given.max() > objects:
        given = np.where((given > 0) & (given <= objects), given, 0)
    return np.ascontiguousarray(given, dtype=kind)


def _check_frame(annotation: np.ndarray, result: np.ndarray, objects: int, where: str) -> None:
    if result.ndim != 2:
        raise ValueError(f"{where}: the prediction has shape {result.shape}; it must be one channel of labels (H, W)")
    if annotation.shape != result.shape:
        raise ValueError(f"{where}: the prediction is {result.shape}, the annotation {annotation.shape}")
    if (largest := int(result.max())) > objects:
        raise ValueError(f"{where}: the prediction has label {largest}, but the sequence has {objects} objects")
