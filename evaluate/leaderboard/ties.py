"""Is a score statistically tied with the best of its column?

Where both records kept outcomes of the same samples, and these average to the score, the paired differences decide;
else the two intervals do, taken as independent (which rather calls two scores tied than different, since they share
their samples).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from evaluate.leaderboard import seeds
from evaluate.leaderboard.recipes import spread
from evaluate.leaderboard.samples import Pairs, average_to, paired
from evaluate.metrics.statistics import paired_bootstrap, seeds_difference
from evaluate.records import Record, Score

METHOD = (
    "Marked (bold or *): the best of a column and what does not differ from it at the 5 % level (paired over the same "
    "samples where outcomes were kept, several seeds by a bootstrap of seeds and samples, else by the two 95 % "
    "intervals; not corrected for the number of comparisons)."
)
Z95 = NormalDist().inv_cdf(0.975)
CLEAR = 5.0  # beyond this many standard errors no test says otherwise, and the outcomes need not even be loaded
MANY = 200  # from here on the normal test and the bootstrap agree away from the threshold
RESAMPLES = 2000
Tables = tuple[np.ndarray, np.ndarray]  # outcomes (seeds, n) of either side


def tied(best: Sequence[Record], other: Sequence[Record], metric: str) -> bool:
    """True when `other` does not differ from `best` at the 5 % level; without any interval only equal values tie.

    Each side holds the record of one checkpoint, or those of several seeds of a recipe.
    """
    a, b = _score(best, metric), _score(other, metric)
    difference = abs(a.value - b.value)
    if difference == 0:
        return True
    errors = _error(a) + _error(b)  # at least the standard error of the difference, whatever the correlation
    if math.isfinite(errors) and difference > CLEAR * errors:
        return False
    kept = _kept(best, other) if all(record.main == metric for record in (*best, *other)) else None
    if kept is not None and average_to(kept[0].a, a) and average_to(kept[0].b, b):
        return _paired_tie(*kept)
    independent = math.hypot(_error(a), _error(b))
    return math.isfinite(independent) and difference <= Z95 * independent


def _score(records: Sequence[Record], metric: str) -> Score:
    """The score of one checkpoint, or the mean of several seeds with its two-level interval."""
    scores = [record.scores[metric] for record in records]
    if len(scores) == 1:
        return scores[0]
    mean = spread(scores)
    return replace(scores[0], value=mean.mean, low=mean.low, high=mean.high)


def _kept(a: Sequence[Record], b: Sequence[Record]) -> tuple[Pairs, Tables | None] | None:
    """Outcomes on the same samples, and those by seed where a side has several."""
    try:
        one, two = (each[0] if len(each) == 1 else seeds.merged("seeds", [[r] for r in each])[0] for each in (a, b))
        pairs = paired(one, two)
        return None if pairs is None else (pairs, seeds.tables(one, two, pairs))
    except (FileNotFoundError, ValueError):
        return None  # lost or damaged outcomes: `python -m evaluate.records verify` names them; the intervals remain


def _error(score: Score) -> float:
    """Standard error from the width of the 95 % interval; infinite where there is none."""
    return math.inf if score.low is None or score.high is None else (score.high - score.low) / (2 * Z95)


def _paired_tie(pairs: Pairs, by_seed: Tables | None) -> bool:
    """Normal paired test; the bootstrap for seeds, for few or grouped samples and near the threshold."""
    a, b, groups, _ = pairs
    if by_seed is not None:
        return not seeds_difference(*by_seed, samples=RESAMPLES, groups=groups).p_value <= 0.05
    if groups is None and len(a) >= MANY:
        error = float((a - b).std(ddof=1)) / math.sqrt(len(a))
        z = abs(float((a - b).mean())) / error if error else math.inf
        if not 1.5 < z < 2.5:
            return z < Z95
    return not paired_bootstrap(a, b, samples=RESAMPLES, seed=0, groups=groups).p_value <= 0.05
