"""Is a score statistically tied with the best of its column?

Where both records kept outcomes of the same samples, and these average to the score, the paired differences decide;
else the two intervals do, taken as independent (which rather calls two scores tied than different, since they share
their samples).
"""

from __future__ import annotations

import math
from statistics import NormalDist

from evaluate.leaderboard.samples import Pairs, average_to, paired
from evaluate.metrics.statistics import paired_bootstrap
from evaluate.records import Record, Score

METHOD = (
    "Marked (bold or *): the best of a column and what does not differ from it at the 5 % level (paired over the same "
    "samples where outcomes were kept, else by the two 95 % intervals; not corrected for the number of comparisons)."
)
Z95 = NormalDist().inv_cdf(0.975)
CLEAR = 5.0  # beyond this many standard errors no test says otherwise, and the outcomes need not even be loaded
MANY = 200  # from here on the normal test and the bootstrap agree away from the threshold
RESAMPLES = 2000


def tied(best: Record, other: Record, metric: str) -> bool:
    """True when `other` does not differ from `best` at the 5 % level; without any interval only equal values tie."""
    a, b = best.scores[metric], other.scores[metric]
    difference = abs(a.value - b.value)
    if difference == 0:
        return True
    spread = _error(a) + _error(b)  # at least the standard error of the difference, whatever the correlation
    if math.isfinite(spread) and difference > CLEAR * spread:
        return False
    pairs = _kept(best, other) if metric == best.main == other.main else None
    if pairs is not None and average_to(pairs[0], a) and average_to(pairs[1], b):
        return _paired_tie(pairs)
    independent = math.hypot(_error(a), _error(b))
    return math.isfinite(independent) and difference <= Z95 * independent


def _kept(a: Record, b: Record) -> Pairs | None:
    try:
        return paired(a, b)
    except (FileNotFoundError, ValueError):
        return None  # lost or damaged outcomes: `python -m evaluate.records verify` names them; the intervals remain


def _error(score: Score) -> float:
    """Standard error from the width of the 95 % interval; infinite where there is none."""
    return math.inf if score.low is None or score.high is None else (score.high - score.low) / (2 * Z95)


def _paired_tie(pairs: Pairs) -> bool:
    """Normal paired test; the bootstrap for few or grouped samples and near the threshold."""
    a, b, groups, _ = pairs
    if groups is None and len(a) >= MANY:
        error = float((a - b).std(ddof=1)) / math.sqrt(len(a))
        z = abs(float((a - b).mean())) / error if error else math.inf
        if not 1.5 < z < 2.5:
            return z < Z95
    return not paired_bootstrap(a, b, samples=RESAMPLES, seed=0, groups=groups).p_value <= 0.05
