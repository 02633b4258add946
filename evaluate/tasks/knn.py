"""Weighted k-NN classification on frozen features (the DINO protocol, Caron et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.metrics import knn_classify, wilson_interval
from evaluate.tasks.base import (
    Classes,
    Result,
    Score,
    Subject,
    Task,
    Unavailable,
    accuracy,
    centre_view_protocol,
    check_labels,
    unseen_note,
)


class KNN(Task):
    """Top-1 and top-5 accuracy of a weighted vote among the k most similar training images.

    ks: numbers of neighbours; those above the size of the training set are left out with a note. k: the headline one.
    temperature: of the weights exp(cosine / T).
    """

    name = "knn"

    def __init__(self, ks: Sequence[int] = (10, 20, 100, 200), k: int = 20, temperature: float = 0.07):
        if k not in ks:
            raise ValueError(f"k={k} is not among ks={list(ks)}")
        self.ks, self.k, self.temperature = sorted(ks), k, temperature

    def main(self, subject: Subject) -> str:
        """Top-1 at the headline k."""
        return f"top1_k{self.k}"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Feature, view, neighbours and temperature."""
        shared = centre_view_protocol(subject, "class token of the last block, unit length")
        shared |= {"ks": self.usable(subject), "temperature": self.temperature}
        return shared | Classes.of(subject, self.splits).protocol

    def usable(self, subject: Subject) -> list[int]:
        """The numbers of neighbours that the training set can give."""
        return [k for k in self.ks if k <= len(subject.data.split("train"))]

    def check(self, subject: Subject) -> None:
        """Needs one class per image and at least k training images."""
        check_labels(subject, ("train", "test"), single=True)
        n = len(subject.data.split("train"))
        if n < self.k:
            raise Unavailable(
                f"k={self.k} needs as many training images, {subject.data.name} has {n}", "set a smaller k"
            )

    def run(self, subject: Subject) -> Result:
        """Vote with every k."""
        train, test = subject.features("train"), subject.features("test")
        classes = Classes.of(subject, self.splits)
        known, truth = classes.labels("train", train.rows), classes.labels("test", test.rows)
        ks = self.usable(subject)
        found = knn_classify(
            train.cls().to(subject.device),
            known,
            test.cls().to(subject.device),
            truth,
            ks=ks,
            temperature=self.temperature,
            num_classes=len(classes.names),
        )
        scores: dict[str, Score] = {}
        outcomes = {"sample_id": test.ids}
        for k in ks:
            correct = found[k]["predictions"] == truth
            scores[f"top1_k{k}"], outcomes[f"top1_k{k}"] = accuracy(correct), correct
            scores |= {f"{name}_k{k}": share(found[k][name], len(test)) for name in ("top5", "top5_voted")}
        left_out = [k for k in self.ks if k not in ks]
        notes = [f"k = {left_out} exceed the {len(train)} training images and were left out"] if left_out else []
        notes += unseen_note(truth, known)
        return Result(scores, outcomes, {"train": train.skipped, "test": test.skipped}, notes)


def share(value: float, n: int) -> Score:
    """A share of n images with its interval."""
    _, low, high = wilson_interval(round(value * n), n)
    return Score(value, low, high, n)
