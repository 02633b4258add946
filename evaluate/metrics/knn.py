"""Exact nearest neighbours by cosine, and the weighted k-NN vote of the DINO protocol (Wu 2018; Caron 2021).

Similarity = the dot product of float32 unit rows, summed in float64 and rounded to float32; equal similarity goes to
the lower training index. A fast product (bfloat16 where the processor has it, else float32) only proposes: every row
whose proposed score lies within twice the error bound of the k-th best is scored again exactly, so nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from evaluate.metrics import knn_kernels as kernels
from evaluate.metrics.arrays import as_labels
from evaluate.metrics.cosine import full_precision_product, tiles, unit_pair

CPU_QUERIES = 128  # per block: its scores of 50,000 rows stay in the last-level cache
GPU_SCORES = 200_000_000  # float32 scores held on a GPU at a time: 800 MB
GPU_VALUES = 12_500_000  # products in float64 held on a GPU at a time: 100 MB
SPARE = 64  # extra proposals per query on a GPU


class Votes(TypedDict):
    """Accuracies in [0, 1] and the winning class of every test row, for one k."""

    top1: float
    top5: float
    top5_voted: float
    predictions: np.ndarray


def knn_classify(
    train: Any,
    train_labels: Any,
    test: Any,
    test_labels: Any,
    *,
    ks: Sequence[int] | int = (10, 20, 100, 200),
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> dict[int, Votes]:
    """Weighted k-NN accuracy for every k of `ks` from one search.

    Features (n, d) and (m, d), normalised here; labels are class indices. A class scores the sum of exp(cosine / T)
    over its neighbours; equal scores go to the lower class. Returns {k: {"top1", "top5", "top5_voted", "predictions"}}:
    fractions, and predicted classes (m,) int64. Top-5 means top-min(5, k); in `top5_voted` a class without a vote is
    never correct; one without a training image never is. `num_classes` is the largest training label + 1 unless given.

    Raises ValueError for NaN, empty sets, unequal widths or lengths, labels outside 0..C-1, k outside 1..n, and T <= 0.
    """
    wanted = sorted({int(k) for k in ([ks] if isinstance(ks, int) else ks)})
    if not wanted or wanted[0] < 1:
        raise ValueError(f"ks={wanted}: at least one number of neighbours is needed, each at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    labels = class_indices(train_labels, len(train), "training labels")
    truth = class_indices(test_labels, len(test), "test labels")
    classes = int(labels.max(initial=0)) + 1 if num_classes is None else num_classes
    for name, values in (("training labels", labels), ("test labels", truth)):
        if values.max(initial=0) >= classes:
            row = int(np.argmax(values))
            raise ValueError(f"{name} hold {values[row]} in row {row}, outside 0..{classes - 1}; pass num_classes")
    scores, neighbours = knn_search(train, test, wanted[-1])
    predictions = np.empty((len(wanted), len(truth)), np.int64)
    places, voted = np.empty_like(predictions), np.empty(predictions.shape, bool)
    kernels.vote(scores, labels[neighbours], truth, np.array(wanted), temperature, classes, predictions, places, voted)
    places[:, ~np.isin(truth, labels)] = max(5, classes)  # else one of few classes could fill the first five unvoted
    return {k: summary(k, predictions[i], places[i], voted[i]) for i, k in enumerate(wanted)}


def summary(k: int, predictions: np.ndarray, places: np.ndarray, voted: np.ndarray) -> Votes:
    """Accuracies from the place (0 = winner) of each true class and whether it had a vote."""
    near = places < min(5, k)
    return {
        "top1": float((places == 0).mean()),
        "top5": float(near.mean()),
        "top5_voted": float((near & voted).mean()),
        "predictions": predictions,
    }


def class_indices(labels: Any, count: int, name: str) -> np.ndarray:
    """Labels as (n,) int64, or ValueError."""
    array = as_labels(labels, count, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must be class indices (n,) for a k-NN vote, got shape {array.shape}")
    return array


def knn_search(train: Any, test: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar training rows of each test row: cosines (m, k) float32 descending, and indices (m, k) int64.

    Raises ValueError for NaN, empty sets, unequal widths and k outside 1..n.
    """
    queries, rows = unit_pair(test, train, "test features", "training features")
    if not 1 <= k <= len(rows):
        raise ValueError(f"k={k} is outside 1..{len(rows)}, the number of training rows")
    if isinstance(rows, Tensor) and rows.device.type != "cpu":
        return search_torch(rows, queries, k)
    found: tuple[np.ndarray, np.ndarray] | None = None
    for start, tile in tiles(rows):
        near = search_cpu(tile.numpy(), queries.numpy(), min(k, len(tile)), prefilter=has_bfloat16())
        found = merge(found, (near[0], near[1] + start), k)
    assert found is not None
    return found


