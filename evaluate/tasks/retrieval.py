"""Image retrieval: mAP over full rankings by cosine of frozen features."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluate.metrics import retrieval_ap
from evaluate.tasks.base import (
    PRESETS,
    Result,
    Subject,
    Task,
    centre_view_protocol,
    check_labels,
    mean_score,
)


class Retrieval(Task):
    """Mean average precision of ranking the whole database for every query.

    preset: "train-val" ranks the training set for every test image; "val-loo" ranks the other test images, a query
    being left out of its own ranking by position. Relevant is the same class or, with several an image, a shared one.
    """

    name = "retrieval"

    def __init__(self, preset: str = "train-val"):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; use {', '.join(PRESETS)}")
        self.preset = preset

    @property
    def splits(self) -> tuple[str, ...]:
        """Queries and database."""
        return tuple(dict.fromkeys(PRESETS[self.preset]))

    def main(self, subject: Subject) -> str:
        """Mean average precision."""
        return "map"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Feature, view, preset and the rules of the metric."""
        shared = centre_view_protocol(subject, "class token of the last block, unit length")
        return shared | {"preset": self.preset, "ap": "all", "ties": "index", "empty": "skip"}

    def check(self, subject: Subject) -> None:
        """Needs labels of any kind."""
        check_labels(subject, self.splits)

    def run(self, subject: Subject) -> Result:
        """Rank the database for every query."""
        queries, database = (subject.features(split) for split in PRESETS[self.preset])
        own = np.arange(len(queries)) if self.preset == "val-loo" else None
        rows = (queries.cls().to(subject.device), database.cls().to(subject.device))
        ap = retrieval_ap(*rows, queries.labels, database.labels, self_index=own)
        skipped = {"queries without a relevant image": int(np.isnan(ap).sum()), "queries": queries.skipped}
        skipped |= {"database": database.skipped} if own is None else {}
        return Result({"map": mean_score(ap, "query")}, {"sample_id": queries.ids, "map": ap}, skipped)
