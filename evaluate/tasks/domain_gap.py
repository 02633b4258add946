"""Signals without labels of how a backbone sees other images than those that it was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluate.features import Frozen, Layout
from evaluate.metrics import effective_rank
from evaluate.metrics.domain import frechet_distance, mmd
from evaluate.metrics.geometry import unit_float64
from evaluate.tasks.base import (
    Data,
    Result,
    Score,
    Subject,
    Task,
    Unavailable,
    accuracy,
    centre_view_protocol,
    mean_score,
)
from pretrain.messages import to_bits


class DomainGap(Task):
    """Gap between source and target features, their effective ranks, and agreement of two crops of a target image.

    source: a dataset, by default the one that the backbone was trained on, before it was adapted; at most `images` of
    each side, drawn with `seed`. frechet and mmd are squared distances of unit rows. view_agreement: share of images
    whose first crop is nearer, by cosine, to their own second crop than to that of any of the `agreement_images`.
    bit_agreement: share of equal bits of the two messages, where there is a binary channel; a constant message agrees
    fully, so read it with the rank.
    """

    name = "domain_gap"
    higher_is_better = False

    def __init__(
        self,
        source: str | None = None,
        split: str = "train",
        source_split: str = "test",
        images: int = 2000,
        agreement_images: int = 500,
        seed: int = 0,
    ):
        for key, value in (("images", images), ("agreement_images", agreement_images)):
            if value < 2:
                raise ValueError(f"{key}={value} must be at least 2")
        self.source, self.split, self.source_split = source, split, source_split
        self.images, self.agreement_images, self.seed = images, agreement_images, seed

    @property
    def splits(self) -> tuple[str, ...]:
        """The target's."""
        return (self.split,)

    def main(self, subject: Subject) -> str:
        """The Frechet distance."""
        return "frechet"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """View, feature, both sides and how many images of each."""
        shared = centre_view_protocol(subject, "class token of the last block, unit length")
        data = self.source_data(subject)
        source = {"data": data.name, "split": self.source_split, "fingerprint": data.fingerprint((self.source_split,))}
        shared |= {"split": self.split, "source": source, "images": self.images, "seed": self.seed}
        return shared | {"agreement": {"images": self.agreement_images, "crops": "random, as in a linear probe"}}

    def source_data(self, subject: Subject) -> Data:
        """The dataset of the source; raises Unavailable where it is not known or cannot be opened."""
        name = self.source or subject.source
        if subject.open_data is None or not name:
            raise Unavailable("it is not known what the backbone was trained on", "set source=<a name in configs/data>")
        try:
            return subject.open_data(name)
        except ValueError as error:
            raise Unavailable(
                f"the source {name!r} cannot be opened ({error})", "set source=<a name in configs/data>"
            ) from error

    def check(self, subject: Subject) -> None:
        """Needs the source, and two images on either side."""
        source = self.source_data(subject).split(self.source_split)
        if min(len(source), len(subject.data.split(self.split))) < 2:
            raise Unavailable("a domain of one image has no spread", "add images")

    def prepare(self, subject: Subject) -> None:
        """This process's share of the features of both sides."""
        subject.store.prepare(subject.backbone, subject.data.split(self.split))
        subject.store.prepare(subject.backbone, self.source_data(subject).split(self.source_split))

    def run(self, subject: Subject) -> Result:
        """Compare the two clouds, and the crops."""
        target = subject.features(self.split)
        source = subject.store.get(subject.backbone, self.source_data(subject).split(self.source_split))
        here, there = self.chosen(target), self.chosen(source)
        count = min(len(here), len(there))
        scores = {
            "frechet": Score(distance(frechet_distance, there, here), None, None, count, scale="squared distance"),
            "mmd": Score(distance(mmd, there, here), None, None, count, scale="squared distance"),
        }
        for name, rows in (("effective_rank", here), ("source_effective_rank", there)):
            scores[name] = Score(effective_rank(rows), None, None, len(rows), scale="dimensions")
        scores |= agreement(*self.crops(subject), subject)
        return Result(scores, skipped={"images": target.skipped + source.skipped})

    def chosen(self, features: Frozen) -> np.ndarray:
        """Class tokens of the images that take part, (n, D)."""
        rows = features.cls().numpy()
        return rows[np.sort(np.random.default_rng(self.seed).permutation(len(rows))[: self.images])]

    def crops(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """Class tokens of two random crops of some images, (n, D) each."""
        images = subject.data.split(self.split)
        order = np.random.default_rng(self.seed).permutation(len(images))[: self.agreement_images]
        table = torch.from_numpy(np.stack([order, order]).astype(np.int64))  # a row is a step: all images, then again
        last = Layout.of(subject.backbone).blocks - 1
        first, second = (
            tokens[last] for tokens, _ in subject.store.random_crops(subject.backbone, images, table, self.seed)
        )
        return first, second


@torch.no_grad()
def agreement(first: Tensor, second: Tensor, subject: Subject) -> dict[str, Score]:
    """How well two crops (n, D) of the same images agree, as scores."""
    nearest = nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T
    found = {"view_agreement": accuracy((nearest.argmax(1).cpu() == torch.arange(len(first))).numpy())}
    if subject.head is not None:
        head = subject.head.to(subject.device)
        same = to_bits(head(first)) == to_bits(head(second))
        found["bit_agreement"] = mean_score(same.float().mean(1).double().cpu().numpy(), "image")
    return found


def distance(metric: Any, source: np.ndarray, target: np.ndarray) -> float:
    """A distance between unit rows."""
    return float(metric(unit_float64(source), unit_float64(target)))
