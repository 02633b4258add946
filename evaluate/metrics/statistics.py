"""How sure a number is: intervals and paired tests over independent units (images, queries, sequences).

numpy and scipy only, so that a leaderboard is built without torch. Every result is a function of its arguments and the
seed. NaN marks a unit without a value (a query with nothing relevant); it is dropped, and the caller counts it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from evaluate.metrics.arrays import as_numpy

DRAWS_AT_ONCE = 2_000_000  # indices held at a time: 16 MB
FEW_VALUES = 64  # up to here the counts of each value are drawn at once, whatever the number of units
MANY_UNITS = 4_096  # from here on units are drawn by strata of neighbouring values
STRATA = 128


class Interval(NamedTuple):
    """Mean of the units and the two ends of its confidence interval, in the units of the values."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """mean(a) - mean(b), its interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: Any, *, samples: int = 10_000, confidence: float = 0.95, seed: int = 0, groups: Any = None
) -> Interval:
    """Bootstrap interval of the mean of `values` (n,); `groups` (n,) names the independent unit of each value.

    Percentile interval with the levels widened to Student's t with (units - 1) degrees of freedom (the expanded
    percentile of Hesterberg 2015), because the plain one is too narrow for few units. By simulation the 95 % interval
    covers 93.9 to 96.4 % of the time (10, 30 and 100 units; normal, skewed and 0/1 values).
    One unit has no spread to learn from: both ends are NaN. All values equal: the interval has no width; for
    accuracies near 0 or 1 use `wilson_interval`. Raises ValueError for infinite values and impossible settings.
    """
    check_settings(samples, confidence)
    kept, units = clean(values, groups)
    if not len(kept):
        warnings.warn("no value to average: every unit is NaN; mean and interval are NaN", stacklevel=2)
        return Interval(math.nan, math.nan, math.nan)
    mean = float(kept.mean())
    sums, counts = unit_totals(kept - mean, units)
    if len(sums) == 1:
        return Interval(mean, math.nan, math.nan)
    low, high = expanded_percentiles(resampled_means(sums, counts, samples, seed), len(sums), confidence)
    return Interval(mean, mean + low, mean + high)


def paired_bootstrap(
    a: Any, b: Any, *, samples: int = 10_000, seed: int = 0, confidence: float = 0.95, groups: Any = None
) -> PairedDifference:
    """Bootstrap of mean(a) - mean(b) over paired values (n,), resampling whole pairs or whole `groups`.

    The interval is that of `bootstrap_interval` on the differences. The p-value is the share, with add-one rule, of
    resampled differences that lie at least as far from the observed one as that lies from 0, after the small-sample
    factor sqrt(n / (n - 1)). A pair with a NaN is dropped. Raises ValueError for unequal lengths or infinite values.
    """
    check_settings(samples, confidence)
    left, right = paired(a, b)
    kept, units = clean(left - right, groups)
    if not len(kept):
        warnings.warn("no pair to compare: every pair holds NaN; all results are NaN", stacklevel=2)
        return PairedDifference(math.nan, math.nan, math.nan, math.nan)
    difference = float(kept.mean())
    sums, counts = unit_totals(kept - difference, units)
    n = len(sums)
    if n == 1:
        return PairedDifference(difference, math.nan, math.nan, math.nan)
    deviations = resampled_means(sums, counts, samples, seed)
    low, high = expanded_percentiles(deviations, n, confidence)
    # Rounding must not decide whether "as far" holds, so a distance counts from a hair below.
    reached = abs(difference) - 1e-12 * float(np.abs(kept).max())
    far = int((np.abs(deviations) * math.sqrt(n / (n - 1)) >= reached).sum())
    return PairedDifference(difference, difference + low, difference + high, (1 + far) / (1 + samples))


