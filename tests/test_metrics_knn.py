"""Nearest neighbours are exact whatever proposes them, and the weighted vote follows the published protocol."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.metrics import knn_classify, knn_search
from evaluate.metrics.cosine import unit_pair
from evaluate.metrics.knn import propose_bfloat16, search_cpu, search_torch

GOLDEN = Path(__file__).parent / "golden" / "eval" / "knn.npz"
KS = [1, 5, 10, 20, 100, 200]


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope="module")
def result(golden):
    return knn_classify(*(golden[n] for n in ("train_features", "train_labels", "test_features", "test_labels")), ks=KS)


@pytest.mark.parametrize("i", range(6))
def test_accuracy_and_predictions_equal_golden_values(golden, result, i):
    votes, sample = result[KS[i]], 100 / len(golden["test_labels"])
    assert 100 * votes["top1"] == pytest.approx(golden["top1"][i], abs=1e-4)
    assert 100 * votes["top5"] == pytest.approx(golden["top5_stable"][i], abs=1e-4)
    assert golden["top5_low"][i] - sample <= 100 * votes["top5"] <= golden["top5_high"][i] + sample
    assert (votes["predictions"] == golden["pred_k"][i]).mean() >= 0.998
    assert votes["top5_voted"] <= votes["top5"]


def test_the_sums_of_weights_are_the_golden_votes(golden):
    cosines, near = knn_search(golden["train_features"], golden["test_features"], 20)
    votes = np.zeros((len(near), int(golden["num_classes"])))
    rows = np.arange(len(near))[:, None]
    np.add.at(votes, (rows, golden["train_labels"][near]), np.exp(cosines / float(golden["temperature"])))
    np.testing.assert_allclose(votes, golden["votes_k20"], rtol=1e-4, atol=1e-9)


def every_search(train, test, k):
    queries, rows = unit_pair(test, train, "test", "train")
    yield search_cpu(rows.numpy(), queries.numpy(), k, prefilter=True)
    yield search_cpu(rows.numpy(), queries.numpy(), k, prefilter=False)
    yield search_torch(rows, queries, k)


def oracle(train, test, k):
    """All cosines of the unit rows in float64, rounded to float32, sorted stably."""
    unit = [
        (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)).astype(np.float32).astype(np.float64)
        for x in (test, train)
    ]
    scores = (unit[0] @ unit[1].T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def features(kind):
    g = np.random.default_rng(0)
    train, test = g.standard_normal((1500, 48)), g.standard_normal((40, 48))
    if kind == "duplicates":
        train = np.repeat(train[:300], 5, axis=0)
    if kind == "nearly collapsed":
        train, test = 1 + 1e-3 * train, 1 + 1e-3 * test
    if kind == "collapsed":
        train, test = np.ones_like(train), np.ones_like(test)
    if kind == "opposed":
        train, test = -np.abs(train), np.abs(test)
    if kind == "few distinct":
        train, test = np.sign(train), np.sign(test)
    return train, test


@pytest.mark.parametrize("k", [1, 20, 200])
@pytest.mark.parametrize("kind", ["random", "duplicates", "nearly collapsed", "collapsed", "opposed", "few distinct"])
def test_every_search_is_exact_with_ties_to_the_lower_index(kind, k):
    train, test = features(kind)
    scores, order = oracle(train, test, k)
    for found_scores, found in every_search(train, test, k):
        np.testing.assert_array_equal(found, order)
        np.testing.assert_allclose(found_scores, scores, rtol=0, atol=1e-7)


def test_bfloat16_proposals_settle_ordinary_queries_and_refuse_collapsed_ones():
    for kind, settled in (("random", True), ("collapsed", False)):
        train, test = features(kind)
        queries, rows = unit_pair(test, np.repeat(train, 4, axis=0), "test", "train")
        scores, indices = np.empty((40, 20), np.float32), np.empty((40, 20), np.int64)
        done = propose_bfloat16(rows.numpy(), queries.numpy(), 20, scores, indices, np.arange(40))
        assert done.all() == settled and done.any() == settled


def test_k_may_be_the_whole_training_set():
    train, test = features("random")
    _, order = knn_search(train[:30], test[:4], 30)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(30), (4, 1)))


def test_votes_follow_the_definition():
    train, test = features("random")
    g = np.random.default_rng(1)
    labels, truth = g.integers(0, 12, 1500), g.integers(0, 12, 40)
    scores, order = oracle(train, test, 100)
    result = knn_classify(train, labels, test, truth, ks=[3, 100], temperature=0.2)
    for k in (3, 100):
        votes = np.zeros((40, 12))
        for i in range(40):
            np.add.at(votes[i], labels[order[i, :k]], np.exp(scores[i, :k].astype(np.float64) / 0.2))
        ranked = np.argsort(-votes, axis=1, kind="stable")
        np.testing.assert_array_equal(result[k]["predictions"], ranked[:, 0])
        hits = ranked[:, : min(5, k)] == truth[:, None]
        assert result[k]["top5"] == pytest.approx(hits.any(axis=1).mean())
        voted = hits.any(axis=1) & (votes[np.arange(40), truth] > 0)
        assert result[k]["top5_voted"] == pytest.approx(voted.mean())


def test_equal_votes_go_to_the_lower_class():
    result = knn_classify([[1.0, 0], [1, 0]], [7, 3], [[1.0, 0]], [3], ks=[2])
    assert result[2]["predictions"].tolist() == [3]


def test_a_class_without_votes_counts_for_top5_only_in_the_stable_order():
    train = np.vstack([np.eye(5), -np.eye(5)[:1]])
    result = knn_classify(train, [0, 0, 0, 0, 5, 2], np.eye(5)[:1], [2], ks=5)
    assert result[5]["top5"] == 1.0 and result[5]["top5_voted"] == 0.0


def test_a_class_without_training_images_is_never_among_the_first_five():
    result = knn_classify(np.eye(5), [0, 0, 0, 0, 5], np.eye(5)[:1], [2], ks=5, num_classes=6)
    assert result[5]["top5"] == result[5]["top5_voted"] == 0.0


def test_tiny_temperature_stays_finite():
    result = knn_classify(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2], ks=[3], temperature=1e-4)
    assert result[3]["top1"] == 1.0


def test_one_query_is_enough_and_tensors_are_welcome():
    result = knn_classify(torch.eye(3), torch.arange(3), torch.eye(3)[1:2], torch.tensor([1]), ks=1)
    assert result[1]["top1"] == 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ks": [4]}, "k=4 is outside 1..3"),
        ({"ks": [0]}, "each at least 1"),
        ({"ks": []}, "at least one number"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"test": np.ones((3, 4))}, "width 4"),
        ({"train": np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, np.nan]])}, "row 2"),
        ({"test_labels": [0, 1]}, "2 entries for 3 items"),
        ({"test_labels": [0, 1, 9]}, "9 in row 2, outside 0..2"),
        ({"train_labels": [0, -1, 2]}, "-1 in row 1"),
        ({"train_labels": [0, 1, 2], "num_classes": 2}, "outside 0..1"),
        ({"train_labels": np.eye(3, dtype=int)}, "class indices"),
        ({"train": np.ones((0, 3)), "train_labels": [], "num_classes": 3}, "training features are empty"),
        ({"test": np.ones((0, 3)), "test_labels": []}, "test features are empty"),
    ],
)
def test_bad_input_is_a_clear_error(changed, message):
    given = {"train": np.eye(3), "train_labels": [0, 1, 2], "test": np.eye(3), "test_labels": [0, 1, 2], "ks": [1]}
    with pytest.raises(ValueError, match=message):
        knn_classify(**{**given, **changed})
