"""Records to test with: real files of a made-up world, written through `evaluate.records`."""

import numpy as np

from evaluate.records import Record, Score


def checkpoint(name: str = "bits-s0", **changes) -> dict:
    """A checkpoint whose digest follows from its name."""
    fields = {"name": name, "objective": "bits", "kind": "run", "weights_digest": f"digest-of-{name}", "label": ""}
    return fields | {"backbone": "vit_tiny", "images_seen": 1000, "epoch": 10, "seed": 0, "parent": ""} | changes


def record(name: str = "bits-s0", correct=None, **changes) -> Record:
    """A k-NN record; `correct` are its 0/1 outcomes, from which value and interval follow."""
    correct = np.asarray([1, 0, 1, 1] if correct is None else correct)
    mean, error = float(correct.mean()), 1.96 * float(correct.std()) / len(correct) ** 0.5
    fields = {
        "checkpoint": checkpoint(name),
        "task": "knn",
        "task_version": 1,
        "dataset": "cifar10",
        "protocol": {"k": 20, "features": {"token": "cls"}},
        "main": "top1",
        "higher_is_better": True,
        "scores": {"top1": Score(mean, mean - error, mean + error, len(correct))},
        "outcomes": {"correct": correct, "sample_id": np.arange(len(correct))},
        "provenance": {"dataset_fingerprint": "data-1", "commit": "abc123", "date": "2026-01-01T00:00:00+00:00"},
    }
    return Record(**fields | changes)
