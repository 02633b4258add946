"""Average precision of full rankings (mAP@ALL): AP = mean over relevant items of (relevant at or above) / rank.

Ties follow an explicit rule. `index`: ascending database index. `average`: the expectation over all orders of a tied
group. `group`: the items of a tied group enter together, as in scikit-learn. On the CPU float32 scores go through
`ranking_kernels`; on a GPU, and for float64 scores, through the torch operations here. Both give the same values.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluate.metrics import ranking_kernels as kernels
from evaluate.metrics.arrays import as_labels, as_numpy, check_finite, check_label_pair, check_matrix
from evaluate.metrics.cosine import block_rows, score_blocks, unit_pair

Ties = Literal["index", "average", "group"]
Cut = Literal["retrieved", "min"]


class MeanAP(NamedTuple):
    """Mean AP in [0, 1] (NaN when undefined), queries that entered it, and queries without a relevant item."""

    value: float
    used: int
    skipped: int


def mean_ap(ap: Any, empty: Literal["skip", "zero"] = "skip") -> MeanAP:
    """Mean of per-query APs (Q,) where NaN marks a query with nothing relevant: left out, or counted as 0 by `zero`.

    Warns and gives NaN, never 0, when no query has a relevant item. Raises ValueError for an unknown rule or no query.
    """
    values = as_numpy(ap).astype(np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"average precisions must be a non-empty vector, got shape {values.shape}")
    if empty not in ("skip", "zero"):
        raise ValueError(f"empty={empty!r} is unknown; use 'skip' or 'zero'")
    missing = np.isnan(values)
    skipped = int(missing.sum())
    if skipped == len(values):
        warn_undefined()
        return MeanAP(float("nan"), 0, skipped)
    if empty == "zero":
        return MeanAP(float(np.where(missing, 0.0, values).mean()), len(values), skipped)
    return MeanAP(float(values[~missing].mean()), len(values) - skipped, skipped)


def warn_undefined() -> None:
    """Warn that no query has anything to find."""
    warnings.warn("no query has a relevant database item; mean average precision is undefined (NaN)", stacklevel=3)


def retrieval_ap(
    queries: Any,
    database: Any,
    query_labels: Any,
    database_labels: Any,
    *,
    self_index: Any = None,
    k: int | None = None,
    denominator: Cut = "retrieved",
) -> np.ndarray:
    """Per-query AP of the cosine ranking of the whole database, (Q,) float64, NaN where nothing is relevant.

    Features are (Q, d) and (N, d), normalised here. Labels are class indices (n,), relevant when equal, or class sets
    (n, C) of zeros and ones, relevant when they share a class. `self_index` (Q,) names the database row each query
    leaves out. `k` truncates the ranking: the sum is divided by the relevant items within k (AP 0 when there are none),
    or with denominator="min" by min(relevant, k). Ties go to the lower database index. Never holds Q x N scores.

    Raises ValueError for NaN, empty sets, unequal widths or lengths, and indices outside the database.
    """
    q, d = unit_pair(queries, database, "query features", "database features")
    relevance = Relevance(as_labels(query_labels, len(q), "query labels"),
                          as_labels(database_labels, len(d), "database labels"), self_index)  # fmt: skip
    check_cut(k, denominator, len(d))
    return blockwise_ap(score_blocks(q, d), relevance, len(q), k, denominator)


def ranking_ap(
    scores: Any, relevant: Any, *, ties: Ties = "index", k: int | None = None, denominator: Cut = "retrieved"
) -> np.ndarray:
    """Per-query AP of rankings by descending score (Q, N) with relevance (Q, N) bool; (Q,) float64, NaN if none.

    `ties` is "index", "average" or "group" (see the module); a cut at `k` needs "index". Raises ValueError for NaN or
    infinite scores, other shapes and unknown rules.
    """
    if ties not in kernels.TIES:
        raise ValueError(f"ties={ties!r} is unknown; use one of {', '.join(kernels.TIES)}")
    values = scores.detach() if isinstance(scores, Tensor) else np.asarray(scores)
    check_matrix(values, "scores")
    flags = torch.as_tensor(relevant).bool()
    if tuple(flags.shape) != tuple(values.shape):
        raise ValueError(f"relevance has shape {tuple(flags.shape)}, scores {tuple(values.shape)}; they must agree")
    check_cut(k, denominator, values.shape[1])
    if k is not None and ties != "index":
        raise ValueError(f"a ranking cut at k={k} is defined for ties='index' only, got ties={ties!r}")
    if not isinstance(values, Tensor) or values.device.type == "cpu":
        exact = exact_float(as_numpy(values))
        check_finite(exact, "scores")
        if exact.dtype == np.float32 and k is None:
            return rows_ap(np.ascontiguousarray(exact), as_numpy(flags).view(np.uint8), ties)
        values = torch.from_numpy(exact)
    elif not torch.isfinite(values).all():
        check_finite(as_numpy(values), "scores")
    rows = block_rows(values.shape[1])
    parts = [(values[i : i + rows], flags[i : i + rows]) for i in range(0, len(values), rows)]
    return np.concatenate([as_numpy(sorted_ap(s, f.to(s.device), ties, k, denominator)) for s, f in parts])


def exact_float(values: np.ndarray) -> np.ndarray:
    """The scores as float32 where that loses nothing, else as float64, so that ties stay ties and others do not."""
    if values.dtype in (np.float16, np.float32):
        return values.astype(np.float32, copy=False)
    if values.dtype.kind in "iub" and (values.dtype.itemsize <= 2 or np.abs(values).max(initial=0) <= 2**24):
        return values.astype(np.float32)
    return values.astype(np.float64, copy=False)


def rows_ap(scores: np.ndarray, relevant: np.ndarray, ties: str) -> np.ndarray:
    """The compiled form of `ranking_ap` for float32 scores."""
    out = np.empty(len(scores))
    kernels.ranking_rows_ap(scores, np.ascontiguousarray(relevant), kernels.TIES[ties], out)
    return out


def check_cut(k: int | None, denominator: str, database_rows: int) -> None:
    """Raises ValueError for a cut outside 1..N or an unknown denominator."""
    if k is not None and not 1 <= k <= database_rows:
        raise ValueError(f"k={k} is outside 1..{database_rows}, the size of the database")
    if denominator not in ("retrieved", "min"):
        raise ValueError(f"denominator={denominator!r} is unknown; use 'retrieved' or 'min'")


class Relevance:
    """Which database items are relevant to which query: by class or by shared class, minus the query itself."""

    def __init__(self, queries: np.ndarray, database: np.ndarray, self_index: Any = None) -> None:
        check_label_pair(queries, database)
        self.queries, self.database = queries, database
        self.skips = np.full(len(queries), -1, np.int64)
        if self_index is not None:
            self.skips = as_numpy(self_index).astype(np.int64)
            if self.skips.shape != (len(queries),):
                raise ValueError(f"self_index has shape {self.skips.shape}; one row per query, ({len(queries)},)")
            outside = (self.skips < 0) | (self.skips >= len(database))
            if outside.any():
                row = int(np.argmax(outside))
                raise ValueError(
                    f"self_index[{row}] is {self.skips[row]}; the database has rows 0..{len(database) - 1}"
                )
        if queries.ndim == 1:
            self.order = np.argsort(database, kind="stable")
            counts = np.bincount(database, minlength=1)
            self.offsets = np.concatenate([[0], np.cumsum(counts)])
        else:
            self.query_sets, self.database_sets = class_words(queries), np.ascontiguousarray(class_words(database).T)

    def compiled_ap(self, scores: np.ndarray, start: int) -> np.ndarray:
        """AP of a block of float32 scores whose first row is query `start`, ties by index."""
        rows, out = slice(start, start + len(scores)), np.empty(len(scores))
        if self.queries.ndim == 1:
            kernels.single_label_ap(scores, self.queries[rows], self.skips[rows], self.order, self.offsets, out)
        else:
            kernels.multi_label_ap(scores, self.query_sets[rows], self.database_sets, self.skips[rows], out)
        return out

    def flags(self, start: int, rows: int, device: torch.device) -> Tensor:
        """Relevance (rows, N) bool of queries start.. on `device`; the query itself is not relevant."""
        q = torch.from_numpy(self.queries[start : start + rows]).to(device)
        d = torch.from_numpy(self.database).to(device)
        flags = q[:, None] == d if q.ndim == 1 else (q.float() @ d.float().T) > 0
        skips = torch.from_numpy(self.skips[start : start + rows]).to(device)
        own = torch.nonzero(skips >= 0)[:, 0]
        flags[own, skips[own]] = False
        return flags


def class_words(sets: np.ndarray) -> np.ndarray:
    """Class sets (n, C) as bit sets (n, ceil(C / 64)) uint64."""
    packed = np.packbits(sets, axis=1)
    padded = np.zeros((len(sets), -(-sets.shape[1] // 64) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def blockwise_ap(
    blocks: Iterable[tuple[int, Tensor]],
    relevance: Relevance,
    count: int,
    k: int | None = None,
    denominator: Cut = "retrieved",
) -> np.ndarray:
    """AP (count,) over blocks of (first query, float32 scores (rows, N)), ties by index."""
    out = np.empty(count)
    for start, scores in blocks:
        rows = slice(start, start + len(scores))
        if scores.device.type == "cpu" and k is None:
            out[rows] = relevance.compiled_ap(scores.numpy(), start)
        else:
            out[rows] = as_numpy(block_ap(scores, relevance, start, k, denominator))
    if np.isnan(out).all():
        warn_undefined()
    return out


def block_ap(scores: Tensor, relevance: Relevance, start: int, k: int | None, denominator: Cut) -> Tensor:
    """The torch form of `Relevance.compiled_ap`: the query itself is sent behind everything else, hence uncounted."""
    skips = torch.from_numpy(relevance.skips[start : start + len(scores)]).to(scores.device)
    own = torch.nonzero(skips >= 0)[:, 0]
    scores = scores.clone()
    scores[own, skips[own]] = -torch.inf
    return sorted_ap(scores, relevance.flags(start, len(scores), scores.device), "index", k, denominator)


def sorted_ap(scores: Tensor, relevant: Tensor, ties: Ties, k: int | None, denominator: Cut) -> Tensor:
    """AP (Q,) float64 of scores (Q, N) with relevance (Q, N) bool, by a stable sort on the scores' device."""
    ranked, order = torch.sort(scores, dim=1, descending=True, stable=True)
    hits = torch.gather(relevant, 1, order).double()  # (Q, N)
    found = hits.cumsum(1)
    total = found[:, -1]
    rank = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=torch.float64).expand_as(found)
    gain = hits * found / rank if ties == "index" else tied_gain(ranked, hits, found, rank, ties)
    if k is None:
        return gain.sum(1) / torch.where(total > 0, total, torch.nan)
    if denominator == "min":
        return gain[:, :k].sum(1) / torch.where(total > 0, total.clamp(max=k), torch.nan)
    return gain[:, :k].sum(1) / found[:, k - 1].clamp(min=1)


def tied_gain(ranked: Tensor, hits: Tensor, found: Tensor, rank: Tensor, ties: Ties) -> Tensor:
    """Precision that each place (Q, N) adds under the rules `average` and `group`, from sorted scores."""
    place = torch.arange(ranked.shape[1], device=ranked.device).expand_as(ranked)
    new = torch.ones_like(ranked, dtype=torch.bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    first = torch.where(new, place, 0).cummax(1).values
    last = torch.ones_like(new)
    last[:, :-1] = new[:, 1:]
    end = torch.where(last, place, ranked.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    found_end = found.gather(1, end)
    if ties == "group":
        return hits * found_end / (end + 1)
    before = found.gather(1, first) - hits.gather(1, first)
    n, r = (end - first + 1).double(), found_end - before
    slope = (r - 1) / (n - 1).clamp(min=1)
    return r / n * (before + 1 + (place - first) * slope) / rank
