"""Landmark AP and mP@k equal the revisited Oxford / Paris rules."""

from pathlib import Path

import numpy as np
import pytest

from evaluate.metrics import landmark_ap, mp_at_k

GOLDEN = Path(__file__).parent / "golden" / "eval" / "landmark.npz"
LEVELS = ["easy", "medium", "hard"]


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_equals_golden_values(golden, level):
    scores = golden["queries"] @ golden["db"].T
    ap = landmark_ap(scores, golden["relevance"], level)
    np.testing.assert_allclose(ap, golden[f"{level}_ap"], atol=1e-6)
    assert np.nanmean(ap) == pytest.approx(float(golden[f"{level}_map"]), abs=1e-6)
    precision = mp_at_k(scores, golden["relevance"], level)
    np.testing.assert_allclose(precision, golden[f"{level}_p"], atol=1e-6)
    np.testing.assert_allclose(np.nanmean(precision, axis=0), golden[f"{level}_mp_at_1_5_10"], atol=1e-6)


def test_trapezoid_by_hand():
    scores, relevance = [[4.0, 3, 2, 1]], [[3, 0, 1, 2]]  # easy: junk and hard leave, the easy one is second of two
    assert landmark_ap(scores, relevance, "easy")[0] == pytest.approx((0 / 1 + 1 / 2) / 2)
    assert mp_at_k(scores, relevance, "easy", ks=(1, 10)).tolist() == [[0.0, 0.5]]


def test_equal_scores_rank_by_index():
    assert landmark_ap([[1.0, 1.0]], [[1, 0]], "medium")[0] == 1.0
    assert landmark_ap([[1.0, 1.0]], [[0, 1]], "medium")[0] == 0.25


def test_a_query_without_positives_is_nan():
    assert np.isnan(landmark_ap([[1.0]], [[3]], "hard")[0])
    assert np.isnan(mp_at_k([[1.0]], [[3]], "hard")).all()


@pytest.mark.parametrize(
    ("scores", "relevance", "level", "message"),
    [
        ([[1.0]], [[1]], "extreme", "'extreme' is unknown"),
        ([[1.0]], [[4]], "easy", "0 .none., 1"),
        ([[1.0]], [[1, 0]], "easy", "must agree"),
        ([[1.0], [np.nan]], [[1], [1]], "easy", "row 1"),
    ],
)
def test_bad_input_is_a_clear_error(scores, relevance, level, message):
    with pytest.raises(ValueError, match=message):
        landmark_ap(scores, relevance, level)


def test_k_below_one_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        mp_at_k([[1.0]], [[1]], "easy", ks=(0,))