def merge(
    found: tuple[np.ndarray, np.ndarray] | None, later: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of two searches (scores, indices), the second through rows of higher index."""
    if found is None:
        return later
    scores, indices = (np.concatenate(pair, axis=1) for pair in zip(found, later, strict=True))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; emulated, it would be slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def search_cpu(rows: np.ndarray, queries: np.ndarray, k: int, *, prefilter: bool) -> tuple[np.ndarray, np.ndarray]:
    """`knn_search` on unit rows in numpy, with or without the bfloat16 proposal."""
    scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    todo = np.arange(len(queries))
    for propose in (propose_bfloat16, propose_float32) if prefilter else (propose_float32,):
        if len(todo):
            todo = todo[~propose(rows, queries[todo], k, scores, indices, todo)]
    kernels.search_exhaustively(rows, queries, todo, scores, indices)
    return scores, indices


def propose_bfloat16(rows, queries, k, scores, indices, places) -> np.ndarray:
    """Search by bfloat16 proposals; True per query that is done, False where too many rows are too alike to tell."""
    x, y = torch.from_numpy(queries), torch.from_numpy(rows)
    small_x, small_y = x.bfloat16(), y.bfloat16()
    lost = max(float((y[s] - small_y[s].float()).norm(dim=1).max()) for s in slices(len(y), 4096))
    # |x.y - x'.y'| <= |x - x'||y| + |x'||y - y'| (Cauchy-Schwarz); summing and rounding the result add the rest.
    error = (x - small_x.float()).norm(dim=1) + 1.01 * lost
    slack = (error + rows.shape[1] * 2.0**-23 + 2.0**-8).numpy()

    def product(block: slice) -> np.ndarray:
        return (small_x[block] @ small_y.T).view(torch.int16).numpy()

    return refine_blocks(product, rows, queries, slack, scores, indices, places)


def slices(count: int, step: int) -> Iterator[slice]:
    """Consecutive slices of `step` that cover `count`."""
    return (slice(start, start + step) for start in range(0, count, step))


def propose_float32(rows, queries, k, scores, indices, places) -> np.ndarray:
    """Search by float32 proposals, whose error is at most that of summing d products of unit vectors."""
    slack = np.full(len(queries), (rows.shape[1] + 2) * 2.0**-23, np.float32)
    buffer = np.empty((CPU_QUERIES, len(rows)), np.float32)

    def product(block: slice) -> np.ndarray:
        chosen = queries[block]
        return np.matmul(chosen, rows.T, out=buffer[: len(chosen)]).view(np.int32)

    return refine_blocks(product, rows, queries, slack, scores, indices, places)


def refine_blocks(product, rows, queries, slack, scores, indices, places) -> np.ndarray:
    """Run `product` and the exact second scoring block by block; stops proposing when a block mostly fails."""
    done = np.zeros(len(queries), bool)
    for start in range(0, len(queries), CPU_QUERIES):
        block = slice(start, start + CPU_QUERIES)
        kernels.refine(product(block), rows, queries[block], slack[block], scores, indices, places[block], done[block])
        if start == 0 and done[block].mean() < 0.5:
            break
    return done


def search_torch(rows: Tensor, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`knn_search` in torch, for a GPU: float32 proposals, exact second scoring, and a full search where in doubt."""
    proposals = min(k + SPARE, len(rows))
    slack = (rows.shape[1] + 2) * 2.0**-23
    scores, indices = [], []
    for block in queries.split(max(1, GPU_SCORES // len(rows))):
        proposed, candidates = full_precision_product(block, rows).topk(proposals, dim=1)
        candidates = candidates.sort(dim=1).values
        exact, best = best_of(exact_candidates(rows, block, candidates), candidates, k)
        # A row that was not proposed scores at most the last proposal plus the error of both products.
        doubtful = exact[:, -1] <= proposed[:, -1] + 2 * slack if proposals < len(rows) else exact[:, -1] > 2
        for i in torch.nonzero(doubtful)[:, 0].tolist():
            parts = rows.split(max(1, GPU_VALUES // rows.shape[1]))
            scores_i = torch.cat([(part.double() * block[i].double()).sum(dim=1).float() for part in parts])
            exact[i], best[i] = (
                x[0] for x in best_of(scores_i[None], torch.arange(len(rows), device=rows.device)[None], k)
            )
        scores.append(exact.cpu())
        indices.append(best.cpu())
    return torch.cat(scores).numpy(), torch.cat(indices).numpy()


def exact_candidates(rows: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
    """Cosines (q, c) of candidate rows, summed in float64 and rounded to float32."""
    step = max(1, GPU_VALUES // (candidates.shape[1] * rows.shape[1]))
    chosen = zip(queries.split(step), candidates.split(step), strict=True)
    return torch.cat([(rows[c].double() * q[:, None].double()).sum(dim=2).float() for q, c in chosen])


def best_of(exact: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores and their rows; candidates (q, c) ascend, so a stable sort leaves ties to the lower index."""
    best, order = exact.sort(dim=1, descending=True, stable=True)
    return best[:, :k], candidates.gather(1, order[:, :k])
