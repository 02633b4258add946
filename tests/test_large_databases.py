"""A database is worked on tile by tile, in memory or mapped from a file, and gives what it gives in one piece."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from evaluate.metrics import cosine, knn_search, retrieval_ap

TILE = 64


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(cosine, "TILE_ROWS", TILE)


def rows(count: int, seed: int, distinct: int | None = None) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((distinct or count, 24)).astype(np.float32)
    return np.resize(found, (count, 24)) if distinct else found


def mapped(path: Path, values: np.ndarray) -> np.memmap:
    np.save(path / "rows.npy", values)
    return np.load(path / "rows.npy", mmap_mode="r")


@pytest.mark.parametrize("distinct", [None, 30])
@pytest.mark.parametrize("k", [1, 20, 100])
def test_neighbours_do_not_depend_on_the_tiles(small_tiles, tmp_path, monkeypatch, k, distinct):
    database, queries = rows(500, 0, distinct), rows(9, 1)
    tiled, from_file = knn_search(database, queries, k), knn_search(mapped(tmp_path, database), queries, k)
    monkeypatch.setattr(cosine, "TILE_ROWS", 10_000)
    whole = knn_search(database, queries, k)
    for found in (tiled, from_file):
        np.testing.assert_array_equal(found[1], whole[1])
        np.testing.assert_array_equal(found[0], whole[0])


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("distinct", [None, 30])
def test_average_precision_of_a_mapped_database_is_that_of_one_in_memory(small_tiles, tmp_path, distinct, multi):
    database, g = rows(300, 0, distinct), np.random.default_rng(2)
    labels = (g.random((300, 70)) < 0.05).astype(int) if multi else g.integers(0, 6, 300)
    own = np.arange(40)
    expected = retrieval_ap(database[:40], database, labels[:40], labels, self_index=own)
    found = retrieval_ap(database[:40], mapped(tmp_path, database), labels[:40], labels, self_index=own)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_copies_in_different_tiles_tie_and_keep_their_order(small_tiles, tmp_path):
    database = rows(300, 0, 1)
    labels = np.arange(300) % 2
    ap = retrieval_ap(database[:1], mapped(tmp_path, database), [0], labels)
    np.testing.assert_allclose(ap, np.mean([(i + 1) / (2 * i + 1) for i in range(150)]), atol=1e-12)


def test_a_damaged_row_of_a_mapped_database_is_named_by_its_place(small_tiles, tmp_path):
    database = rows(300, 0)
    database[200, 3] = np.nan
    with pytest.raises(ValueError, match="first in row 200"):
        knn_search(mapped(tmp_path, database), rows(2, 1), 5)


def test_zero_vectors_of_all_tiles_are_told_once(small_tiles, tmp_path):
    database = rows(300, 0)
    database[[3, 100, 299]] = 0
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        knn_search(mapped(tmp_path, database), rows(2, 1), 5)
    assert [str(warning.message).split(" zero")[0] for warning in heard] == ["training features hold 3"]


def test_scores_are_held_for_a_few_queries_at_a_time(monkeypatch):
    monkeypatch.setattr(cosine, "SCORES_AT_ONCE", 40_000)
    queries, database = (cosine.unit_rows(rows(count, 0), "rows") for count in (200, 1000))
    sizes = [scores.numel() for _, scores in cosine.score_blocks(queries, database)]
    assert max(sizes) == 40_000 and sum(sizes) == 200_000
