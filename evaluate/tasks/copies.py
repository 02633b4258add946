"""Copy detection: Copydays as in DINO's evaluation (Caron et al. 2021, public code).

Images are squeezed to a square; the feature is the class token beside the patches pooled by a generalised mean of
exponent 4. A copy looks for its original among all originals and, where there are any, distractors; AP is the trapezoid
form of the INRIA Holidays package over the first 20. Whitening is learnt on further images where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from evaluate.metrics import knn_search
from evaluate.metrics.landmark import trapezoid_ap
from evaluate.tasks.base import Result, Score, Subject, Task, Unavailable, mean_score
from evaluate.vectors import Vectors, last_block
from evaluate.views import View
from pretrain.datasets import ImageData, ImageError
from pretrain.datasets.copydays import Copydays

SHOWN = 20  # of a ranking
EXPONENT = 4.0
SMALLEST = 1e-6  # of a patch token, before it is raised to a power
FLOOR = 1e-5  # of an eigenvalue, relative to the largest
OPTIONAL = ("distractors", "whitening")


class SquareViews(Dataset):
    """row -> the whole image at `size` x `size` pixels (bicubic), its ratio not kept."""

    def __init__(self, images: ImageData, size: int):
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> View:
        try:
            image = self.images.image(row)
        except ImageError as error:
            return None, row, str(error)
        return np.array(image.resize((self.size, self.size), Image.Resampling.BICUBIC)), row, ""


class Copies(Task):
    """Mean average precision of finding the original of strong copies; beside it that of every other kind of copy.

    imsize: side of the square in pixels. Splits "distractors" and "whitening" of the dataset are used where their
    images are there (published: 10,000 and 20,000 of YFCC100M), and are part of the protocol. micro_ap_strong: average
    precision of all pairs among the first 20 of every strong copy, ranked together by their cosines.
    """

    name = "copies"

    def __init__(self, imsize: int = 320):
        if imsize < 1:
            raise ValueError(f"imsize={imsize} must be positive")
        self.imsize = imsize

    @property
    def splits(self) -> tuple[str, ...]:
        """Queries and database."""
        return "queries", "database"

    def main(self, subject: Subject) -> str:
        """mAP of strong copies."""
        return "map_strong"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Feature, size, further images and the rules of the metric."""
        settings: dict[str, Any] = {"features": f"class token, generalised mean {EXPONENT:g} of patches; unit length"}
        settings |= {"view": {"square": self.imsize, "interpolation": "bicubic"}, "precision": subject.store.precision}
        more = {name: images.fingerprint if images else "none" for name, images in further(subject).items()}
        return settings | more | {"ap": f"trapezoid, first {SHOWN}", "ties": "index"}

    def check(self, subject: Subject) -> None:
        """Needs copies, and a network."""
        if not all(isinstance(subject.data.split(split), Copydays) for split in self.splits):
            raise Unavailable(f"{subject.data.name} does not say what is a copy of what", "use data=copydays")
        if subject.backbone.spec.get("name") == "pixels":
            raise Unavailable("raw pixels have no patch tokens of the feature's width", "evaluate a network")

    def vectors(self, subject: Subject, images: ImageData) -> Vectors:
        """Features of an image set."""

        def describe(pixels: Tensor) -> Tensor:
            found = last_block(subject.store, subject.backbone, pixels)
            return pooled(found.cls, found.patches)

        settings = {"imsize": self.imsize, "exponent": EXPONENT}
        views, count = SquareViews(images, self.imsize), subject.store.batch_size
        return Vectors(subject.store, subject.backbone, self.name, images, views, describe, settings, count)

    def sets(self, subject: Subject) -> Iterator[ImageData]:
        """All images that are there."""
        yield from (subject.data.split(split) for split in self.splits)
        yield from filter(None, further(subject).values())

    def prepare(self, subject: Subject) -> None:
        """Compute this process's share of all features."""
        for images in self.sets(subject):
            self.vectors(subject, images).prepare()

    def run(self, subject: Subject) -> Result:
        """Look for the original of every copy."""
        queries, database = (subject.data.split(split) for split in self.splits)
        assert isinstance(queries, Copydays) and isinstance(database, Copydays)
        rows, stored = (self.vectors(subject, images).get() for images in (queries, database))
        known, shown = (np.isfinite(found).all(1) for found in (rows, stored))
        rows, stored, originals = rows[known], stored[shown], database.originals[shown]
        more = {name: self.vectors(subject, images).get() if images else None
                for name, images in further(subject).items()}  # fmt: skip
        more = {name: None if found is None else found[np.isfinite(found).all(1)] for name, found in more.items()}
        if (distractors := more["distractors"]) is not None:
            stored = np.concatenate([stored, distractors])
            originals = np.concatenate([originals, np.full(len(distractors), "")])
        if (learnt := more["whitening"]) is not None:
            rows, stored = whitened(learnt, rows, stored)
        cosines, found = knn_search(stored, rows, min(SHOWN, len(stored)))
        wanted, blocks = queries.originals[known], queries.blocks[known]
        relevant = originals[found] == wanted[:, None]
        totals = (originals == wanted[:, None]).sum(1)
        ap = np.array([cut_ap(np.flatnonzero(row), total) for row, total in zip(relevant, totals, strict=True)])
        strong = blocks == "strong"
        outcomes = {"sample_id": np.array(queries.paths)[known], "map_all": ap}
        for block in dict.fromkeys(blocks):
            outcomes[f"map_{block.replace('/', '_')}"] = np.where(blocks == block, ap, np.nan)
        scores = {name: mean_score(value, "query") for name, value in outcomes.items() if name != "sample_id"}
        micro = micro_ap(cosines[strong], relevant[strong], int(totals[strong].sum()))
        scores["micro_ap_strong"] = Score(micro, None, None, int(strong.sum()), "query")
        skipped = {"queries": int((~known).sum()), "database": int((~shown).sum())}
        skipped["queries without an original"] = int((totals == 0).sum())
        notes = [f"no {name}: put images where configs/data/{subject.data.name}.yaml says, to use them"
                 for name, rows_found in more.items() if rows_found is None]  # fmt: skip
        return Result(scores, outcomes, skipped, notes)


