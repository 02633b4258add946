"""What a task is, what it is given, and what it returns.

A task declares its name, version, main metric and splits, says its protocol, and scores a subject. A new one is one
file with a subclass of `Task` and one YAML below configs/task. Its `version` goes up when the same features would give
another number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from evaluate.features import Frozen, Store
from evaluate.metrics import bootstrap_interval, wilson_interval
from evaluate.metrics.arrays import check_finite
from evaluate.records import Score
from pretrain.datasets import ImageData
from pretrain.datasets.classes import in_one_order

#: splits of (queries, database); in val-loo a query is left out of its own ranking by position
PRESETS = {"train-val": ("test", "train"), "val-loo": ("test", "test"), "val-test": ("test", "val")}
ROWS_AT_ONCE = 65_536  # through a head


class Unavailable(ValueError):
    """A task that cannot run here, through no fault of the checkpoint: why not, and what would help."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


@dataclass
class Data:
    """A dataset by split; splits are opened when first asked for."""

    name: str
    readers: Mapping[str, Callable[[], Any]]
    smoke: bool = False
    opened: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> ImageData:
        """A split; raises Unavailable when the dataset defines none of this name or its files are not there."""
        if name not in self.readers:
            raise Unavailable(f"{self.name} has no {name} split", f"add splits.{name} to configs/data/{self.name}.yaml")
        if name not in self.opened:
            try:
                self.opened[name] = self.readers[name]()
            except FileNotFoundError as error:
                raise Unavailable(str(error), "put the data there, or give data_root=<folder>") from error
        return self.opened[name]

    def fingerprint(self, splits: tuple[str, ...]) -> str:
        """Digest of the images and labels of some splits."""
        return "+".join(f"{name}:{self.split(name).fingerprint}" for name in splits)


@dataclass
class Subject:
    """What a task scores: a frozen backbone, the head of its binary channel if it has one, and a dataset.

    segments: the head of an objective of softly discretised variables (`evaluate.importer.Segments`), if it has one.
    source: name of the data that the backbone was trained on, for an adapted run before it was adapted ("": unknown).
    open_data: name -> another dataset, for tasks that set two side by side.
    """

    backbone: Any
    head: nn.Module | None
    data: Data
    store: Store
    seed: int = 0
    segments: Any = None
    source: str = ""
    open_data: Callable[[str], Data] | None = None

    @property
    def device(self) -> torch.device:
        """Where heavy work is done."""
        return self.store.device

    def features(self, split: str) -> Frozen:
        """Stored features of a split."""
        return self.store.get(self.backbone, self.data.split(split))


@dataclass
class Result:
    """Scores, per-sample outcomes ("sample_id" names the samples), what was left out, and what a reader must know.

    `files`: pictures and data for a person to look at, content by file name.
    """

    scores: dict[str, Score]
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


