"""Retrieval by binary codes: mAP over rankings by Hamming distance (BITS, arXiv 2602.09764, section 5.5).

`Hamming` ranks by the messages of a checkpoint's own binary channel. The others make codes of the features of any
backbone (their signs, ITQ, random projections), so that a channel has something to be compared with. Each is a task of
its own name: a checkpoint without a channel is skipped by `hamming` and scored by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from evaluate.features import Frozen
from evaluate.metrics import asymmetric_hamming_ap, hamming_prefix_ap
from evaluate.metrics.binarise import Binariser, itq, random_projection, sign_codes
from evaluate.tasks.base import (
    PRESETS,
    Classes,
    Result,
    Subject,
    Task,
    Unavailable,
    binary_logits,
    centre_view_protocol,
    check_labels,
    mean_score,
)
from pretrain.messages import to_bits

WIDEST = 16_384  # features; the covariance of wider ones does not fit into memory


class Hamming(Task):
    """Mean average precision of ranking by the messages of the checkpoint's own binary channel.

    bits: code lengths, each the first so many bits of the message; those that the channel does not have are left out.
    preset: as in `retrieval`. The headline averages over the orders of tied images; beside it stand ties by database
    index and the asymmetric distance, sum |sigmoid(query logit) - bit|, neither comparable with it.
    """

    name = "hamming"

    def __init__(self, bits: Sequence[int] = (256, 128, 64, 32), preset: str = "train-val"):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; use {', '.join(PRESETS)}")
        if not bits or min(bits) < 1:
            raise ValueError(f"bits={list(bits)} must be positive code lengths")
        self.bits, self.preset = sorted(bits, reverse=True), preset

    @property
    def splits(self) -> tuple[str, ...]:
        """Queries and database."""
        return tuple(dict.fromkeys(PRESETS[self.preset]))

    def main(self, subject: Subject) -> str:
        """mAP of the longest code."""
        return f"map_{self.lengths(subject)[0]}"

    def lengths(self, subject: Subject) -> list[int]:
        """Code lengths that can be made, the longest first."""
        most = self.most_bits(subject)
        return [b for b in self.bits if b <= most]

    def most_bits(self, subject: Subject) -> int:
        """The longest code that can be made: one bit for each logit of the channel."""
        assert subject.head is not None
        empty = torch.zeros(1, subject.backbone.dim, device=subject.device)
        return subject.head.to(subject.device)(empty).shape[1]

    def classes(self, subject: Subject) -> Classes:
        """The classes of queries and database in one order."""
        return Classes.of(subject, tuple(dict.fromkeys(PRESETS[self.preset])))

    def labels(self, subject: Subject, queries: Frozen, database: Frozen) -> tuple[np.ndarray, np.ndarray]:
        """Labels of queries and database in one order of classes."""
        classes, (asked, ranked) = self.classes(subject), PRESETS[self.preset]
        return classes.labels(asked, queries.rows), classes.labels(ranked, database.rows)

    def check_lengths(self, subject: Subject) -> None:
        """Raise Unavailable where every code length is longer than what can be made."""
        if not self.lengths(subject):
            most = self.most_bits(subject)
            raise Unavailable(f"bits={self.bits}: all exceed the {most} bits that can be made", f"set bits=[{most}]")

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """View, bits, distance and the rules of the metric."""
        shared = centre_view_protocol(subject, "bit = logit of the projection head > 0")
        shared |= {"preset": self.preset, "bits": self.lengths(subject), "distance": "Hamming", "ties": "average"}
        return shared | {"ap": "all", "empty": "skip"} | self.classes(subject).protocol

    def check(self, subject: Subject) -> None:
        """Needs a binary channel and labels."""
        if subject.head is None:
            raise Unavailable(
                "the checkpoint has no binary channel",
                "evaluate a run of a BITS objective, or task=hamming_itq, which makes codes of any features",
            )
        check_labels(subject, self.splits)
        self.check_lengths(subject)

    def run(self, subject: Subject) -> Result:
        """Rank by codes of every length."""
        queries, database = (subject.features(split) for split in PRESETS[self.preset])
        own = np.arange(len(queries)) if self.preset == "val-loo" else None
        values = self.average_precisions(subject, queries, database, own)
        skipped = {"queries without a relevant image": int(np.isnan(values[self.main(subject)]).sum())}
        skipped |= {"queries": queries.skipped} | ({"database": database.skipped} if own is None else {})
        scores = {name: mean_score(ap, "query") for name, ap in values.items()}
        most, left_out = self.most_bits(subject), [b for b in self.bits if b not in self.lengths(subject)]
        notes = [f"codes of {left_out} bits exceed the {most} that can be made and were left out"] if left_out else []
        return Result(scores, {"sample_id": queries.ids, **values}, skipped, notes)

    def average_precisions(
        self, subject: Subject, queries: Frozen, database: Frozen, own: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """AP of every query (Q,) by name of the score."""
        logits, stored = binary_logits(subject, queries), to_bits(binary_logits(subject, database)).numpy()
        labels, lengths = self.labels(subject, queries, database), self.lengths(subject)
        values = ap_by_both_tie_rules(to_bits(logits).numpy(), stored, *labels, lengths, own)
        for m in lengths:
            ap = asymmetric_hamming_ap(logits[:, :m], stored[:, :m], *labels, self_index=own)
            values[f"map_{m}_asymmetric"] = ap
        return values


def ap_by_both_tie_rules(
    codes: np.ndarray,
    stored: np.ndarray,
    labels: np.ndarray,
    stored_labels: np.ndarray,
    lengths: Sequence[int],
    own: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """AP of every query by the first so many bits of codes (Q, b) and (N, b), tied images in either way."""
    values: dict[str, np.ndarray] = {}
    for suffix, ties in (("", "average"), ("_index", "index")):
        found = hamming_prefix_ap(codes, stored, labels, stored_labels, prefixes=lengths, ties=ties, self_index=own)  # type: ignore[arg-type]
        values |= {f"map_{m}{suffix}": found[m] for m in lengths}
    return values


class FeatureCodes(Hamming):
    """Mean average precision of ranking by codes made of the class token of the last block, for any backbone.

    bits, preset: as in `hamming`; code lengths that the features cannot give are left out. The codes are fitted on
    `fit_images` images of the train split at most, drawn with `seed`. No asymmetric distance: it is one of
    probabilities, which these codes do not have.
    """

    rule: ClassVar[str]

    def __init__(
        self,
        bits: Sequence[int] = (256, 128, 64, 32),
        preset: str = "train-val",
        fit_images: int = 50_000,
        seed: int = 0,
    ):
        super().__init__(bits, preset)
        if fit_images < 2:
            raise ValueError(f"fit_images={fit_images} must be at least 2")
        self.fit_images, self.seed = fit_images, seed

    @property
    def splits(self) -> tuple[str, ...]:
        """Queries, database, and the images that the codes are fitted on."""
        return tuple(dict.fromkeys((*PRESETS[self.preset], "train")))

    def most_bits(self, subject: Subject) -> int:
        """The longest code that can be made: one bit for each dimension."""
        return subject.backbone.dim

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """View, code, what it is fitted on, and the rules of the metric."""
        shared = centre_view_protocol(subject, "class token of the last block, L2-normalised") | {"codes": self.rule}
        fitted = {"split": "train", "images": min(self.fit_images, len(subject.data.split("train"))), "seed": self.seed}
        shared |= {"fitted": fitted, "preset": self.preset, "bits": self.lengths(subject), "distance": "Hamming"}
        return shared | {"ties": "average", "ap": "all", "empty": "skip"} | self.classes(subject).protocol

    def check(self, subject: Subject) -> None:
        """Needs labels."""
        check_labels(subject, tuple(dict.fromkeys(PRESETS[self.preset])))
        subject.data.split("train")
        self.check_lengths(subject)

    def fit(self, x: torch.Tensor, lengths: Sequence[int]) -> dict[int, Binariser]:
        """A code of at least so many bits for each length, from features x (n, D)."""
        raise NotImplementedError

    def average_precisions(
        self, subject: Subject, queries: Frozen, database: Frozen, own: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """AP of every query (Q,) by name of the score."""
        train = subject.features("train").cls()
        chosen = np.random.default_rng(self.seed).permutation(len(train))[: self.fit_images]
        values: dict[str, np.ndarray] = {}
        for m, binarise in self.fit(train[np.sort(chosen)], self.lengths(subject)).items():
            codes, stored = (binarise(part.cls())[:, :m] for part in (queries, database))
            values |= ap_by_both_tie_rules(codes, stored, *self.labels(subject, queries, database), [m], own)
        return values


class HammingSign(FeatureCodes):
    """Codes of one bit for each of the first dimensions: whether the feature lies above its mean."""

    name = "hamming_sign"
    rule = "sign of each centred dimension, the first so many"

    def fit(self, x: torch.Tensor, lengths: Sequence[int]) -> dict[int, Binariser]:
        """The mean of every dimension; shorter codes are the first bits of it."""
        return dict.fromkeys(lengths, sign_codes(x))


class HammingRandom(FeatureCodes):
    """Codes by random projections of the centred features, of any length: locality-sensitive hashing."""

    name = "hamming_random"
    rule = "sign of Gaussian projections of the centred features"

    def most_bits(self, subject: Subject) -> int:
        """As many as asked for: there is no end to random directions."""
        return max(self.bits)

    def fit(self, x: torch.Tensor, lengths: Sequence[int]) -> dict[int, Binariser]:
        """One draw of directions; shorter codes are the first bits of it."""
        return dict.fromkeys(lengths, random_projection(x, max(lengths), seed=self.seed))


class HammingITQ(FeatureCodes):
    """Codes by iterative quantisation (Gong & Lazebnik 2011): principal directions, rotated towards their signs."""

    name = "hamming_itq"
    rule = "ITQ: principal directions of the centred features, as many as bits, rotated towards their signs"

    def __init__(
        self,
        bits: Sequence[int] = (256, 128, 64, 32),
        preset: str = "train-val",
        fit_images: int = 50_000,
        seed: int = 0,
        iterations: int = 50,
    ):
        super().__init__(bits, preset, fit_images, seed)
        if iterations < 1:
            raise ValueError(f"iterations={iterations} must be at least 1")
        self.iterations = iterations

    def most_bits(self, subject: Subject) -> int:
        """One bit for each principal direction that has variance: fewer than there are images."""
        images = min(self.fit_images, len(subject.data.split("train")))
        return max(1, min(subject.backbone.dim, images - 1))

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """With the alternations of the fit."""
        return super().protocol(subject) | {"iterations": self.iterations}

    def check(self, subject: Subject) -> None:
        """Needs labels, and features whose covariance fits into memory."""
        super().check(subject)
        if subject.backbone.dim > WIDEST:
            raise Unavailable(
                f"ITQ needs the covariance of {subject.backbone.dim} dimensions, too many above {WIDEST}",
                "use task=hamming_random",
            )

    def fit(self, x: torch.Tensor, lengths: Sequence[int]) -> dict[int, Binariser]:
        """Rotated principal directions, a rotation for each length."""
        return itq(x, lengths, iterations=self.iterations, seed=self.seed)
