"""Trainings of a second or two and what tests ask of them; apart from `tiny`, because it imports all of training."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import compose, overrides
from torch import Tensor

from pretrain import train as loop

NO_RESET = ("head_reset.every_epochs=0",)
# float64: what is left is the order of sums
EQUAL = ("trainer.precision=64-true", "backbone.drop_path=0.3", "trainer.batch_size=18", *NO_RESET)
FILES = ("backbone.safetensors", "head.safetensors")


def run_tiny(images: Path, objective: str, runs: Path, *more: str) -> Path:
    """Train for a second or two; returns the run's folder."""
    return loop.train(compose(*overrides(images, objective, runs, *more)))


def weights(run: Path) -> list[bytes]:
    """The files that evaluation reads."""
    return [(run / file).read_bytes() for file in FILES]


def logged(run: Path) -> list[dict[str, str]]:
    """Rows of log.csv without the clock."""
    with open(run / "log.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next training receive SIGTERM in this step."""
    steps, original = [0], loop.train_step

    def stopping(*args: Any) -> dict[str, Tensor]:
        steps[0] += 1
        if steps[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(loop, "train_step", stopping)


def assert_equal_up_to_sums(a: Path, b: Path) -> None:
    """Same weights and losses but for the order in which numbers were added."""
    for file in FILES:
        theirs = load_file(b / file)
        for name, value in load_file(a / file).items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)
    losses = [[float(row["loss"]) for row in logged(run) if row["loss"]] for run in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
