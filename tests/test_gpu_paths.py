"""What runs on a GPU gives the ranks of the CPU: the same code on the CPU everywhere, on CUDA where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from frozen import SPEC

from evaluate import features
from evaluate.features import Store
from evaluate.metrics import knn, knn_classify, knn_search, ranking, retrieval_ap
from evaluate.metrics.ranking import block_ap
from pretrain.backbones import Backbone
from pretrain.datasets import ImageFolder


def problem(kind: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Database and query features with labels; `copies` makes most similarities tie."""
    g = torch.Generator().manual_seed(0)
    database, queries = torch.randn(700, 32, generator=g), torch.randn(50, 32, generator=g)
    if kind == "copies":
        database = database[torch.arange(700) % 90]
    if kind == "nearly collapsed":
        database, queries = 1 + 1e-3 * database, 1 + 1e-3 * queries
    random = np.random.default_rng(0)
    if kind == "class sets":
        return database, queries, random.random((700, 70)) < 0.05, random.random((50, 70)) < 0.05
    return database, queries, random.integers(0, 9, 700), random.integers(0, 9, 50)


KINDS = ["random", "copies", "nearly collapsed", "class sets"]


@pytest.fixture
def torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors on the CPU take the code that a GPU takes."""

    def search(rows: np.ndarray, queries: np.ndarray, k: int, *, prefilter: bool) -> tuple[np.ndarray, np.ndarray]:
        return knn.search_torch(torch.from_numpy(rows), torch.from_numpy(queries), k)

    monkeypatch.setattr(knn, "search_cpu", search)
    compiled = "compiled_ap"
    monkeypatch.setattr(
        ranking.Relevance,
        compiled,
        lambda self, scores, start: block_ap(torch.from_numpy(scores), self, start, None, "retrieved").numpy(),
    )


@pytest.mark.parametrize("kind", KINDS[:3])
def test_votes_of_the_gpu_code_are_those_of_the_cpu(kind, request):
    database, queries, labels, truth = problem(kind)
    expected = knn_classify(database, labels, queries, truth, ks=[1, 20])
    neighbours = knn_search(database, queries, 20)
    request.getfixturevalue("torch_path")
    found = knn_classify(database, labels, queries, truth, ks=[1, 20])
    np.testing.assert_array_equal(knn_search(database, queries, 20)[1], neighbours[1])
    for k in (1, 20):
        np.testing.assert_array_equal(found[k]["predictions"], expected[k]["predictions"])
        assert {name: found[k][name] for name in ("top1", "top5")} == {n: expected[k][n] for n in ("top1", "top5")}


@pytest.mark.parametrize("own", [None, np.arange(50)])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_of_the_gpu_code_are_those_of_the_cpu(kind, own, request):
    database, queries, labels, truth = problem(kind)
    expected = retrieval_ap(queries, database, truth, labels, self_index=own)
    request.getfixturevalue("torch_path")
    np.testing.assert_allclose(retrieval_ap(queries, database, truth, labels, self_index=own), expected, atol=1e-12)


def test_a_pass_that_runs_one_batch_ahead_stores_every_image_where_it_belongs(tmp_path, images, monkeypatch):
    monkeypatch.setattr(features, "SHARD_IMAGES", 7)
    torch.manual_seed(0)
    backbone, train = Backbone(**SPEC).eval().requires_grad_(False), ImageFolder(images, "train")
    expected = Store(tmp_path / "plain", batch_size=3, workers=0, quiet=True).get(backbone, train)
    plain, order = Store(tmp_path, batch_size=3, workers=0, quiet=True), []
    ahead = Store(tmp_path / "ahead", device="cuda", batch_size=3, workers=0, quiet=True)
    original = features.arrived

    def arrived(*arguments):
        order.append("arrived")
        return original(*arguments)

    def tokens(backbone, pixels):
        order.append("launched")
        return plain.tokens(backbone, pixels)

    monkeypatch.setattr(features, "arrived", arrived)
    monkeypatch.setattr(ahead, "tokens", tokens)
    monkeypatch.setattr(ahead, "_loader", plain._loader)
    found = ahead.get(backbone, train)
    assert order[:3] == ["launched", "launched", "arrived"], "the GPU would wait for every copy"
    assert torch.equal(found.cls(), expected.cls()) and found.ids.tolist() == expected.ids.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_on_a_gpu_are_those_on_the_cpu(kind, tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    database, queries, labels, truth = problem(kind)
    neighbours, near = knn_search(database, queries, 20), knn_search(database.cuda(), queries.cuda(), 20)
    np.testing.assert_array_equal(near[1], neighbours[1])
    expected = retrieval_ap(queries, database, truth, labels)
    tolerance = 2e-2 if kind == "nearly collapsed" else 1e-4  # products that differ in the last bit may swap ranks
    np.testing.assert_allclose(retrieval_ap(queries.cuda(), database.cuda(), truth, labels), expected, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_features_and_their_neighbours_on_a_gpu_are_those_on_the_cpu(tmp_path: Path, images, monkeypatch, workers):
    monkeypatch.setattr(features, "SHARD_IMAGES", 7)
    torch.manual_seed(0)
    backbone = Backbone(**SPEC).eval().requires_grad_(False)
    splits = ImageFolder(images, "train"), ImageFolder(images, "val")
    found = {}
    for device in ("cpu", "cuda"):
        store = Store(tmp_path / device, device=device, batch_size=3, workers=workers, quiet=True)
        found[device] = [store.get(backbone, images).cls() for images in splits]
    for here, there in zip(*found.values(), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)
    same = knn_search(*found["cpu"], 1)[1] == knn_search(*found["cuda"], 1)[1]
    assert same.mean() > 0.9