def permutation_test(a: Any, b: Any, *, samples: int = 10_000, seed: int = 0, groups: Any = None) -> float:
    """Two-sided p-value of mean(a) = mean(b) for paired values, by flipping the signs of the differences.

    `groups` (n,) names the independent unit of each pair: its differences are flipped together. All 2^n sign patterns
    are used when there are no more than `samples` of them (the test is then exact), else random ones with the add-one
    rule. Pairs with NaN are dropped; ValueError for unequal lengths, or when no pair is left.
    """
    check_settings(samples, 0.5)
    left, right = paired(a, b)
    d, _ = unit_totals(*clean(left - right, groups))
    d = d[d != 0]  # flipping a zero changes nothing
    if not len(left):
        raise ValueError("a permutation test needs at least one pair")
    if not len(d):
        return 1.0
    threshold = abs(d.sum()) * (1 - 1e-12)
    if 2 ** min(len(d), 60) <= samples:
        patterns = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1) * 2 - 1
        return float(np.mean(np.abs(patterns @ d) >= threshold))
    rng, extreme = np.random.default_rng(seed), 0
    for rows in chunks(samples, len(d)):
        signs = np.unpackbits(rng.integers(0, 256, (rows, -(-len(d) // 8)), dtype=np.uint8), axis=1, count=len(d))
        extreme += int((np.abs(2.0 * (signs @ d) - d.sum()) >= threshold).sum())
    return (1 + extreme) / (1 + samples)


def seeds_interval(
    values: Any, *, samples: int = 10_000, confidence: float = 0.95, seed: int = 0, groups: Any = None
) -> Interval:
    """Two-level interval of the mean over trainings and samples; values (seeds, n), the same samples for every seed.

    Level one is the bootstrap over samples of the mean over seeds. Level two, what other seeds would have given, is
    drawn from Student's t with (seeds - 1) degrees of freedom around the spread of the seeds' means: two to five seeds
    resampled with replacement are far too narrow. The interaction of seed and sample enters both levels, so the
    interval errs to the wide side: by simulation the 95 % one covers 94.9 to 98.6 % (2, 3 and 5 seeds). A sample with a
    NaN in any seed is dropped. ValueError for fewer than two seeds.
    """
    check_settings(samples, confidence)
    table = seed_table(values)
    if len(table) < 2:
        raise ValueError("one seed tells nothing of others: give two or more, or use bootstrap_interval")
    kept, units = clean(table.mean(axis=0), groups)
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan)
    mean = float(kept.mean())
    sums, counts = unit_totals(kept - mean, units)
    if len(sums) == 1:
        return Interval(mean, math.nan, math.nan)
    deviations = resampled_means(sums, counts, samples, seed) + seed_deviations([table], samples, seed)
    low, high = expanded_percentiles(deviations, len(sums), confidence)
    return Interval(mean, mean + low, mean + high)


def seeds_difference(
    a: Any, b: Any, *, samples: int = 10_000, seed: int = 0, confidence: float = 0.95, groups: Any = None
) -> PairedDifference:
    """`paired_bootstrap` of two recipes: a (seeds, n) and b (other seeds, n) on the same samples, in two levels.

    As `seeds_interval`, with a second level for each side that has two seeds or more; a side with one seed is taken as
    it is, so the result speaks of that one training only. Equal recipes differ at the 5 % level in 2.4 to 3.7 % of
    simulations (2, 3 and 5 seeds a side). Raises ValueError for unequal numbers of samples.
    """
    check_settings(samples, confidence)
    left, right = seed_table(a), seed_table(b)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"{left.shape[1]} samples cannot be paired with {right.shape[1]}")
    kept, units = clean(left.mean(axis=0) - right.mean(axis=0), groups)
    if not len(kept):
        return PairedDifference(math.nan, math.nan, math.nan, math.nan)
    difference = float(kept.mean())
    sums, counts = unit_totals(kept - difference, units)
    n = len(sums)
    if n == 1:
        return PairedDifference(difference, math.nan, math.nan, math.nan)
    drawn = math.sqrt(n / (n - 1)) * resampled_means(sums, counts, samples, seed)
    between = seed_deviations([left, right], samples, seed)
    low, high = expanded_percentiles(drawn * math.sqrt((n - 1) / n) + between, n, confidence)
    far = int((np.abs(drawn + between) >= abs(difference) - 1e-12 * float(np.abs(kept).max())).sum())
    return PairedDifference(difference, difference + low, difference + high, (1 + far) / (1 + samples))


def seed_table(values: Any) -> np.ndarray:
    """Values (seeds, n) as float64, NaN in every seed where one has it; ValueError for another shape or infinity."""
    table = as_numpy(values).astype(np.float64)
    if table.ndim != 2 or not table.size or np.isinf(table).any():
        raise ValueError(f"values must be a finite table (seeds, samples), got shape {table.shape}")
    return np.where(np.isnan(table).any(axis=0), np.nan, table)


def seed_deviations(tables: Sequence[np.ndarray], samples: int, seed: int) -> np.ndarray:
    """Draws (samples,) of how far the means over other seeds, or their difference, may lie from those of `tables`.

    Student's t around the joint spread of tables (seeds, n), with the degrees of freedom of Welch 1947 for two; a table
    of one seed adds nothing.
    """
    spreads = [(float(np.nanmean(t, axis=1).var(ddof=1)) / len(t), len(t) - 1) for t in tables if len(t) > 1]
    total = sum(variance for variance, _ in spreads)
    if total <= 0:
        return np.zeros(samples)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in spreads)
    return np.random.default_rng([seed, len(spreads)]).standard_t(freedom, samples) * math.sqrt(total)


def seed_mean_interval(values: Any, halves: Any, *, confidence: float = 0.95) -> Interval:
    """Two-level interval of a mean over seeds from scores alone: values (seeds,) and half widths of their intervals.

    For where no outcomes are at hand. Samples are shared by the seeds, so their part does not shrink with the number of
    seeds (this errs to the wide side); the part of the seeds is Student's t interval. Both add in quadrature.
    """
    scores, widths = as_numpy(values).astype(np.float64), as_numpy(halves).astype(np.float64)
    if scores.ndim != 1 or len(scores) < 2 or scores.shape != widths.shape:
        raise ValueError(f"two or more scores with as many half widths are needed, got {scores.shape}, {widths.shape}")
    count = len(scores)
    reach = -float(special.stdtrit(count - 1, (1 - confidence) / 2)) * float(scores.std(ddof=1)) / math.sqrt(count)
    mean, half = float(scores.mean()), math.hypot(reach, float(widths.mean()))
    return Interval(mean, mean - half, mean + half)


def mcnemar(a: Any, b: Any) -> float:
    """Exact two-sided McNemar p-value for paired outcomes (n,) of 0/1 or bool: a binomial test on the disagreements.

    Raises ValueError for unequal lengths or other values. McNemar 1947.
    """
    left, right = paired(a, b)
    if not (np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all()):
        raise ValueError("McNemar's test needs outcomes 0 or 1 for every unit")
    only_a, only_b = int(((left == 1) & (right == 0)).sum()), int(((left == 0) & (right == 1)).sum())
    n = only_a + only_b
    return min(1.0, 2.0 * float(special.bdtr(min(only_a, only_b), n, 0.5))) if n else 1.0


def holm(p_values: Any) -> np.ndarray:
    """Holm's step-down adjusted p-values (m,), in the order given; ValueError outside [0, 1]. Holm 1979."""
    p = as_numpy(p_values).astype(np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be a vector within [0, 1], got {p}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def wilson_interval(correct: int, total: int, *, confidence: float = 0.95) -> Interval:
    """Accuracy correct / total with Wilson's score interval, which is sound also at 0 and 1 (Wilson 1927).

    Raises ValueError unless 0 <= correct <= total.
    """
    check_settings(1, confidence)
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} is impossible; 0 <= correct <= total and total >= 1 are needed")
    p, z = correct / total, float(special.ndtri((1 + confidence) / 2))
    centre, scale = p + z * z / (2 * total), 1 + z * z / total
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low = (centre - half) / scale if correct else 0.0
    high = (centre + half) / scale if correct < total else 1.0
    return Interval(p, low, high)


def check_settings(samples: int, confidence: float) -> None:
    """Raises ValueError for fewer than one resample or a confidence outside (0, 1)."""
    if samples < 1:
        raise ValueError(f"samples={samples}; at least one resample is needed")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1")


def paired(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64 vectors of one length, or ValueError."""
    left, right = as_numpy(a).astype(np.float64), as_numpy(b).astype(np.float64)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"paired values must be two vectors of one length, got {left.shape} and {right.shape}")
    return left, right


def clean(values: Any, groups: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The values that are not NaN, with their groups; ValueError for infinity, no values or unequal lengths."""
    array = as_numpy(values).astype(np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values must be a non-empty vector, got shape {array.shape}")
    if np.isinf(array).any():
        raise ValueError(f"values hold infinity, first in row {int(np.argmax(np.isinf(array)))}")
    kept = ~np.isnan(array)
    if groups is None:
        return array[kept], None
    names = as_numpy(groups)
    if names.shape != array.shape:
        raise ValueError(f"groups have shape {names.shape}, values {array.shape}; one group name per value is needed")
    return array[kept], names[kept]


def unit_totals(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Sum and number of values per independent unit; the number is None where each value is its own unit."""
    if groups is None:
        return values, None
    _, unit = np.unique(groups, return_inverse=True)
    return np.bincount(unit, weights=values), np.bincount(unit).astype(np.float64)


def resampled_means(sums: np.ndarray, counts: np.ndarray | None, samples: int, seed: int) -> np.ndarray:
    """Means (samples,) of units drawn with replacement, as many as there are."""
    rng, n = np.random.default_rng(seed), len(sums)
    if counts is None:
        distinct, repeats = np.unique(sums, return_counts=True)
        if len(distinct) <= FEW_VALUES:
            return rng.multinomial(n, repeats / n, size=samples) @ distinct / n
        if n >= MANY_UNITS:
            return stratified_means(np.sort(sums), samples, rng)
    means = np.empty(samples)
    done = 0
    for rows in chunks(samples, n):
        drawn = rng.integers(0, n, (rows, n))
        total = sums[drawn].sum(axis=1)
        means[done : done + rows] = total / (n if counts is None else counts[drawn].sum(axis=1))
        done += rows
    return means


def stratified_means(ordered: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of n >= 4,096 units drawn with replacement, in time that does not grow with n.

    Sorted values are cut into 128 strata. How many draws fall into each is multinomial, exactly; the sum of the draws
    inside a stratum, given their number, is replaced by a normal variable of the same mean and variance. Only the small
    part of the variance that lies inside strata is thus approximated, by sums of 32 draws or more on average.
    """
    strata = np.array_split(ordered, STRATA)
    sizes = np.array([len(s) for s in strata])
    n = len(ordered)
    counts = rng.multinomial(n, sizes / n, size=samples)  # (samples, strata)
    centre = counts @ np.array([s.mean() for s in strata])
    spread = np.sqrt(counts @ np.array([s.var() for s in strata]))
    return (centre + spread * rng.standard_normal(samples)) / n


def chunks(samples: int, width: int) -> Iterator[int]:
    """Numbers of resamples to draw at a time, so that the drawn indices stay bounded."""
    step = max(1, DRAWS_AT_ONCE // width)
    for start in range(0, samples, step):
        yield min(step, samples - start)


def expanded_percentiles(deviations: np.ndarray, units: int, confidence: float) -> tuple[float, float]:
    """Percentiles of resampled deviations from the mean, at levels widened from the normal to Student's t."""
    tail = float(special.stdtrit(units - 1, (1 - confidence) / 2)) * math.sqrt(units / (units - 1))
    level = float(special.ndtr(tail))
    low, high = np.quantile(deviations, [level, 1 - level])
    return min(float(low), 0.0), max(float(high), 0.0)
