"""Image retrieval: mAP over rankings by cosine of frozen features, full or cut at k."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from evaluate.metrics import retrieval_ap
from evaluate.tasks.base import (
    PRESETS,
    Classes,
    Result,
    Subject,
    Task,
    Unavailable,
    centre_view_protocol,
    check_labels,
    mean_score,
)

#: what the sum of a cut ranking is divided by: relevant images found within k (hashing papers), or min(relevant, k)
DENOMINATORS: dict[str, Literal["retrieved", "min"]] = {"found": "retrieved", "min": "min"}
EMPTY = ("skip", "zero")


class Retrieval(Task):
    """Mean average precision of ranking the whole database for every query.

    preset: "train-val" ranks the training set for every test image; "val-loo" ranks the other test images, a query
    being left out of its own ranking by position; "val-test" ranks the validation images of a dataset that has such
    beside its test images. Splits given as lists of files are a dataset of their own
    (configs/data/list.yaml). Relevant is the same class or, with several an image, a shared one; an image without any
    class is no query. `at` cuts rankings behind so many images (mAP@k), with `denominator` "found" or "min"; `empty`
    leaves queries without a relevant image out ("skip") or counts them as 0 ("zero").
    """

    name = "retrieval"

    def __init__(
        self, preset: str = "train-val", at: int | None = None, denominator: str = "found", empty: str = "skip"
    ):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; use {', '.join(PRESETS)}")
        if denominator not in DENOMINATORS:
            raise ValueError(f"unknown denominator {denominator!r}; use {', '.join(DENOMINATORS)}")
        if empty not in EMPTY:
            raise ValueError(f"empty={empty!r} is unknown; use {', '.join(EMPTY)}")
        if at is not None and at < 1:
            raise ValueError(f"at={at} must be at least 1, or null for full rankings")
        self.preset, self.at, self.denominator, self.empty = preset, at, denominator, empty

    @property
    def splits(self) -> tuple[str, ...]:
        """Queries and database."""
        return tuple(dict.fromkeys(PRESETS[self.preset]))

    def main(self, subject: Subject) -> str:
        """Mean average precision, with the length of the ranking where it is cut."""
        return "map" if self.at is None else f"map_at_{self.at}"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Feature, view, preset and the rules of the metric."""
        shared = centre_view_protocol(subject, "class token of the last block, unit length")
        shared |= {"preset": self.preset, "ap": "all", "ties": "index", "empty": self.empty}
        shared |= Classes.of(subject, self.splits).protocol
        return shared if self.at is None else shared | {"ap": f"first {self.at}", "denominator": self.denominator}

    def check(self, subject: Subject) -> None:
        """Needs labels of any kind, and a database of `at` images."""
        check_labels(subject, self.splits)
        size = len(subject.data.split(PRESETS[self.preset][1]))
        if self.at is not None and self.at > size:
            raise Unavailable(f"at={self.at} exceeds the {size} images of the database", "set a smaller one, or null")

    def run(self, subject: Subject) -> Result:
        """Rank the database for every query."""
        queries, database = (subject.features(split) for split in PRESETS[self.preset])
        own = np.arange(len(queries)) if self.preset == "val-loo" else None
        rows = (queries.cls().to(subject.device), database.cls().to(subject.device))
        classes, (asked, ranked) = Classes.of(subject, self.splits), PRESETS[self.preset]
        labels = classes.labels(asked, queries.rows), classes.labels(ranked, database.rows)
        ap = retrieval_ap(*rows, *labels, self_index=own, k=self.at, denominator=DENOMINATORS[self.denominator])
        lonely = ~has_relevant(*labels, within=own is not None)
        ap[lonely] = np.nan if self.empty == "skip" else 0.0
        if labels[0].ndim == 2:
            ap[~labels[0].any(1)] = np.nan  # nothing could ever be relevant: no query under either rule
        skipped = {"queries without a relevant image": int(np.isnan(ap).sum()), "queries": queries.skipped}
        skipped |= {"database": database.skipped} if own is None else {}
        zeros = int(lonely.sum() - np.isnan(ap).sum())
        notes = [f"{zeros} queries without a relevant image count as 0"] if zeros else []
        name = self.main(subject)
        return Result({name: mean_score(ap, "query")}, {"sample_id": queries.ids, name: ap}, skipped, notes)


def has_relevant(queries: np.ndarray, database: np.ndarray, *, within: bool) -> np.ndarray:
    """Whether each query (Q,) has a relevant image in the database, beside itself where queries lie `within` it.

    Labels are class indices (n,) or class sets (n, C).
    """
    if queries.ndim == 1:
        counts = np.bincount(database, minlength=int(queries.max()) + 1)
        return counts[queries] - within > 0
    others = database.sum(0) - within * queries  # (Q, C) or (C,): of each class beside the query
    return ((queries > 0) & (others > 0)).any(1)