def further(subject: Subject) -> dict[str, ImageData | None]:
    """Distractors and images to learn whitening on, where they are there."""
    found: dict[str, ImageData | None] = dict.fromkeys(OPTIONAL)
    for name in OPTIONAL:
        try:
            found[name] = subject.data.split(name)
        except Unavailable:
            continue
    return found


def pooled(cls: Tensor, patches: Tensor) -> Tensor:
    """Class tokens (B, D) beside the generalised mean of patch tokens (B, h, w, D): (B, 2 D)."""
    mean = patches.clamp(min=SMALLEST).pow(EXPONENT).mean((1, 2)).pow(1 / EXPONENT)
    return torch.cat([cls, mean], dim=1)


def whitened(learnt: np.ndarray, *sets: np.ndarray) -> list[np.ndarray]:
    """Sets of rows (n, D) less the mean of `learnt` (m, D), each component divided by its root of second moment.

    As in the reference the moments of `learnt` are about zero, and small ones are raised to `FLOOR` of the largest.
    """
    exact = learnt.astype(np.float64)
    values, vectors = np.linalg.eigh(exact.T @ exact / len(exact))
    transform = vectors / np.sqrt(np.maximum(values, FLOOR * values.max()))
    return [((rows - exact.mean(0)) @ transform).astype(np.float32) for rows in sets]


def cut_ap(ranks: np.ndarray, total: int) -> float:
    """Trapezoid AP from the ascending 0-based ranks of the positives that are shown, of `total`; NaN without any."""
    if not total:
        return float("nan")
    return trapezoid_ap(ranks) * len(ranks) / total if len(ranks) else 0.0


def micro_ap(cosines: np.ndarray, relevant: np.ndarray, total: int) -> float:
    """AP of all pairs (Q, k) ranked together by cosine, of `total` relevant pairs; ties by query, then by rank."""
    hits = relevant.ravel()[np.argsort(-cosines.ravel(), kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / total) if total else float("nan")
