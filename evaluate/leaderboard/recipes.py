"""A recipe: what several seeds of one training share, and how their scores become one number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evaluate.metrics.statistics import seed_mean_interval
from evaluate.records import Score


class Spread(NamedTuple):
    """Mean over seeds, their sample standard deviation and number, and the two-level 95 % interval of the mean."""

    mean: float
    deviation: float
    seeds: int
    low: float | None = None
    high: float | None = None


def recipe(checkpoint: Mapping) -> tuple:
    """What several seeds share: the name without its seed (or an explicit `recipe`) and all that describes training."""
    seed = checkpoint.get("seed")
    mark = rf"([-_. ](seed|s)?|seed)[-_=]?{re.escape(str(seed))}(?=/|@|$)"  # also of a kept epoch or a branch
    name = checkpoint.get("recipe") or re.sub(mark, "", checkpoint["name"])
    fields = ("kind", "objective", "backbone", "images_seen", "epoch", "label")
    return name, *(str(checkpoint.get(name)) for name in fields)


def spread(scores: Sequence[Score]) -> Spread:
    """Mean and deviation of the scores of several seeds, with an interval where each has one."""
    values, n = [score.value for score in scores], len(scores)
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, n - 1))
    halves = [(s.high - s.low) / 2 for s in scores if s.low is not None and s.high is not None]
    if n < 2 or len(halves) < n or not math.isfinite(mean):
        return Spread(mean, deviation, n)
    _, low, high = seed_mean_interval(values, halves)
    return Spread(mean, deviation, n, low, high)
