"""Hamming retrieval equals the definition for every tie rule and prefix, without ever ranking."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.metrics import asymmetric_hamming_ap, hamming_ap, hamming_prefix_ap, ranking_ap
from evaluate.metrics.hamming_kernels import harmonic_span
from evaluate.metrics.tsne import hamming_distances

GOLDEN = Path(__file__).parent / "golden" / "eval" / "hamming.npz"
PREFIXES = (256, 128, 64, 32)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope="module")
def codes(golden):
    names = ("query_labels", "db_labels")
    return (golden["query_logits"] > 0, golden["db_logits"] > 0, *(golden[n] for n in names))


@pytest.mark.parametrize(("ties", "key"), [("index", "index"), ("average", "expected"), ("group", "group")])
def test_prefixes_equal_golden_values_for_every_tie_rule(golden, codes, ties, key):
    found = hamming_prefix_ap(*codes, prefixes=PREFIXES, ties=ties)
    for bits in PREFIXES:
        np.testing.assert_allclose(found[bits], golden[f"ap_{key}_{bits}"], atol=1e-9)


@pytest.mark.parametrize("bits", PREFIXES)
def test_distances_add_up_to_the_golden_sum(golden, codes, bits):
    both = np.concatenate([codes[0][:, :bits], codes[1][:, :bits]])
    distances = hamming_distances(both)[: len(codes[0]), len(codes[0]) :]
    assert np.rint(distances * bits).sum(dtype=np.int64) == golden[f"dist_sum_{bits}"]


@pytest.mark.parametrize("bits", PREFIXES)
def test_asymmetric_distance_equals_golden_values(golden, codes, bits):
    ap = asymmetric_hamming_ap(golden["query_logits"][:, :bits], codes[1][:, :bits], *codes[2:])
    np.testing.assert_allclose(ap, golden[f"ap_asym_{bits}"], atol=1e-9)


def random_codes(bits, classes, multi):
    g = np.random.default_rng(bits)
    draw = (lambda n: (g.random((n, classes)) < 0.1).astype(int)) if multi else (lambda n: g.integers(0, classes, n))
    return g.integers(0, 2, (7, bits)), g.integers(0, 2, (5000, bits)), draw(7), draw(5000)


@pytest.mark.parametrize("ties", ["index", "average", "group"])
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("bits", [1, 7, 65, 200])
def test_any_code_length_equals_a_full_ranking(bits, multi, ties):
    q, d, query_labels, labels = random_codes(bits, 70 if multi else 40, multi)
    relevant = (query_labels @ labels.T) > 0 if multi else query_labels[:, None] == labels
    own = np.arange(7) * 3
    distance = (q[:, None] != d).sum(axis=2)
    for i in (None, own):
        scores, flags = -distance, relevant.copy()
        if i is not None:
            scores[np.arange(7), i] = -bits - 1  # last, and not relevant: as good as gone
            flags[np.arange(7), i] = False
        np.testing.assert_allclose(
            hamming_ap(q, d, query_labels, labels, ties=ties, self_index=i),
            ranking_ap(scores, flags, ties=ties),
            atol=1e-10,
        )


def test_collapsed_codes_give_the_share_of_relevant_items_on_average():
    d = np.ones((60_000, 16), int)
    labels = np.repeat([0, 1, 1], 20_000)
    expected = ranking_ap(np.zeros((1, 60_000)), labels[None] == 1, ties="average")
    np.testing.assert_allclose(hamming_ap(d[:1], d, [1], labels), expected, atol=1e-10)


@pytest.mark.parametrize(("ahead", "n"), [(0, 5), (999, 3000), (1000, 1), (1000, 70), (10**6, 65), (10**6, 10**5)])
def test_harmonic_span_equals_the_sum(ahead, n):
    total = float(np.sum(1 / np.arange(ahead + 1, ahead + n + 1, dtype=np.longdouble)))
    assert harmonic_span(ahead, n) == pytest.approx(total, rel=1e-13)


def test_booleans_integers_and_tensors_are_one_code(codes):
    q, d, query_labels, labels = codes
    as_ints = hamming_ap(q.astype(np.int64), d.astype(float), query_labels, labels)
    np.testing.assert_array_equal(as_ints, hamming_ap(torch.from_numpy(q), torch.from_numpy(d), query_labels, labels))


@pytest.mark.parametrize(
    ("q", "d", "options", "message"),
    [
        ([[0, 2]], [[0, 1]], {}, "got 2 in row 0, column 1"),
        ([[0, 1]], [[0.5, 1]], {}, "only 0 and 1"),
        ([[0, 1, 1]], [[0, 1]], {}, "3 bits, database codes 2"),
        (np.ones((0, 2)), [[0, 1]], {}, "empty"),
        ([[0, 1]], np.ones((0, 2)), {}, "empty"),
        ([[0, 1]], [[0, 1]], {"ties": "random"}, "'random' is unknown"),
    ],
)
def test_bad_codes_are_a_clear_error(q, d, options, message):
    with pytest.raises(ValueError, match=message):
        hamming_ap(q, d, [0] * len(q), [0] * len(d), **options)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_a_prefix_outside_the_code_is_an_error(bits):
    with pytest.raises(ValueError, match="outside 1..8"):
        hamming_prefix_ap(np.eye(8), np.eye(8), range(8), range(8), prefixes=[bits])


def test_nan_logits_are_a_clear_error():
    with pytest.raises(ValueError, match="row 1"):
        asymmetric_hamming_ap([[0.0], [np.nan]], [[1]], [0, 0], [0])


def test_no_relevant_code_is_nan_with_a_warning():
    with pytest.warns(UserWarning, match="no query has a relevant"):
        assert np.isnan(hamming_ap([[1]], [[1]], [0], [1])[0])
