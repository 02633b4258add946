"""Retrieval by binary messages: mAP over rankings by Hamming distance (BITS, arXiv 2602.09764, Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluate.features import Frozen
from evaluate.metrics import asymmetric_hamming_ap, hamming_prefix_ap
from evaluate.tasks.base import (
    PRESETS,
    Result,
    Subject,
    Task,
    Unavailable,
    centre_view_protocol,
    check_labels,
    mean_score,
)
from pretrain.messages import to_bits

ROWS_AT_ONCE = 65_536


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
        """Code lengths that the channel has, the longest first; its full width where it is shorter than all."""
        assert subject.head is not None
        empty = torch.zeros(1, subject.backbone.dim, device=subject.device)
        width = subject.head.to(subject.device)(empty).shape[1]
        return [b for b in self.bits if b <= width] or [width]

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """View, bits, distance and the rules of the metric."""
        shared = centre_view_protocol(subject, "bit = logit of the projection head > 0")
        shared |= {"preset": self.preset, "bits": self.lengths(subject), "distance": "Hamming", "ties": "average"}
        return shared | {"ap": "all", "empty": "skip"}

    def check(self, subject: Subject) -> None:
        """Needs a binary channel and labels."""
        if subject.head is None:
            raise Unavailable("the checkpoint has no binary channel", "evaluate a run of a BITS objective")
        check_labels(subject, self.splits)

    def run(self, subject: Subject) -> Result:
        """Rank by messages of every length."""
        queries, database = (subject.features(split) for split in PRESETS[self.preset])
        logits, other = logits_of(subject, queries), logits_of(subject, database)
        codes, stored = to_bits(logits).numpy(), to_bits(other).numpy()
        labels, own = (queries.labels, database.labels), np.arange(len(queries)) if self.preset == "val-loo" else None
        lengths = self.lengths(subject)
        values: dict[str, np.ndarray] = {}
        for suffix, ties in (("", "average"), ("_index", "index")):
            found = hamming_prefix_ap(codes, stored, *labels, prefixes=lengths, ties=ties, self_index=own)  # type: ignore[arg-type]
            values |= {f"map_{m}{suffix}": found[m] for m in lengths}
        for m in lengths:
            ap = asymmetric_hamming_ap(logits[:, :m], stored[:, :m], *labels, self_index=own)
            values[f"map_{m}_asymmetric"] = ap
        skipped = {"queries without a relevant image": int(np.isnan(values[f"map_{lengths[0]}"]).sum())}
        skipped |= {"queries": queries.skipped} | ({"database": database.skipped} if own is None else {})
        scores = {name: mean_score(ap, "query") for name, ap in values.items()}
        return Result(scores, {"sample_id": queries.ids, **values}, skipped)


@torch.no_grad()
def logits_of(subject: Subject, features: Frozen) -> torch.Tensor:
    """Logits of the binary channel from stored class tokens: (n, bits) float32 on the CPU."""
    assert subject.head is not None
    head = subject.head.to(subject.device)
    parts = [head(rows.to(subject.device)).float().cpu() for rows in features.cls().split(ROWS_AT_ONCE)]
    return torch.cat(parts)
