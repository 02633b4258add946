"""The same features through scikit-learn and faiss give the same neighbours, votes and average precision."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate.metrics import hamming_ap, knn_classify, knn_search, retrieval_ap

K, TEMPERATURE = 20, 0.07


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Database and query features of 12 overlapping classes, and their labels."""
    g = np.random.default_rng(0)
    centres, labels, truth = g.standard_normal((12, 32)), g.integers(0, 12, 2000), g.integers(0, 12, 60)
    database, queries = (centres[y] + 2 * g.standard_normal((len(y), 32)) for y in (labels, truth))
    return database.astype(np.float32), queries.astype(np.float32), labels, truth


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_neighbours_are_those_of_faiss(features):
    faiss = pytest.importorskip("faiss")
    database, queries, _, _ = features
    index = faiss.IndexFlatIP(database.shape[1])
    index.add(unit(database))
    scores, neighbours = index.search(unit(queries), K)
    ours = knn_search(database, queries, K)
    np.testing.assert_array_equal(ours[1], neighbours)
    np.testing.assert_allclose(ours[0], scores, atol=1e-6)


def test_neighbours_and_votes_are_those_of_scikit_learn(features):
    neighbors = pytest.importorskip("sklearn.neighbors")
    database, queries, labels, truth = features

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / TEMPERATURE)

    theirs = neighbors.KNeighborsClassifier(K, weights=weights, metric="cosine", algorithm="brute")
    theirs.fit(database, labels)
    np.testing.assert_array_equal(knn_search(database, queries, K)[1], theirs.kneighbors(queries)[1])
    ours = knn_classify(database, labels, queries, truth, ks=K, temperature=TEMPERATURE)[K]
    np.testing.assert_array_equal(ours["predictions"], theirs.predict(queries))
    assert ours["top1"] == theirs.score(queries, truth) and 0.3 < ours["top1"] < 1


@pytest.mark.parametrize("multi", [False, True])
def test_average_precision_is_that_of_scikit_learn(features, multi):
    metrics = pytest.importorskip("sklearn.metrics")
    database, queries, labels, truth = features
    relevant = labels == truth[:, None]
    if multi:
        g = np.random.default_rng(1)
        labels, truth = (g.random((len(rows), 20)) < 0.1 for rows in (database, queries))
        relevant = (truth.astype(int) @ labels.T.astype(int)) > 0
        used = relevant.any(axis=1)
        queries, truth, relevant = queries[used], truth[used], relevant[used]
    scores = unit(queries.astype(np.float64)) @ unit(database.astype(np.float64)).T
    expected = [metrics.average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(
        retrieval_ap(queries, database, truth, labels), expected, atol=1e-4
    )  # float32 may swap two


def test_hamming_average_precision_with_group_ties_is_that_of_scikit_learn(features):
    metrics = pytest.importorskip("sklearn.metrics")
    database, queries, labels, truth = features
    codes, stored = queries > 0, database > 0
    distance = (codes[:, None] != stored).sum(axis=2)
    expected = [metrics.average_precision_score(labels == y, -d) for y, d in zip(truth, distance, strict=True)]
    np.testing.assert_allclose(hamming_ap(codes, stored, truth, labels, ties="group"), expected, atol=1e-12)


def test_hamming_distances_rank_as_those_of_faiss(features):
    faiss = pytest.importorskip("faiss")
    database, queries, labels, truth = features
    codes, stored = (np.packbits(rows > 0, axis=1) for rows in (queries, database))
    index = faiss.IndexBinaryFlat(32)
    index.add(stored)
    distance, order = index.search(codes, len(stored))
    order = np.take_along_axis(order, np.lexsort((order, distance)), axis=1)  # ties by index
    hits = labels[order] == truth[:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, len(stored) + 1)
    expected = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    np.testing.assert_allclose(hamming_ap(queries > 0, database > 0, truth, labels, ties="index"), expected, atol=1e-12)
