"""Average precision of full rankings equals the definition under every tie rule, on every path through the code."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from evaluate.metrics import mean_ap, ranking_ap, retrieval_ap
from evaluate.metrics.cosine import duplicate_rows, score_blocks, unit_rows, unit_rows_torch
from evaluate.metrics.ranking import Relevance, block_ap, sorted_ap

GOLDEN = Path(__file__).parent / "golden" / "eval" / "retrieval.npz"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


def definition(scores, relevant, ties, tries=None):
    """AP of one query straight from the definition, ties by index or by group."""
    order = np.argsort(-scores, kind="stable")
    total = 0.0
    for i in np.flatnonzero(relevant):
        ahead = (
            scores >= scores[i]
            if ties == "group"
            else np.isin(np.arange(len(scores)), order[: np.flatnonzero(order == i)[0] + 1])
        )
        total += (relevant & ahead).sum() / ahead.sum()
    return total / relevant.sum()


def test_single_label_retrieval_equals_golden_values(golden):
    ap = retrieval_ap(
        golden["single_query"], golden["single_db"], golden["single_query_labels"], golden["single_db_labels"]
    )
    np.testing.assert_allclose(ap, golden["single_ap"], atol=1e-9)
    assert mean_ap(ap).value == pytest.approx(float(golden["single_map_skip_empty"]), abs=1e-9)
    assert mean_ap(ap, empty="zero").value == pytest.approx(float(golden["single_map_zero_empty"]), abs=1e-9)
    assert mean_ap(ap)[1:] == (85, 5)


def test_multi_label_retrieval_equals_golden_values(golden):
    ap = retrieval_ap(
        golden["multi_query"], golden["multi_db"], golden["multi_query_labels"], golden["multi_db_labels"]
    )
    np.testing.assert_allclose(ap, golden["multi_ap"], atol=1e-9)
    assert mean_ap(ap).value == pytest.approx(float(golden["multi_map_skip_empty"]), abs=1e-9)


def test_tensors_and_arrays_give_the_same_retrieval(golden):
    names = ("single_query", "single_db", "single_query_labels", "single_db_labels")
    arrays = [golden[n] for n in names]
    np.testing.assert_array_equal(retrieval_ap(*arrays), retrieval_ap(*[torch.from_numpy(a) for a in arrays]))


@pytest.mark.parametrize(("ties", "key"), [("index", "index"), ("average", "expected"), ("group", "group")])
@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float16, np.float32, np.float64])
def test_every_tie_rule_equals_golden_values(golden, ties, key, dtype):
    relevant = golden["single_query_labels"][:, None] == golden["single_db_labels"]
    ap = ranking_ap(golden["tie_scores"].astype(dtype), relevant, ties=ties)
    np.testing.assert_allclose(ap, golden["tie_ap_" + key], atol=1e-9)


def test_leave_one_out_removes_the_query_by_index(golden):
    database, labels = golden["single_db"], golden["single_db_labels"]
    ap = retrieval_ap(database[:120], database, labels[:120], labels, self_index=np.arange(120))
    np.testing.assert_allclose(ap, golden["loo_ap_first120"], atol=1e-9)


def test_leave_one_out_keeps_a_duplicate_of_the_query():
    x = np.array([[1.0, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    assert retrieval_ap(x[:1], x, [0], [0, 0, 1, 1], self_index=[0])[0] == 1.0
    with pytest.warns(UserWarning, match="no query has a relevant"):
        assert np.isnan(retrieval_ap(x[2:3], x[:3], [1], [0, 0, 1], self_index=[2])[0])


@pytest.mark.parametrize("denominator", ["retrieved", "min"])
def test_truncated_ap_equals_golden_values(golden, denominator):
    ap = retrieval_ap(
        golden["single_query"],
        golden["single_db"],
        golden["single_query_labels"],
        golden["single_db_labels"],
        k=int(golden["at_k"]),
        denominator=denominator,
    )
    np.testing.assert_allclose(ap, golden[f"ap_at_k_{denominator}_denominator"], atol=1e-9)


@pytest.mark.parametrize("ties", ["index", "group"])
@pytest.mark.parametrize("levels", [3, 1000])
def test_ranking_ap_equals_the_definition(ties, levels):
    g = np.random.default_rng(0)
    scores = (g.integers(-levels, levels, (6, 80)) / levels).astype(np.float32)
    relevant = g.random((6, 80)) < 0.3
    expected = [definition(s, r, ties) for s, r in zip(scores, relevant, strict=True)]
    np.testing.assert_allclose(ranking_ap(scores, relevant, ties=ties), expected, atol=1e-12)


class Elsewhere(torch.Tensor):
    """A tensor that numpy cannot read until it is on the CPU, as one on a GPU."""

    def cpu(self, *arguments, **options):
        return self.as_subclass(torch.Tensor)

    def numpy(self, *arguments, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_relevance_may_lie_on_another_device_than_scores():
    scores, relevant = torch.tensor([[0.3, 0.2, 0.1]]), torch.tensor([[False, True, True]])
    found = ranking_ap(scores, relevant.as_subclass(Elsewhere))
    assert found.tolist() == ranking_ap(scores, relevant).tolist()


def test_average_rule_is_the_mean_over_random_tie_orders():
    g = np.random.default_rng(0)
    scores, relevant = g.integers(0, 4, (1, 30)).astype(np.float32), g.random((1, 30)) < 0.4
    orders = [g.permutation(30) for _ in range(4000)]
    mean = np.mean([ranking_ap(scores[:, o], relevant[:, o])[0] for o in orders])
    assert ranking_ap(scores, relevant, ties="average")[0] == pytest.approx(mean, abs=4e-3)


def test_group_rule_equals_scikit_learn():
    g = np.random.default_rng(1)
    scores, relevant = g.integers(0, 9, (5, 200)), g.random((5, 200)) < 0.2
    expected = [average_precision_score(r, s) for s, r in zip(scores, relevant, strict=True)]
    np.testing.assert_allclose(ranking_ap(scores, relevant, ties="group"), expected, atol=1e-12)


@pytest.mark.parametrize("ties", ["index", "average", "group"])
def test_torch_and_compiled_rankings_agree(ties):
    g = np.random.default_rng(2)
    scores, relevant = g.integers(-20, 20, (7, 500)).astype(np.float32), g.random((7, 500)) < 0.1
    relevant[3] = False
    by_sort = sorted_ap(torch.from_numpy(scores), torch.from_numpy(relevant), ties, None, "retrieved").numpy()
    np.testing.assert_allclose(ranking_ap(scores, relevant, ties=ties), by_sort, atol=1e-12)
    assert np.isnan(by_sort[3])


@pytest.mark.parametrize("classes", [3, 150], ids=["many relevant: sorted", "few relevant: counted"])
@pytest.mark.parametrize("scale", [1.0, 3.0e4, 1e-42], ids=["cosine", "wide", "subnormal"])
@pytest.mark.parametrize("levels", [5, 4000], ids=["ties", "few ties"])
def test_compiled_and_torch_relevance_agree(classes, scale, levels):
    g = np.random.default_rng(3)
    scores = (g.integers(-levels, levels + 1, (9, 3000)) / levels * scale).astype(np.float32)
    scores[0, ::2] *= -0.0  # negative zero ties with zero
    scores[1] = 0.25
    queries, database = g.integers(0, classes + 1, 9), g.integers(0, classes, 3000)
    for self_index in (None, g.integers(0, 3000, 9)):
        relevance = Relevance(queries, database, self_index)
        compiled = relevance.compiled_ap(scores, 0)
        by_sort = block_ap(torch.from_numpy(scores), relevance, 0, None, "retrieved").numpy()
        np.testing.assert_allclose(compiled, by_sort, atol=1e-12)


def test_compiled_and_torch_class_sets_agree_beyond_64_classes():
    g = np.random.default_rng(4)
    scores = g.integers(0, 50, (6, 400)).astype(np.float32)
    queries, database = (g.random((6, 130)) < 0.01).astype(int), (g.random((400, 130)) < 0.01).astype(int)
    queries[:, 129] = database[::7, 129] = 1
    relevance = Relevance(queries.astype(np.uint8), database.astype(np.uint8), np.arange(6))
    by_sort = block_ap(torch.from_numpy(scores), relevance, 0, None, "retrieved").numpy()
    np.testing.assert_allclose(relevance.compiled_ap(scores, 0), by_sort, atol=1e-12)


def test_equal_database_rows_rank_by_index_wherever_they_lie():
    g = np.random.default_rng(5)
    x = np.repeat(g.standard_normal((1, 37)), 1003, axis=0).astype(np.float32)
    labels = np.zeros(1003, int)
    labels[-1] = 1
    np.testing.assert_allclose(retrieval_ap(g.standard_normal((5, 37)), x, np.ones(5, int), labels), 1 / 1003)


def test_duplicate_rows_are_found_with_their_first_copy():
    rows = torch.tensor([[1.0, 2], [3, 4], [1, 2], [0, 0], [3, 4], [1, 2]])
    copies, first = duplicate_rows(rows)
    assert copies.tolist() == [2, 4, 5] and first.tolist() == [0, 1, 0]


def test_blocks_of_scores_join_to_the_whole_product(monkeypatch):
    monkeypatch.setattr("evaluate.metrics.cosine.SCORES_AT_ONCE", 1)
    g = torch.Generator().manual_seed(0)
    q, d = torch.randn(70, 8, generator=g), torch.randn(50, 8, generator=g)
    whole = torch.cat([scores.clone() for _, scores in score_blocks(q, d)])
    assert len(list(score_blocks(q, d))) == 3
    torch.testing.assert_close(whole, q @ d.T)


def test_unit_rows_agree_between_torch_and_compiled_code():
    x = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit_rows_torch(x)[0], unit_rows(x, "x"), rtol=0, atol=1e-7)
    torch.testing.assert_close(unit_rows(x.bfloat16(), "x"), unit_rows(x.bfloat16().double(), "x"))


def test_class_free_items_are_relevant_to_nothing():
    x = np.eye(3, dtype=np.float32)
    with pytest.warns(UserWarning, match="no query has a relevant"):
        ap = retrieval_ap(x[:1], x, np.zeros((1, 4), int), np.ones((3, 4), int))
    assert np.isnan(ap).all()


def test_mean_ap_without_any_relevant_item_is_nan_and_warns():
    with pytest.warns(UserWarning, match="undefined"):
        value, used, skipped = mean_ap([np.nan, np.nan], empty="zero")
    assert np.isnan(value) and (used, skipped) == (0, 2)


def test_zero_vectors_have_cosine_zero_and_warn_once_with_their_count():
    database = np.array([[0.0, 0], [1, 0], [0, 0], [-1, 0]], np.float32)
    with pytest.warns(UserWarning, match="2 zero vectors") as seen:
        ap = retrieval_ap([[1.0, 0]], database, [1], [0, 0, 1, 0])
    assert len(seen) == 1 and ap[0] == pytest.approx(1 / 3)


def bad(**changed):
    g = np.random.default_rng(0)
    given = {
        "queries": g.random((3, 4)),
        "database": g.random((5, 4)),
        "query_labels": [0, 1, 0],
        "database_labels": [0, 1, 0, 1, 1],
    }
    return {**given, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"queries": np.array([[1.0, 1, 1, 1], [1, np.nan, 1, 1], [np.inf, 1, 1, 1]])},
            "query features hold NaN or infinity, first in row 1",
        ),
        ({"database": np.ones((5, 3))}, "width 4, database features width 3"),
        ({"queries": np.ones((0, 4)), "query_labels": []}, "empty"),
        ({"database": np.ones((0, 4)), "database_labels": []}, "empty"),
        ({"query_labels": [0, 1]}, "2 entries for 3 items"),
        ({"database_labels": [0, 1, 0, 1, -1]}, "-1 in row 4"),
        ({"query_labels": [0.5, 1.0, 0.0]}, "integers"),
        ({"query_labels": np.eye(3, dtype=int)}, "both"),
        ({"query_labels": np.full((3, 2), 2), "database_labels": np.ones((5, 2))}, "only 0 and 1"),
        ({"query_labels": np.ones((3, 2)), "database_labels": np.ones((5, 3))}, "2 classes"),
        ({"self_index": [0, 1, 5]}, r"self_index\[2\] is 5"),
        ({"self_index": [0, 1]}, "one row per query"),
        ({"k": 6}, "outside 1..5"),
        ({"k": 0}, "outside 1..5"),
        ({"denominator": "all"}, "'retrieved' or 'min'"),
    ],
)
def test_bad_retrieval_input_is_a_clear_error(changed, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ap(**bad(**changed))


@pytest.mark.parametrize(
    ("scores", "relevant", "options", "message"),
    [
        ([[1.0, 2], [3, np.inf]], [[1, 0], [0, 1]], {}, "row 1"),
        ([[1.0, 2]], [[1, 0, 1]], {}, "must agree"),
        ([[1.0, 2]], [[1, 0]], {"ties": "random"}, "'random' is unknown"),
        ([[1.0, 2]], [[1, 0]], {"ties": "group", "k": 1}, "ties='index' only"),
        (np.ones((0, 3)), np.ones((0, 3)), {}, "empty"),
    ],
)
def test_bad_ranking_input_is_a_clear_error(scores, relevant, options, message):
    with pytest.raises(ValueError, match=message):
        ranking_ap(scores, relevant, **options)


def test_a_good_input_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert retrieval_ap(**bad()).shape == (3,)