class Task:
    """A benchmark task; subclasses store keyword settings and implement `main`, `protocol` and `run`."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    higher_is_better: ClassVar[bool] = True

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits whose content decides the number."""
        return "train", "test"

    def reads(self, subject: Subject) -> tuple[str, ...]:
        """Splits whose content decides the number on this subject's dataset."""
        return self.splits

    @property
    def stored(self) -> tuple[str, ...]:
        """Splits whose stored features it reads, for `prepare`."""
        return self.splits

    def prepare(self, subject: Subject) -> None:
        """Compute this process's share (`store.share`) of what `run` will find stored; only where there are several."""
        for split in self.stored:
            subject.store.prepare(subject.backbone, subject.data.split(split))

    def main(self, subject: Subject) -> str:
        """Key of the headline score."""
        raise NotImplementedError

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Every choice that moves the number."""
        raise NotImplementedError

    def check(self, subject: Subject) -> None:
        """Raise Unavailable when the task cannot be run on this subject."""

    def run(self, subject: Subject) -> Result:
        """Score the subject."""
        raise NotImplementedError


def centre_view_protocol(subject: Subject, features: str) -> dict[str, Any]:
    """The part of a protocol that every task on stored features shares."""
    backbone = subject.backbone
    view = {"resize": backbone.resize, "crop": backbone.image_size, "interpolation": "bicubic"}
    kept = {} if subject.store.stored == "float32" else {"stored": subject.store.stored}
    return {"features": features, "view": view, "precision": subject.store.precision, **kept}


@dataclass(frozen=True)
class Classes:
    """The classes of several splits in one order, so that equal indices mean equal classes.

    names: those of the first split first, then what others add; places: split -> places of its own classes among them.
    """

    data: Data
    names: list[str]
    places: dict[str, np.ndarray]

    @classmethod
    def of(cls, subject: Subject, splits: Sequence[str]) -> Classes:
        """The classes of labelled splits, the one that is learnt from or ranked first."""
        names, places = in_one_order([subject.data.split(split).classes for split in splits])
        return cls(subject.data, names, dict(zip(splits, places, strict=True)))

    @property
    def moved(self) -> bool:
        """Whether a split's own indices mean other classes than here."""
        return any(not np.array_equal(places, np.arange(len(places))) for places in self.places.values())

    @property
    def protocol(self) -> dict[str, Any]:
        """What a protocol says: nothing where all splits have the same order."""
        return {"classes": f"of {' and '.join(self.places)}, matched by name"} if self.moved else {}

    def labels(self, split: str, rows: Any = ...) -> np.ndarray:
        """Labels of (some rows of) a split: (n,) indices of `names`, or class sets (n, C) with a column for each."""
        own = self.data.split(split).labels
        assert own is not None
        if not self.moved:
            return own[rows]
        if own.ndim == 1:
            return self.places[split][own[rows]]
        sets = np.zeros((len(own[rows]), len(self.names)), own.dtype)
        sets[:, self.places[split]] = own[rows]
        return sets


def unseen_note(labels: np.ndarray, training: np.ndarray) -> list[str]:
    """What to say of classes of test labels (m,) that training labels (n,) lack."""
    unseen = np.setdiff1d(labels, training)
    return [f"{len(unseen)} classes of the test images do not occur in training: always wrong"] * bool(len(unseen))


def check_labels(subject: Subject, splits: tuple[str, ...], *, single: bool = False) -> None:
    """Raise Unavailable when a split has no labels, or with `single` when its images have sets of classes."""
    for split in splits:
        labels = subject.data.split(split).labels
        if labels is None:
            raise Unavailable(f"the {split} split of {subject.data.name} has no labels", "use a labelled dataset")
        if single and labels.ndim == 2:
            raise Unavailable(
                f"images of {subject.data.name} have several classes each", "use task=retrieval, which ranks class sets"
            )


def accuracy(correct: np.ndarray, unit: str = "image") -> Score:
    """Share of correct samples with Wilson's interval; correct (n,) bool."""
    value, low, high = wilson_interval(int(correct.sum()), len(correct))
    return Score(value, low, high, len(correct), unit)


def mean_score(values: np.ndarray, unit: str) -> Score:
    """Mean of per-sample values (n,), NaN left out, with a bootstrap interval; NaN where all are."""
    used = int(np.isfinite(values).sum())
    if not used:
        return Score(math.nan, None, None, 0, unit)
    mean, low, high = bootstrap_interval(values)
    known = math.isfinite(low)
    return Score(mean, low if known else None, high if known else None, used, unit)


@torch.no_grad()
def binary_logits(subject: Subject, features: Frozen) -> torch.Tensor:
    """Logits of the binary channel from stored class tokens: (n, bits) float32 on the CPU.

    Raises ValueError with the first row that holds NaN or infinity, which would else pass for a 0 or a 1.
    """
    assert subject.head is not None
    head = subject.head.to(subject.device)
    parts = [head(rows.to(subject.device)).float().cpu() for rows in features.cls().split(ROWS_AT_ONCE)]
    logits = torch.cat(parts)
    check_finite(logits.numpy(), "logits")
    return logits
