"""Distances of two clouds against closed forms, and the task that reports them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from frozen import folder_data, save_tiny_run, subject
from tiny import write_images

from evaluate.metrics.domain import frechet_distance, mmd
from evaluate.tasks.base import Unavailable
from evaluate.tasks.domain_gap import DomainGap

RANDOM = np.random.default_rng(0)


def cloud(mean: np.ndarray, covariance: np.ndarray, n: int = 60) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these."""
    rows = RANDOM.standard_normal((n, len(mean)))
    rows -= rows.mean(0)
    white = rows @ np.linalg.inv(scipy.linalg.sqrtm(np.cov(rows, rowvar=False)))
    return white @ scipy.linalg.sqrtm(covariance) + mean


def test_frechet_distance_of_normal_clouds_is_the_closed_form():
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    far = np.array([1.0, -2.0, 0.0])
    expected = 5.0 + np.square(np.sqrt(a) - np.sqrt(b)).sum()  # covariances that share their axes
    assert frechet_distance(cloud(far, np.diag(a)), cloud(np.zeros(3), np.diag(b))) == pytest.approx(expected)
    x, y = RANDOM.standard_normal((50, 4)), RANDOM.standard_normal((40, 4)) @ RANDOM.standard_normal((4, 4)) + 1
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two).real  # the formula as Heusel et al. print it
    apart = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(one + two - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(apart) == pytest.approx(frechet_distance(y, x))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x[:3], x[:3] + 2) == pytest.approx(16)  # fewer rows than dimensions: a pure shift


def test_mmd_is_its_definition_and_its_closed_form_for_normal_clouds():
    x, y = RANDOM.standard_normal((7, 2)), RANDOM.standard_normal((5, 2)) + 1

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return math.exp(-np.square(u - v).sum() / (2 * 1.5**2))

    within = [np.mean([k(u, v) for i, u in enumerate(s) for j, v in enumerate(s) if i != j]) for s in (x, y)]
    expected = within[0] + within[1] - 2 * np.mean([k(u, v) for u in x for v in y])
    assert mmd(x, y, 1.5) == pytest.approx(expected)
    d, s, h, shift = 3, 0.7, 1.2, 0.9
    a = s * RANDOM.standard_normal((3000, d))
    b = s * RANDOM.standard_normal((3000, d)) + shift / math.sqrt(d)
    same = (h**2 / (h**2 + 2 * s**2)) ** (d / 2)  # mean kernel of two independent draws
    closed = 2 * same * (1 - math.exp(-(shift**2) / (2 * (h**2 + 2 * s**2))))
    assert mmd(a, b, h) == pytest.approx(closed, rel=0.05)
    assert abs(mmd(a[:1500], a[1500:], h)) < 2e-3  # one distribution
    assert mmd(np.ones((3, 2)), np.ones((4, 2))) == 0
    assert mmd(np.zeros((3, 1)), np.ones((3, 1)), 1.0) == pytest.approx(2 - 2 * math.exp(-0.5))


def test_the_default_bandwidth_makes_the_distance_free_of_scale():
    x, y = RANDOM.standard_normal((40, 3)), RANDOM.standard_normal((40, 3)) + 1
    assert mmd(x, y) == pytest.approx(mmd(10 * x, 10 * y))
    assert mmd(x, y) > 0.05


@pytest.mark.parametrize("metric", [frechet_distance, mmd])
def test_clouds_that_cannot_be_compared_are_refused(metric: Any):
    with pytest.raises(ValueError, match="width 2 cannot be compared with those of width 3"):
        metric(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        metric(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="positive"):
        mmd(np.zeros((4, 2)), np.ones((4, 2)), -1)


def test_the_task_reports_gap_ranks_and_agreement(images: Path, tmp_path: Path):
    other = write_images(tmp_path / "other", train=9, val=4, side=30)
    run = save_tiny_run(tmp_path / "runs")
    here = subject(run, folder_data(images), tmp_path / "cache")
    task = DomainGap("other", images=20, agreement_images=10)
    with pytest.raises(Unavailable, match="not known what the backbone was trained on"):
        task.check(here)

    def nothing(name: str) -> Any:
        raise ValueError(f"unknown data {name!r}")

    here.open_data = nothing
    with pytest.raises(Unavailable, match="source 'other' cannot be opened"):
        task.check(here)
    here.open_data = lambda name: folder_data({"other": other, "itself": images}[name])
    found = task.run(here).scores
    assert found["frechet"].value > 0 and 0 < found["effective_rank"].value <= 16
    assert 0 <= found["view_agreement"].value <= 1 and 0.3 < found["bit_agreement"].value <= 1
    assert found == task.run(here).scores
    assert task.protocol(here)["source"]["fingerprint"] == folder_data(other).fingerprint(("test",))
    itself = DomainGap("itself", source_split="train", images=36, agreement_images=10).run(here).scores
    assert itself["frechet"].value == pytest.approx(0, abs=1e-7)
    assert found["frechet"].value > 1e-3
    here.source = "other"
    assert DomainGap(images=20, agreement_images=10).protocol(here) == task.protocol(here)
    here.head = None
    assert "bit_agreement" not in task.run(here).scores
