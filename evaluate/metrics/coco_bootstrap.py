"""COCO AP over resampled images: intervals of class-agnostic and of class-aware AP, and the AP of single images.

The AP of a set is no mean over images, so a resample has to be ranked again. What each detection matched depends on
its own image alone: it is found once, and an image drawn twice counts twice in the running sums. Copies of one image
stand next to each other among equal scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from faster_coco_eval import COCOeval_faster
from numba import njit

from evaluate.metrics.coco import STAT_NAMES, Annotation, Truth, _evaluate, _read_detections, _read_truth
from evaluate.metrics.interpolated import IOUS, interpolated_ap
from evaluate.metrics.statistics import expanded_percentiles

RESAMPLES = 1000
LEAST = np.minimum(IOUS, 1 - 1e-10)  # an IoU of 1 may come out a rounding below it
CLASS_RESAMPLES = 300  # each class is ranked again in every one


@dataclass(frozen=True)
class Matches:
    """What class-agnostic detections matched, in the order in which the whole set ranks them.

    ids (I,) image ids, ascending; images (D,) position of each detection's image; hits, counted (10, D): whether it
    matched an object, and whether it counts at all (matches with crowds do not), by IoU 0.50:0.05:0.95; objects (I,)
    number of objects in each image, crowds left out; stats (12,) the summary numbers of the whole set; scores (D,).
    """

    ids: np.ndarray
    images: np.ndarray
    hits: np.ndarray
    counted: np.ndarray
    objects: np.ndarray
    stats: np.ndarray
    scores: np.ndarray

    def stat(self, name: str) -> float:
        """One of the 12 summary numbers, NaN where it is undefined."""
        value = float(self.stats[STAT_NAMES.index(name)])
        return value if value > -1 else float("nan")

    def precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """AP at each IoU, (10,), with every image counted `weights` (I,) times; NaN without any object."""
        repeats = np.ones(len(self.ids)) if weights is None else weights
        return interpolated_ap(repeats[self.images], self.hits, self.counted, float(repeats @ self.objects))

    def by_image(self) -> np.ndarray:
        """AP at each IoU of every image on its own, (10, I); NaN for images without an object."""
        values = np.full((len(IOUS), len(self.ids)), np.nan)
        order = np.argsort(self.images, kind="stable")
        starts = np.searchsorted(self.images[order], np.arange(len(self.ids) + 1))
        for i in np.flatnonzero(self.objects):
            own = order[starts[i] : starts[i + 1]]
            parts = (self.hits[:, own], self.counted[:, own], self.objects[i : i + 1], self.stats, self.scores[own])
            values[:, i] = Matches(self.ids[i : i + 1], np.zeros(len(own), np.int64), *parts).precision()
        return values

    def resampled(self, seed: int = 0, count: int = RESAMPLES) -> np.ndarray:
        """AP at each IoU over images drawn with replacement, (count, 10)."""
        rng, n = np.random.default_rng(seed), len(self.ids)
        draws = (np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64) for _ in range(count))
        return np.array([self.precision(weights) for weights in draws])


def interval(whole: np.ndarray, resamples: np.ndarray, images: int) -> list[tuple[float | None, float | None]]:
    """Intervals at 95 % of AP, AP50 and AP75, in this order, from `precision()` and `resampled()`; None: unknown."""
    ends: list[tuple[float | None, float | None]] = []
    for pick in (slice(None), slice(0, 1), slice(5, 6)):
        value, spread = whole[pick].mean(), resamples[:, pick].mean(axis=1)
        spread = spread[np.isfinite(spread)]  # a resample may hold no object at all
        if images < 2 or not np.isfinite(value) or not len(spread):
            ends.append((None, None))
            continue
        low, high = expanded_percentiles(spread - value, images, 0.95)
        ends.append((float(np.clip(value + low, 0, value)), float(np.clip(value + high, value, 1))))
    return ends


def agnostic_matches(truth_json: Truth, detections: list[Annotation], *, iou_type: str) -> Matches:
    """Class-agnostic summary numbers and the matches behind them; arguments and errors as `evaluate.metrics.coco_ap`.

    All sizes of objects, at most 100 detections an image.
    """
    truth = _read_truth(truth_json, iou_type, True)
    found = _read_detections(truth, detections, iou_type, True)
    evaluator = _evaluate(truth, found, iou_type)
    evaluator.summarize()
    [matches] = _matches(truth, found, evaluator, [1])
    return replace(matches, stats=np.array(evaluator.stats[:12], np.float64))


def class_matches(truth_json: Truth, detections: list[Annotation], *, iou_type: str) -> list[Matches]:
    """The matches of every class that has objects, without summary numbers; arguments and errors as
    `evaluate.metrics.coco_ap`.
    """
    truth = _read_truth(truth_json, iou_type, False)
    found = _read_detections(truth, detections, iou_type, False)
    annotated = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
    classes = [c["id"] for c in truth["categories"] if c["id"] in annotated]
    return _matches(truth, found, _evaluate(truth, found, iou_type), classes) if classes else []


def _matches(truth: dict, found: list[Annotation], evaluator: COCOeval_faster, classes: Sequence[int]) -> list[Matches]:
    """The matches of categories, from an evaluator that has run."""
    ids = np.array(sorted(image["id"] for image in truth["images"]))
    place = {image: i for i, image in enumerate(ids.tolist())}
    crowds, confidence = _grouped(truth["annotations"], "iscrowd"), _grouped(found, "score")
    result = []
    for category in classes:
        objects = np.zeros(len(ids), np.int64)
        for image, flags in crowds.get(category, {}).items():
            if image in place:
                objects[place[image]] = flags.count(0)
        images: list[int] = []
        scores: list[np.ndarray] = [np.zeros(0)]
        parts: list[np.ndarray] = [np.zeros((2, len(IOUS), 0), bool)]
        for image in sorted(confidence.get(category, ())):
            ranked = -np.sort(-np.array(confidence[category][image]))[: evaluator.params.maxDets[-1]]
            crowd = np.array(crowds.get(category, {}).get(image, ()), bool)
            overlap = np.asarray(evaluator.ious[image, category], np.float64).reshape(len(ranked), len(crowd))
            images += [place[image]] * len(ranked)
            scores.append(ranked)
            parts.append(match(overlap, crowd, LEAST))
        every, (hits, counted) = np.concatenate(scores), np.concatenate(parts, axis=2)
        order = np.argsort(-every, kind="stable")
        positions = np.array(images, np.int64)[order]
        none = np.full(len(STAT_NAMES), -1.0)
        result.append(Matches(ids, positions, hits[:, order], counted[:, order], objects, none, every[order]))
    return result


def _grouped(items: Sequence[Annotation], key: str) -> dict[int, dict[int, list]]:
    """A value of every item by category and image, in their order."""
    groups: dict[int, dict[int, list]] = {}
    for item in items:
        groups.setdefault(item["category_id"], {}).setdefault(item["image_id"], []).append(item[key])
    return groups


def class_intervals(classes: Sequence[Matches]) -> tuple[np.ndarray, list[tuple[float | None, float | None]]]:
    """Class-aware AP, AP50 and AP75, (3,), the means over the classes that have objects, with intervals over images.

    The same images are drawn for every class.
    """
    if not classes:
        return np.full(3, np.nan), [(None, None)] * 3
    wholes = [matches.precision() for matches in classes]
    draws = [matches.resampled(count=CLASS_RESAMPLES) for matches in classes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample may hold no object of any class
        whole, resamples = np.nanmean(wholes, axis=0), np.nanmean(draws, axis=0)
    return np.array([whole.mean(), whole[0], whole[5]]), interval(whole, resamples, len(classes[0].ids))


def by_image(classes: Sequence[Matches]) -> dict[str, np.ndarray]:
    """The matches of I images in C classes, in the form of `evaluate.metrics.paired_ap`, for a record to keep.

    "ap_matches" (I, K, 4): class, score, hits and counted (bit t for IoU t) of the detections of each image, NaN behind
    the last; "ap_objects" (I, C). Images by ascending id.
    """
    images = len(classes[0].ids)
    image = np.concatenate([matches.images for matches in classes])
    bits = 1 << np.arange(len(IOUS))
    columns = [
        np.column_stack([np.full(len(m.images), c), m.scores, bits @ m.hits, bits @ m.counted])
        for c, m in enumerate(classes)
    ]
    order = np.argsort(image, kind="stable")
    counts = np.bincount(image, minlength=images)
    kept = np.full((images, max(counts.max(), 1), 4), np.nan)
    place = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept[image[order], place] = np.concatenate(columns)[order]
    return {"ap_matches": kept, "ap_objects": np.column_stack([matches.objects for matches in classes])}


@njit(cache=True)
def match(overlap, crowd, least):
    """Greedy matching of one image: which detections hit an object, and which count, by IoU; (2, T, D) boolean.

    overlap (D, G), detections by falling score; crowd (G,) boolean; least (T,) IoU. A detection takes the free object
    that it overlaps most (the last of equals), a crowd only where there is none; a crowd may be taken by many.
    """
    found, objects = overlap.shape
    result = np.zeros((2, len(least), found), np.bool_)
    for t in range(len(least)):
        free = ~crowd
        for d in range(found):
            best, most, crowded = -1, least[t], False
            for g in range(objects):
                if overlap[d, g] >= most:
                    if free[g]:
                        best, most = g, overlap[d, g]
                    crowded |= crowd[g]
            if best >= 0:
                free[best] = False
            result[0, t, d] = best >= 0
            result[1, t, d] = best >= 0 or not crowded
    return result
