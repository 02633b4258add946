"""Options of the retrieval task: rankings cut at k, queries with nothing to find, and the default left as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from frozen import folder_data, save_tiny_run, subject

from evaluate.run import load_data, load_task
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.retrieval import Retrieval, has_relevant
from pretrain.datasets import ImageList


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def direct_ap(scores: np.ndarray, relevant: np.ndarray, k: int, denominator: str) -> float:
    """AP of one cut ranking, item by item."""
    hits, total = 0, 0.0
    for rank, item in enumerate(np.argsort(-scores, kind="stable")[:k], start=1):
        if relevant[item]:
            hits += 1
            total += hits / rank
    below = hits if denominator == "found" else min(int(relevant.sum()), k)
    return total / below if below else 0.0


@pytest.mark.parametrize("denominator", ["found", "min"])
@pytest.mark.parametrize("preset", ["train-val", "val-loo"])
def test_a_cut_ranking_is_the_direct_formula(images, run, cache, preset, denominator):
    given = subject(run, folder_data(images), cache)
    task = Retrieval(preset, at=7, denominator=denominator)
    result = task.run(given)
    queries = given.features("test")
    database = given.features("train" if preset == "train-val" else "test")
    rows = [
        features.cls().numpy() / np.linalg.norm(features.cls().numpy(), axis=1)[:, None]
        for features in (queries, database)
    ]
    expected = []
    for i, scores in enumerate(rows[0] @ rows[1].T):
        relevant = database.labels == queries.labels[i]
        if preset == "val-loo":
            scores, relevant = np.delete(scores, i), np.delete(relevant, i)
        expected.append(direct_ap(scores, relevant, 7, denominator))
    np.testing.assert_allclose(result.outcomes["map_at_7"], expected, atol=1e-6)
    assert task.main(given) == "map_at_7" and result.scores["map_at_7"].value == pytest.approx(np.mean(expected))


def lists(images: Path, folder: Path) -> Data:
    """Sets of three classes; a third of the images has none, and the database lacks the last class."""
    sets = {"train": ["1 0 0", "1 1 0", "0 0 0"], "val": ["0 1 0", "0 0 1", "0 0 0"]}
    for split, labels in sets.items():
        lines = [f"{split}/class{c}/{i:03d}.png {labels[c]}" for c in range(3) for i in range(6)]
        (folder / f"{split}.txt").write_text("\n".join(lines))
    readers = {
        s: (lambda s=s, f=f: ImageList(images, str(folder / f"{f}.txt")))
        for s, f in (("train", "train"), ("test", "val"))
    }
    return Data("lists", readers)


def test_queries_with_nothing_to_find_are_left_out_or_count_as_0_and_those_without_class_never_count(
    images, run, cache, tmp_path
):
    given = subject(run, lists(images, tmp_path), cache)
    skipped, zero = (Retrieval(empty=empty).run(given) for empty in ("skip", "zero"))
    assert skipped.scores["map"].n == 6 and skipped.skipped["queries without a relevant image"] == 12
    assert zero.scores["map"].n == 12 and zero.skipped["queries without a relevant image"] == 6
    assert zero.scores["map"].value == pytest.approx(skipped.scores["map"].value / 2)
    assert zero.notes == ["6 queries without a relevant image count as 0"] and skipped.notes == []
    cut = [Retrieval(at=5, empty=empty).run(given).scores["map_at_5"].n for empty in ("skip", "zero")]
    assert cut == [6, 12], "the rule is the same for cut rankings"


@pytest.mark.parametrize(
    ("queries", "database", "within", "expected"),
    [
        ([0, 1, 2], [0, 0, 5], False, [True, False, False]),
        ([0, 1, 0], [0, 1, 0], True, [True, False, True]),
        ([[1, 1, 0], [0, 0, 1], [0, 0, 0]], [[0, 1, 0], [0, 0, 0]], False, [True, False, False]),
        ([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]], None, True, [True, True, False, True]),
        ([[1, 0, 0], [0, 1, 1]], None, True, [False, False]),
    ],
)
def test_a_query_has_a_relevant_image_if_another_shares_a_class(queries, database, within, expected):
    labels = np.array(queries)
    assert has_relevant(labels, labels if database is None else np.array(database), within=within).tolist() == expected


def test_the_default_protocol_is_the_one_of_existing_records(images, run, cache):
    given = subject(run, folder_data(images), cache)
    rules = {"preset": "train-val", "ap": "all", "ties": "index", "empty": "skip"}
    found = load_task("retrieval").protocol(given)
    assert {key: found.get(key) for key in rules} == rules and "denominator" not in found
    assert set(found) == {"features", "view", "precision", *rules}
    others = [
        load_task("retrieval", **s).protocol(given) for s in ({"at": 5}, {"at": 5, "denominator": "min"}, {"at": 6})
    ]
    assert len({repr(protocol) for protocol in (found, *others)}) == 4


def test_lists_of_files_are_a_dataset_by_name(images, run, cache, tmp_path):
    for split, part in (("train", "train"), ("test", "val")):
        lines = [f"{images}/{part}/class{c}/{i:03d}.png {c}" for c in range(3) for i in range(6)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    data = load_data("list", tmp_path)
    result = Retrieval().run(subject(run, data, cache))
    assert result.scores["map"].n == 18
    assert all(data.split("test").length(i) for i in range(18))  # sizes, which the fingerprint holds


def test_a_cut_longer_than_the_database_says_so(images, run, cache):
    given = subject(run, folder_data(images), cache)
    Retrieval(at=36).check(given)
    with pytest.raises(Unavailable, match="at=37 exceeds the 36 images"):
        Retrieval(at=37).check(given)


@pytest.mark.parametrize(
    ("settings", "word"), [({"at": 0}, "at=0"), ({"denominator": "all"}, "'all'"), ({"empty": "nan"}, "'nan'")]
)
def test_a_setting_that_cannot_be_is_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        Retrieval(**settings)
