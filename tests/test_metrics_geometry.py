"""Spectrum, effective dimensions, uniformity and alignment equal their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.metrics import (
    alignment,
    effective_dimension,
    effective_rank,
    explained_variance,
    rank_me,
    spectrum,
    uniformity,
)

GOLDEN = Path(__file__).parent / "golden" / "eval" / "geometry.npz"


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_spectrum_and_dimensions_equal_golden_values(shape):
    golden = np.load(GOLDEN)
    x, values = golden[shape + "_features"], golden[shape + "_eigenvalues"]
    found = spectrum(x)
    leading = values > 1e-7 * values[0]
    np.testing.assert_allclose(found[leading], values[leading], rtol=1e-5)
    assert (found[~leading] <= 1e-7 * values[0]).all() and len(found) == x.shape[1]
    np.testing.assert_allclose(explained_variance(x), golden[shape + "_cumulative"], atol=1e-6)
    assert effective_dimension(x) == pytest.approx(float(golden[shape + "_d_eff"]), rel=1e-5)
    assert effective_rank(x) == pytest.approx(float(golden[shape + "_r_eff"]), rel=1e-5)


def test_dimensions_are_ordered_and_know_the_extremes():
    x = np.random.default_rng(0).standard_normal((300, 12)) * np.arange(1, 13)
    assert 1 <= effective_dimension(x) <= effective_rank(x) <= 12
    sphere = np.concatenate([np.eye(6), -np.eye(6)])
    assert effective_dimension(sphere) == pytest.approx(6) and effective_rank(sphere) == pytest.approx(6)
    line = np.outer(np.arange(9.0), np.ones(4))
    assert effective_dimension(line) == pytest.approx(1) and effective_rank(line) == pytest.approx(1)


@pytest.mark.parametrize("rows", [3, 40])
def test_collapsed_features_have_dimension_zero(rows):
    x = np.tile(np.array([0.1, 1 / 3, 1e5, -7.7], np.float32), (rows, 1))
    assert effective_dimension(x) == 0 and effective_rank(x) == 0
    assert not spectrum(x).any() and not explained_variance(x).any()


def test_a_large_offset_does_not_hide_the_spectrum():
    x = np.random.default_rng(0).standard_normal((50, 5))
    np.testing.assert_allclose(spectrum(x + 1e6), spectrum(x), rtol=1e-6)


def test_blocks_of_rows_do_not_change_the_spectrum(monkeypatch):
    x = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
    whole = np.linalg.eigvalsh(np.cov(x.double().numpy().T))[::-1]
    monkeypatch.setattr("evaluate.metrics.geometry.ROWS_AT_ONCE", 9)
    np.testing.assert_allclose(spectrum(x), whole, rtol=1e-10)


def test_rank_me_equals_its_definition():
    x = np.random.default_rng(0).standard_normal((40, 9))
    s = np.linalg.svd(x)[1]
    p = s / s.sum() + 1e-7
    assert rank_me(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert rank_me(np.ones((5, 4))) == pytest.approx(1, abs=1e-4) and rank_me(np.zeros((3, 2))) == 0


def test_uniformity_equals_the_published_one_liner():
    x = torch.nn.functional.normalize(torch.randn(1500, 6, dtype=torch.float64))
    expected = torch.pdist(x).pow(2).mul(-2).exp().mean().log().item()
    assert uniformity(3 * x) == pytest.approx(expected, abs=1e-9)
    assert uniformity(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)


def test_alignment_equals_the_published_one_liner():
    x, y = torch.randn(2, 50, 6, dtype=torch.float64)
    u, v = (torch.nn.functional.normalize(z) for z in (x, y))
    assert alignment(x, y) == pytest.approx((u - v).norm(dim=1).pow(2).mean().item())
    assert alignment(x, 5 * x) == pytest.approx(0)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (spectrum, ([[1.0, 2]],), "at least 2"),
        (effective_rank, ([[1.0], [np.nan]],), "row 1"),
        (spectrum, (np.ones((0, 3)),), "empty"),
        (spectrum, (np.ones(3),), "matrix"),
        (alignment, (np.ones((2, 3)), np.ones((3, 3))), "one shape"),
        (uniformity, ([[1.0, 2]],), "at least 2"),
    ],
)
def test_bad_input_is_a_clear_error(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
