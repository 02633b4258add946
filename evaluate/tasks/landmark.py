"""Landmark retrieval: revisited Oxford and Paris (Radenovic et al. 2018) as in DINO's evaluation (Caron et al. 2021).

Images keep their ratio and a size of their own; the rest of a side that fills no patch is cut off. The reference feeds
whole query images, the benchmark's own definition the box of the landmark: both are reported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from evaluate.metrics import landmark_ap, mp_at_k
from evaluate.metrics.cosine import score_blocks, unit_pair
from evaluate.tasks.base import Result, Subject, Task, Unavailable, mean_score
from evaluate.vectors import Vectors, last_block
from evaluate.views import View
from pretrain.datasets import ImageData, ImageError
from pretrain.datasets.landmarks import Landmarks

LEVELS = ("easy", "medium", "hard")
KS = (1, 5, 10)
SCALES = {False: (1.0,), True: (1.0, 2**-0.5, 0.5)}


class LimitedViews(Dataset):
    """row -> the image, or its box (left, top, right, bottom), with its longer side at most `limit` pixels (Lanczos).

    The ratio is kept and nothing is enlarged.
    """

    def __init__(self, images: ImageData, limit: int, boxes: np.ndarray | None = None):
        self.images, self.limit, self.boxes = images, limit, boxes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> View:
        try:
            image = self.images.image(row)
        except ImageError as error:
            return None, row, str(error)
        if self.boxes is not None:
            left, top, right, bottom = (round(side) for side in self.boxes[row])
            box = max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)
            if box[0] >= box[2] or box[1] >= box[3]:
                return None, row, f"the box of {self.images.paths[row]} lies outside the image of {image.size} pixels"
            image = image.crop(box)
        image.thumbnail((self.limit, self.limit), Image.Resampling.LANCZOS)
        return np.array(image), row, ""


class Landmark(Task):
    """Mean average precision (trapezoid form) and mean precision at 1, 5 and 10, at three levels of difficulty.

    imsize: limit of the longer side in pixels; multiscale: features averaged over scales 1, 1/sqrt(2) and 1/2;
    crop_query: whether the headline is that of queries cut to the box of their landmark.
    """

    name = "landmark"

    def __init__(self, imsize: int = 224, multiscale: bool = False, crop_query: bool = False):
        if imsize < 1:
            raise ValueError(f"imsize={imsize} must be positive")
        self.imsize, self.multiscale, self.crop_query = imsize, multiscale, crop_query

    @property
    def splits(self) -> tuple[str, ...]:
        """Queries and database."""
        return "queries", "database"

    def main(self, subject: Subject) -> str:
        """mAP at the medium level."""
        return "map_medium_crop" if self.crop_query else "map_medium"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Feature, sizes, scales and the rules of the metric."""
        settings: dict[str, Any] = {"features": "class token of the last block, unit length"}
        settings |= {"view": {"longer_side": self.imsize, "interpolation": "lanczos", "enlarged": False}}
        settings |= {"scales": [round(scale, 6) for scale in SCALES[self.multiscale]], "scaling": "bilinear"}
        settings |= {"headline_queries": "boxes" if self.crop_query else "whole", "precision": subject.store.precision}
        return settings | {"ap": "trapezoid", "ties": "index"}

    def check(self, subject: Subject) -> None:
        """Needs landmarks, and a network whose feature has one width at any size of image."""
        if not all(isinstance(subject.data.split(split), Landmarks) for split in self.splits):
            raise Unavailable(f"{subject.data.name} has no levels of difficulty", "use data=roxford5k or rparis6k")
        if subject.backbone.spec.get("name") == "pixels":
            raise Unavailable("raw pixels have another width at every size of image", "evaluate a network")

    def sets(self, subject: Subject) -> list[Vectors]:
        """Vectors of the database, of whole queries and of their boxes."""
        queries, database = (subject.data.split(split) for split in self.splits)
        boxes = queries.truth.boxes  # type: ignore[attr-defined]  # checked above
        views = LimitedViews(database, self.imsize), LimitedViews(queries, self.imsize)
        kinds = (*views, LimitedViews(queries, self.imsize, boxes))
        return [
            Vectors(
                subject.store,
                subject.backbone,
                self.name,
                view.images,
                view,
                lambda pixels: self.describe(subject, pixels),
                {"imsize": self.imsize, "scales": SCALES[self.multiscale], "boxes": view.boxes is not None},
            )
            for view in kinds
        ]

    def describe(self, subject: Subject, pixels: Tensor) -> Tensor:
        """Class tokens (B, D) of uint8 views (B, 3, H, W), averaged over the scales."""
        scales = SCALES[self.multiscale]
        tokens = [last_block(subject.store, subject.backbone, pixels, scale).cls for scale in scales]
        return torch.stack(tokens).mean(0)

    def prepare(self, subject: Subject) -> None:
        """Compute this process's share of all vectors."""
        for vectors in self.sets(subject):
            vectors.prepare()

    def run(self, subject: Subject) -> Result:
        """Rank the database for whole queries and for their boxes."""
        images = subject.data.split("queries")
        assert isinstance(images, Landmarks)
        database, *queries = (vectors.get() for vectors in self.sets(subject))
        shown, whole, boxed = (np.isfinite(rows).all(1) for rows in (database, *queries))
        known = whole & boxed  # the same queries either way
        relevance = images.truth.relevance[known][:, shown]
        stored = torch.from_numpy(database[shown]).to(subject.device)
        values: dict[str, np.ndarray] = {}
        for suffix, rows in zip(("", "_crop"), queries, strict=True):
            pair = unit_pair(rows[known], stored, f"{'boxed' if suffix else 'whole'} queries", "database features")
            similar = np.concatenate([scores.cpu().numpy().copy() for _, scores in score_blocks(*pair)])
            values |= level_values(similar, relevance, suffix)
        skipped = {"queries": int((~known).sum()), "database": int((~shown).sum())}
        for level in LEVELS:
            skipped[f"queries without a positive at the {level} level"] = int(np.isnan(values[f"map_{level}"]).sum())
        scores = {name: mean_score(value, "query") for name, value in values.items()}
        return Result(scores, {"sample_id": np.array(images.paths)[known], **values}, skipped)


def level_values(similar: np.ndarray, relevance: np.ndarray, suffix: str) -> dict[str, np.ndarray]:
    """AP and precision at `KS` of each query (Q,) by level, from cosines and relevance (Q, N)."""
    values: dict[str, np.ndarray] = {}
    for level in LEVELS:
        values[f"map_{level}{suffix}"] = landmark_ap(similar, relevance, level)  # type: ignore[arg-type]
        precision = mp_at_k(similar, relevance, level, KS)  # type: ignore[arg-type]
        values |= {f"mp{k}_{level}{suffix}": precision[:, i] for i, k in enumerate(KS)}
    return values
