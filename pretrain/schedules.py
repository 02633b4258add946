"""Schedules: one value a step, computed before training starts."""

from __future__ import annotations

import numpy as np


def cosine_schedule(
    base: float, final: float, epochs: int, steps_per_epoch: int, warmup_epochs: float = 0
) -> np.ndarray:
    """Linear warm-up from 0 to `base`, then a half cosine towards `final`; (epochs * steps_per_epoch,) float64.

    The first step of a warm-up is exactly 0, `base` occurs twice in a row, `final` is approached and never reached.
    Raises ValueError when the warm-up is longer than the run. Source: DINO, arXiv 2104.14294, public code.
    """
    total = epochs * steps_per_epoch
    warmup = round(warmup_epochs * steps_per_epoch)
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup_epochs={warmup_epochs} does not fit a run of {epochs} epochs; give 0 to {epochs}")
    steps = np.arange(total - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / max(1, len(steps))))
    return np.concatenate([np.linspace(0, base, warmup), cosine])


def lars_schedule(base: float, epochs: int, steps_per_epoch: int, warmup_epochs: float = 10) -> np.ndarray:
    """Schedule of the LARS family: warm-up base*s/S_w, then a cosine from `base` to 0.001*base; float64, one a step.

    Source: Barlow Twins, arXiv 2103.03230, public code.
    """
    total, warmup = epochs * steps_per_epoch, round(warmup_epochs * steps_per_epoch)
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup_epochs={warmup_epochs} does not fit a run of {epochs} epochs; give 0 to {epochs}")
    step = np.arange(total)
    q = 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, total - warmup)))
    return np.where(step < warmup, base * step / max(1, warmup), base * q + 0.001 * base * (1 - q))


def linear_then_constant(start: float, end: float, ramp_epochs: int, epochs: int) -> np.ndarray:
    """Linear from `start` to `end` over `ramp_epochs` (both ends included), then constant; (epochs,) float64.

    Used for DINO's teacher temperature, which is indexed by epoch.
    """
    return np.concatenate([np.linspace(start, end, ramp_epochs), np.full(max(0, epochs - ramp_epochs), end)])[:epochs]
