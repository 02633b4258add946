"""Two routines for the same work, timed in turn in one process, so that a busy machine slows both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

ROUNDS = 5


class Comparison(NamedTuple):
    """Two routines for the same work, and a check that raises AssertionError when their results differ."""

    name: str
    reference_name: str
    reference: Callable[[], Any]
    ours: Callable[[], Any]
    check: Callable[[Any, Any], None]
    rounds: int = ROUNDS


class Timing(NamedTuple):
    """Best seconds of both routines over the rounds, and reference / ours."""

    name: str
    reference_name: str
    reference_s: float
    ours_s: float
    ratio: float


def measure(comparison: Comparison) -> Timing:
    """Check agreement (which also compiles), then time both in turn; raises AssertionError when they disagree."""
    comparison.check(comparison.reference(), comparison.ours())
    times: dict[str, list[float]] = {"reference": [], "ours": []}
    for _ in range(comparison.rounds):
        for name, seconds in times.items():
            start = time.perf_counter()
            getattr(comparison, name)()
            seconds.append(time.perf_counter() - start)
    reference, ours = min(times["reference"]), min(times["ours"])
    return Timing(comparison.name, comparison.reference_name, reference, ours, reference / ours)
