"""Landmark retrieval as in revisited Oxford and Paris (Radenovic et al. 2018): trapezoid AP and mP@k at three levels.

Images ignored at a level leave the ranking before ranks are counted. The trapezoid AP is not the AP of `ranking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from evaluate.metrics.arrays import as_numpy, check_finite, check_matrix
from evaluate.metrics.ranking import exact_float

Level = Literal["easy", "medium", "hard"]
NONE, EASY, HARD, JUNK = 0, 1, 2, 3
POSITIVE = {"easy": (EASY,), "medium": (EASY, HARD), "hard": (HARD,)}
IGNORED = {"easy": (JUNK, HARD), "medium": (JUNK,), "hard": (JUNK, EASY)}


def landmark_ap(scores: Any, relevance: Any, level: Level) -> np.ndarray:
    """Per-query trapezoid AP (Q,) float64 of rankings by descending score, ties by index; NaN without a positive.

    Scores are (Q, N), relevance (Q, N) holds 0 none, 1 easy, 2 hard, 3 junk. The j-th positive at 0-based rank r adds
    (j / r + (j + 1) / (r + 1)) / (2 positives), with j / r = 1 at r = 0. Raises ValueError for NaN or infinite scores,
    other shapes or relevance values, and an unknown level.
    """
    return np.array([trapezoid_ap(ranks) for ranks in positive_ranks(scores, relevance, level)])


def mp_at_k(scores: Any, relevance: Any, level: Level, ks: Sequence[int] = (1, 5, 10)) -> np.ndarray:
    """Per-query precision (Q, len(ks)) within min(k, rank of the last positive); NaN without a positive.

    Arguments and errors as in `landmark_ap`; also ValueError for k < 1.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"ks={list(ks)}: every k must be at least 1")
    return np.array([precision_at(ranks, ks) for ranks in positive_ranks(scores, relevance, level)])


def trapezoid_ap(ranks: np.ndarray) -> float:
    """Trapezoid AP from the ascending 0-based ranks of the positives."""
    if not len(ranks):
        return float("nan")
    j = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, j / np.maximum(ranks, 1))
    return float((before + (j + 1) / (ranks + 1)).sum() / (2 * len(ranks)))


def precision_at(ranks: np.ndarray, ks: Sequence[int]) -> list[float]:
    """Share of positives within min(k, 1-based rank of the last positive), per k."""
    if not len(ranks):
        return [float("nan")] * len(ks)
    cuts = [min(k, int(ranks[-1]) + 1) for k in ks]
    return [float((ranks < cut).sum() / cut) for cut in cuts]


def positive_ranks(scores: Any, relevance: Any, level: Level) -> list[np.ndarray]:
    """Ascending 0-based ranks of each query's positives, among the images that the level does not ignore."""
    if level not in POSITIVE:
        raise ValueError(f"level={level!r} is unknown; use one of {', '.join(POSITIVE)}")
    values, kinds = as_numpy(scores), as_numpy(relevance)
    check_matrix(values, "scores")
    check_finite(values, "scores")
    if kinds.shape != values.shape:
        raise ValueError(f"relevance has shape {kinds.shape}, scores {values.shape}; they must agree")
    if not np.isin(kinds, (NONE, EASY, HARD, JUNK)).all():
        raise ValueError("relevance may hold 0 (none), 1 (easy), 2 (hard) and 3 (junk) only")
    out = []
    for row, kind in zip(exact_float(values), kinds, strict=True):
        ranked = kind[np.argsort(-row, kind="stable")]
        ranked = ranked[~np.isin(ranked, IGNORED[level])]
        out.append(np.flatnonzero(np.isin(ranked, POSITIVE[level])))
    return out
