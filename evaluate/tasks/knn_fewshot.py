"""Few-shot k-NN: n training images a class, drawn several times (protocol of DINOv2, Oquab et al. 2023).

Intervals cover both what other test images and what other draws would have given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluate.metrics import knn_classify, seeds_interval
from evaluate.tasks.base import (
    Classes,
    Result,
    Score,
    Subject,
    Task,
    Unavailable,
    centre_view_protocol,
    check_labels,
    mean_score,
    unseen_note,
)


class KNNFewShot(Task):
    """Top-1 accuracy of a weighted vote among the k most similar of n images a class, averaged over `tries` draws.

    per_class: numbers n; the headline is the largest, with k = n. ks: numbers of neighbours; for every n those up to n,
    and n itself. Draws of one try are nested: its 2 images of a class hold its 1. A class with fewer than n images
    gives all it has. temperature: of the weights exp(cosine / T). Raises ValueError for an n, k or `tries` below 1.
    """

    name = "knn_fewshot"

    def __init__(
        self,
        per_class: Sequence[int] = (1, 2, 5, 10),
        ks: Sequence[int] = (1, 5),
        tries: int = 5,
        temperature: float = 0.07,
    ):
        if not per_class or min(*per_class, *ks, tries, 1) < 1:
            raise ValueError(f"per_class={list(per_class)}, ks={list(ks)}, tries={tries} must be at least 1 each")
        self.per_class, self.ks, self.tries, self.temperature = sorted(per_class), sorted(ks), tries, temperature

    def main(self, subject: Subject) -> str:
        """Top-1 with the most images a class and as many neighbours."""
        return f"top1_n{self.per_class[-1]}_k{self.per_class[-1]}"

    def neighbours(self, n: int) -> list[int]:
        """Numbers of neighbours for n images a class."""
        return sorted({k for k in self.ks if k <= n} | {n})

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Feature, view, images a class, neighbours, draws and temperature."""
        shared = centre_view_protocol(subject, "class token of the last block, unit length")
        shared |= {"per_class": self.per_class, "ks": [self.neighbours(n) for n in self.per_class]}
        shared |= {"tries": self.tries, "seed": subject.seed, "temperature": self.temperature}
        return shared | Classes.of(subject, self.splits).protocol

    def check(self, subject: Subject) -> None:
        """Needs one class per image, and as many training images as the headline has neighbours."""
        check_labels(subject, ("train", "test"), single=True)
        labels, n = subject.data.split("train").labels, self.per_class[-1]
        shown = int(np.minimum(np.bincount(labels), n).sum())  # type: ignore[arg-type]  # checked above
        if shown < n:
            raise Unavailable(
                f"{n} neighbours of {n} images a class are asked for, {subject.data.name} has {shown}",
                "set a smaller per_class",
            )

    def run(self, subject: Subject) -> Result:
        """Vote with every n and k in every draw."""
        train, test = subject.features("train"), subject.features("test")
        rows, queries = train.cls().to(subject.device), test.cls().to(subject.device)
        classes = Classes.of(subject, self.splits)
        known, truth = classes.labels("train", train.rows), classes.labels("test", test.rows)
        correct: dict[str, list[np.ndarray]] = {}
        for attempt in range(self.tries):
            places = draw(known, np.random.default_rng((subject.seed, attempt)))
            for n in self.per_class:
                shown = np.flatnonzero(places < n)
                ks = [k for k in self.neighbours(n) if k <= len(shown)]
                found = knn_classify(
                    rows[shown],
                    known[shown],
                    queries,
                    truth,
                    ks=ks,
                    temperature=self.temperature,
                    num_classes=len(classes.names),
                )
                for k in ks:
                    correct.setdefault(f"top1_n{n}_k{k}", []).append(found[k]["predictions"] == truth)
        tables = {name: np.array(tries, np.float64) for name, tries in correct.items()}  # (tries, n)
        outcomes = {"sample_id": test.ids} | {name: table.mean(0) for name, table in tables.items()}
        outcomes |= {f"{name}_by_try": table.mean(1) for name, table in tables.items()}
        scores = {name: few_shot_score(table) for name, table in tables.items()}
        covered = "draws and test images" if self.tries > 1 else "test images alone, of one draw"
        notes = [f"averaged over {self.tries} draws; intervals cover {covered}"]
        sizes, most = np.bincount(known), self.per_class[-1]
        if short := int(((sizes > 0) & (sizes < most)).sum()):
            notes.append(f"{short} classes have fewer than {most} training images and gave all they have")
        notes += unseen_note(truth, known)
        return Result(scores, outcomes, {"train": train.skipped, "test": test.skipped}, notes)


def draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place of each image (n,) in a random order of the images of its class, from 0."""
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    places = np.empty(len(labels), np.int64)
    places[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def few_shot_score(correct: np.ndarray) -> Score:
    """Mean of outcomes (tries, n) with an interval over draws and images; over images alone for a single draw."""
    if len(correct) == 1:
        return mean_score(correct[0], "image")
    mean, low, high = seeds_interval(correct)
    known = math.isfinite(low)
    return Score(mean, max(low, 0.0) if known else None, min(high, 1.0) if known else None, correct.shape[1], "image")
