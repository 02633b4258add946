"""Retrieval by binary codes: Hamming distance, its prefixes, and the asymmetric distance.

Distances of b bits take b + 1 values, so nearly all items are tied and AP depends on the tie rule. Under `average` (the
default) and `group` it is a function of two histograms of distances, and no ranking is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import special

from evaluate.metrics import hamming_kernels as kernels
from evaluate.metrics.arrays import as_bits, as_labels, as_numpy, check_finite, check_matrix
from evaluate.metrics.cosine import block_rows
from evaluate.metrics.ranking import Relevance, Ties, blockwise_ap, class_words, warn_undefined
from evaluate.metrics.ranking_kernels import TIES


def hamming_ap(
    query_bits: Any,
    database_bits: Any,
    query_labels: Any,
    database_labels: Any,
    *,
    ties: Ties = "average",
    self_index: Any = None,
) -> np.ndarray:
    """Per-query AP (Q,) float64 of the ranking by Hamming distance, NaN where nothing is relevant.

    Bits are (Q, b) and (N, b), 0/1 or bool; labels and `self_index` as in `retrieval_ap`. Raises ValueError for other
    bits, unequal code lengths, empty sets, and unknown tie rules.
    """
    bits = as_bits(query_bits, "query bits")
    return hamming_prefix_ap(
        bits,
        database_bits,
        query_labels,
        database_labels,
        prefixes=(bits.shape[1],),
        ties=ties,
        self_index=self_index,
    )[bits.shape[1]]


def hamming_prefix_ap(
    query_bits: Any,
    database_bits: Any,
    query_labels: Any,
    database_labels: Any,
    *,
    prefixes: Sequence[int] = (256, 128, 64, 32),
    ties: Ties = "average",
    self_index: Any = None,
) -> dict[int, np.ndarray]:
    """`hamming_ap` for the first m bits of every code, for all m of `prefixes` in one pass: {m: AP (Q,)}.

    Raises ValueError as `hamming_ap` does, and for a prefix outside 1..b.
    """
    if ties not in TIES:
        raise ValueError(f"ties={ties!r} is unknown; use one of {', '.join(TIES)}")
    queries, database = as_bits(query_bits, "query bits"), as_bits(database_bits, "database bits")
    check_widths(queries, database)
    for m in prefixes:
        if not 1 <= m <= queries.shape[1]:
            raise ValueError(f"{m} bits are outside 1..{queries.shape[1]}, the length of the codes")
    relevance = Relevance(as_labels(query_labels, len(queries), "query labels"),
                          as_labels(database_labels, len(database), "database labels"), self_index)  # fmt: skip
    lengths = sorted({int(m) for m in prefixes})
    q, ends = code_words(queries, lengths)
    d, _ = code_words(database, lengths)
    out = np.empty((len(lengths), len(queries)))
    codes = (q, np.ascontiguousarray(d.T), ends, np.array(lengths))
    if relevance.queries.ndim == 1:
        classes = (relevance.queries, relevance.order, relevance.offsets)
        kernels.class_ap(*codes, *classes, relevance.skips, TIES[ties], out)
    else:
        kernels.set_ap(*codes, relevance.query_sets, relevance.database_sets, relevance.skips, TIES[ties], out)
    if np.isnan(out).all():
        warn_undefined()
    return {m: out[i] for i, m in enumerate(lengths)}


def check_widths(queries: np.ndarray, database: np.ndarray) -> None:
    """Raises ValueError when the codes of the two sides differ in length, or are longer than a distance can count."""
    if queries.shape[1] > kernels.MOST_BITS:
        raise ValueError(f"codes have {queries.shape[1]} bits; at most {kernels.MOST_BITS} are supported")
    if queries.shape[1] != database.shape[1]:
        raise ValueError(f"query codes have {queries.shape[1]} bits, database codes {database.shape[1]}")


def code_words(bits: np.ndarray, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Codes as (n, W) uint64 such that each prefix is a whole number of words; also that number per prefix."""
    words, ends, start = [], [], 0
    for stop in lengths:
        words.append(class_words(bits[:, start:stop]))
        ends.append(sum(w.shape[1] for w in words))
        start = stop
    return np.concatenate(words, axis=1), np.array(ends)


def asymmetric_hamming_ap(
    query_logits: Any,
    database_bits: Any,
    query_labels: Any,
    database_labels: Any,
    *,
    self_index: Any = None,
) -> np.ndarray:
    """Per-query AP (Q,) of the ranking by sum |sigmoid(query logit) - database bit|, ties by index.

    Logits are (Q, b) real, bits (N, b) 0/1. Higher than the symmetric distance as the query keeps its confidence; never
    compare the two. Raises ValueError as `hamming_ap` does, and for NaN or infinite logits.
    """
    logits, bits = as_numpy(query_logits), as_bits(database_bits, "database bits")
    check_matrix(logits, "query logits")
    check_finite(logits, "query logits")
    check_widths(logits, bits)
    relevance = Relevance(as_labels(query_labels, len(logits), "query labels"),
                          as_labels(database_labels, len(bits), "database labels"), self_index)  # fmt: skip
    return blockwise_ap(asymmetric_scores(logits, bits), relevance, len(logits))


def asymmetric_scores(logits: np.ndarray, bits: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks of scores that rank as the negative distance: |p - b| = p + b (1 - 2 p), and p is the same for all items.

    Equal codes get equal scores, for they are scored once.
    """
    codes, inverse = np.unique(np.packbits(bits, axis=1), axis=0, return_inverse=True)
    distinct = np.unpackbits(codes, axis=1, count=bits.shape[1]).astype(np.float64)
    rows = block_rows(len(bits))
    for start in range(0, len(logits), rows):
        weights = 2 * special.expit(logits[start : start + rows].astype(np.float64)) - 1
        scores = (weights @ distinct.T).astype(np.float32)
        yield start, torch.from_numpy(np.ascontiguousarray(scores[:, inverse.reshape(-1)]))
