"""Intervals cover, tests are exact where they can be, and nothing needs torch."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from evaluate.metrics import (
    bootstrap_interval,
    holm,
    mcnemar,
    paired_bootstrap,
    permutation_test,
    seed_mean_interval,
    seeds_difference,
    seeds_interval,
    wilson_interval,
)
from evaluate.metrics.statistics import resampled_means, stratified_means


def test_statistics_import_neither_torch_nor_numba():
    code = "import sys; from evaluate.metrics import holm; sys.exit(bool({'torch', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves():
    import evaluate.metrics as metrics

    assert sorted(metrics._HOME) == sorted(metrics.__all__)
    for name in metrics.__all__:
        assert callable(getattr(metrics, name))
    with pytest.raises(AttributeError, match="no attribute 'accuracy'"):
        metrics.accuracy  # noqa: B018


def test_interval_is_a_function_of_values_and_seed():
    x = np.random.default_rng(0).random(200)
    assert bootstrap_interval(x) == bootstrap_interval(x)
    assert bootstrap_interval(x) != bootstrap_interval(x, seed=1)


@pytest.mark.parametrize("n", [40, 3000, 20_000])
def test_interval_agrees_with_student_for_a_mean_of_many(n):
    x = np.random.default_rng(n).normal(5, 2, n)
    mean, low, high = bootstrap_interval(x)
    expected = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
    assert mean == pytest.approx(x.mean())
    np.testing.assert_allclose([low, high], expected, atol=0.1 * (expected[1] - expected[0]))


@pytest.mark.parametrize("values", ["outcomes", "few units", "strata"])
def test_resampled_means_have_the_spread_of_a_mean(values):
    g = np.random.default_rng(0)
    x = {"outcomes": g.integers(0, 2, 5000) * 1.0, "few units": g.random(300), "strata": g.beta(0.3, 0.6, 9000)}[values]
    means = resampled_means(x, None, 10_000, seed=3)
    assert means.mean() == pytest.approx(x.mean(), abs=5 * x.std() / math.sqrt(len(x) * 10_000))
    assert means.std() == pytest.approx(x.std() / math.sqrt(len(x)), rel=0.04)


def test_strata_and_plain_draws_have_one_distribution():
    x = np.sort(np.random.default_rng(0).beta(0.2, 2, 4096))
    g = np.random.default_rng(1)
    plain = np.array([x[g.integers(0, 4096, 4096)].mean() for _ in range(3000)])
    assert stats.ks_2samp(plain, stratified_means(x, 3000, g)).pvalue > 0.01


def test_groups_are_resampled_whole():
    g = np.random.default_rng(0)
    unit = g.normal(size=40)
    values, groups = np.repeat(unit, 25), np.repeat(np.arange(40), 25)
    _, low, high = bootstrap_interval(values, groups=groups)
    _, unit_low, unit_high = bootstrap_interval(unit)
    assert high - low == pytest.approx(unit_high - unit_low, rel=0.05)
    narrow = bootstrap_interval(values)
    assert narrow.high - narrow.low < 0.3 * (high - low)


def test_groups_of_unequal_size_keep_the_mean_over_values():
    mean, low, high = bootstrap_interval([1.0, 1, 1, 5], groups=["a", "a", "a", "b"])
    assert mean == 2.0 and low <= 1.0 and high >= 5.0


def test_missing_values_are_dropped():
    assert bootstrap_interval([1.0, np.nan, 2, 4]) == bootstrap_interval([1.0, 2, 4])
    pairs = paired_bootstrap([1.0, np.nan, 2, 4], [1.0, 1, np.nan, 3])
    assert pairs == paired_bootstrap([1.0, 4], [1.0, 3])
    with pytest.warns(UserWarning, match="every unit is NaN"):
        assert all(map(math.isnan, bootstrap_interval([np.nan])))


def test_one_unit_has_no_interval_and_equal_values_have_no_width():
    mean, low, high = bootstrap_interval([0.3])
    assert mean == 0.3 and math.isnan(low) and math.isnan(high)
    assert bootstrap_interval([0.1] * 7) == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = bootstrap_interval([0.1] * 7)
    assert low <= mean <= high


def test_paired_bootstrap_of_equal_and_of_shifted_values():
    a = np.random.default_rng(0).random(60)
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0, 1.0)
    difference, low, high, p = paired_bootstrap(a + 0.1, a)
    assert low <= difference <= high and difference == pytest.approx(0.1) and p == pytest.approx(1 / 10_001)
    assert paired_bootstrap(a, a + 0.1).difference == pytest.approx(-0.1)


def test_paired_bootstrap_agrees_with_the_paired_t_test():
    g = np.random.default_rng(3)
    b = g.random(400)
    a = b + g.normal(0.01, 0.1, 400)
    found, expected = paired_bootstrap(a, b), stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.015)
    np.testing.assert_allclose(found[1:3], expected.confidence_interval(), atol=1.5e-3)


def test_sign_flips_are_exact_for_few_pairs():
    a, b = np.array([3.0, 5, 9, 4]), np.array([1.0, 2, 3, 5])
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True
    )
    assert permutation_test(a, b) == pytest.approx(expected.pvalue)
    assert permutation_test(a, a) == 1.0


def test_random_sign_flips_agree_with_the_t_test():
    g = np.random.default_rng(4)
    a = g.normal(0.1, 1, 300)
    assert permutation_test(a, np.zeros(300)) == pytest.approx(stats.ttest_1samp(a, 0).pvalue, abs=0.02)


def test_sign_flips_of_groups_are_those_of_their_sums():
    g = np.random.default_rng(5)
    a, b, groups = g.random(60), g.random(60), np.repeat(np.arange(12), 5)
    expected = permutation_test((a - b).reshape(12, 5).sum(1), np.zeros(12), samples=5000)
    assert permutation_test(a, b, groups=groups, samples=5000) == pytest.approx(expected)
    assert expected == round(expected * 2**12) / 2**12, "all sign patterns"


def test_two_equal_seeds_add_nothing_to_the_interval_of_the_samples():
    x = np.random.default_rng(0).random(300)
    assert seeds_interval([x, x]) == pytest.approx(bootstrap_interval(x))
    y = np.random.default_rng(1).random(300)
    assert seeds_difference([x, x], [y, y])[:3] == pytest.approx(paired_bootstrap(x, y)[:3])
    assert seeds_difference([x], [y]) == pytest.approx(paired_bootstrap(x, y))


def test_seeds_that_are_all_the_spread_give_the_t_interval_of_their_means():
    means = np.array([0.60, 0.64, 0.61, 0.67])
    mean, low, high = seeds_interval(np.repeat(means[:, None], 500, axis=1), samples=200_000)
    expected = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert mean == pytest.approx(means.mean())
    np.testing.assert_allclose([low, high], expected, rtol=0.01)
    assert seed_mean_interval(means, np.zeros(4))[1:] == pytest.approx(expected)


def test_the_difference_of_recipes_agrees_with_welch_where_seeds_are_all_the_spread():
    a, b = np.array([0.60, 0.64, 0.61, 0.67, 0.66]), np.array([0.58, 0.60, 0.57, 0.61, 0.62])
    tables = [np.repeat(x[:, None], 400, axis=1) for x in (a, b)]
    found, welch = seeds_difference(*tables, samples=100_000), stats.ttest_ind(a, b, equal_var=False)
    assert found.p_value == pytest.approx(welch.pvalue, abs=0.004)
    np.testing.assert_allclose(found[1:3], welch.confidence_interval(), atol=0.002)


def test_samples_that_are_all_the_spread_do_not_shrink_with_seeds():
    x = np.random.default_rng(0).random(400)
    half = np.ptp(bootstrap_interval(x)[1:]) / 2
    _, low, high = seed_mean_interval([x.mean()] * 5, [half] * 5)
    assert (high - low) / 2 == pytest.approx(half)


def test_undefined_samples_of_one_seed_are_left_out_of_all():
    table = np.random.default_rng(0).random((3, 50))
    table[1, 7] = np.nan
    assert seeds_interval(table) == pytest.approx(seeds_interval(np.delete(table, 7, axis=1)))


def test_mcnemar_is_the_binomial_test_on_disagreements():
    a, b = np.array([1] * 9 + [0] * 2 + [1] * 50, bool), np.array([0] * 9 + [1] * 2 + [1] * 50, bool)
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert mcnemar(a, a) == 1.0


def test_holm_equals_scipy_order_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0] and holm([]).shape == (0,)


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (7, 10), (812, 1000)])
def test_wilson_equals_scipy(correct, total):
    expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson_interval(correct, total), [correct / total, *expected], atol=1e-12)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"),
    [
        (bootstrap_interval, ([],), {}, "non-empty"),
        (bootstrap_interval, ([1.0, np.inf],), {}, "infinity, first in row 1"),
        (bootstrap_interval, ([1.0, 2],), {"groups": [1]}, "one group name per value"),
        (bootstrap_interval, ([1.0, 2],), {"samples": 0}, "samples=0"),
        (bootstrap_interval, ([1.0, 2],), {"confidence": 1.0}, "confidence=1.0"),
        (paired_bootstrap, ([1.0, 2], [1.0]), {}, "one length"),
        (permutation_test, ([], []), {}, "non-empty"),
        (mcnemar, ([0, 2], [0, 1]), {}, "0 or 1"),
        (seeds_interval, ([[1.0, 2]],), {}, "one seed tells nothing"),
        (seeds_interval, ([1.0, 2],), {}, "seeds, samples"),
        (seeds_difference, ([[1.0, 2]], [[1.0]]), {}, "2 samples cannot be paired with 1"),
        (seed_mean_interval, ([1.0], [0.1]), {}, "two or more scores"),
        (holm, ([0.5, 1.5],), {}, r"within \[0, 1\]"),
        (wilson_interval, (11, 10), {}, "impossible"),
    ],
)
def test_bad_input_is_a_clear_error(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 30, 100])
@pytest.mark.parametrize("shape", ["normal", "skewed", "outcomes"])
def test_intervals_cover_as_often_as_they_say(n, shape):
    g = np.random.default_rng(n)
    draw = {
        "normal": lambda: g.normal(0, 1, n),
        "skewed": lambda: g.beta(0.5, 1.5, n),
        "outcomes": lambda: 1.0 * (g.random(n) < 0.7),
    }
    truth = {"normal": 0.0, "skewed": 0.25, "outcomes": 0.7}[shape]
    hits = 0
    for i in range(2000):
        _, low, high = bootstrap_interval(draw[shape](), samples=1000, seed=i)
        hits += low <= truth <= high
    print(f"coverage {shape} n={n}: {hits / 2000:.3f}")
    assert 0.925 <= hits / 2000 <= 0.985


@pytest.mark.slow
def test_the_paired_p_value_rejects_a_true_null_as_often_as_it_says():
    g = np.random.default_rng(0)
    rejected = sum(paired_bootstrap(*g.normal(size=(2, 40)), samples=1000, seed=i).p_value <= 0.05 for i in range(2000))
    print(f"false alarms: {rejected / 2000:.3f}")
    assert 0.035 <= rejected / 2000 <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("parts", [(0.0, 1.0, 0.5), (0.03, 1.0, 0.5), (0.1, 1.0, 0.5), (0.3, 0.3, 0.3)])
def test_two_level_intervals_cover_as_often_as_they_say(seeds, parts):
    """`parts`: standard deviations of the seeds, of the samples, and of their interaction."""
    g = np.random.default_rng(seeds)
    n, hits = 400, 0
    for i in range(1000):
        rows, columns = g.normal(0, parts[0], (seeds, 1)), g.normal(0, parts[1], (1, n))
        _, low, high = seeds_interval(rows + columns + g.normal(0, parts[2], (seeds, n)), samples=1000, seed=i)
        hits += low <= 0 <= high
    print(f"coverage of {seeds} seeds, deviations {parts}: {hits / 1000:.3f}")
    assert hits / 1000 >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_recipes_are_told_apart_no_more_often_than_the_level(seeds):
    g = np.random.default_rng(seeds)
    rejected = 0
    for i in range(1000):
        columns = g.normal(0, 1, (1, 400))
        a, b = (columns + g.normal(0, 0.1, (seeds, 1)) + g.normal(0, 0.5, (seeds, 400)) for _ in range(2))
        rejected += seeds_difference(a, b, samples=1000, seed=i).p_value <= 0.05
    print(f"false alarms of {seeds} seeds a side: {rejected / 1000:.3f}")
    assert rejected / 1000 <= 0.065
