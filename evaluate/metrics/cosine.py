"""Cosine similarity as every ranking metric uses it: unit rows, then float32 products in blocks of queries."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS_AT_ONCE = 16_384
SCORES_AT_ONCE = 8_000_000  # one block of float32 scores fills about 32 MB: a cache, not the memory


def unit_rows(features: Any, name: str) -> Tensor:
    """Rows of `features` (n, d) divided by their length, float32 on the device of the input.

    A zero row stays zero, so its cosine to everything is 0; one warning tells how many there are. Raises ValueError for
    an empty or non-2-D input and for NaN or infinity, naming the first such row.
    """
    if not isinstance(features, Tensor):
        features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name} must be a non-empty (items, width) matrix, got shape {tuple(features.shape)}")
    out, zeros = None, 0
    for start in range(0, len(features), ROWS_AT_ONCE):
        rows = features[start : start + ROWS_AT_ONCE]
        # Double precision makes the unit row the correctly rounded one, whatever the order of summation.
        rows = rows.detach().double() if isinstance(rows, Tensor) else torch.from_numpy(rows.astype(np.float64))
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        finite = torch.isfinite(lengths[:, 0])
        if not finite.all():
            raise ValueError(f"{name} hold NaN or infinity, first in row {start + int(torch.argmin(finite.int()))}")
        zero = lengths == 0
        zeros += int(zero.sum())
        if out is None:
            out = torch.empty(features.shape, dtype=torch.float32, device=rows.device)
        out[start : start + len(rows)] = rows / lengths.masked_fill_(zero, 1.0)
    assert out is not None
    if zeros:
        warnings.warn(f"{name} hold {zeros} zero vectors; their cosine to everything is 0", stacklevel=3)
    return out


def unit_pair(queries: Any, database: Any, query_name: str, database_name: str) -> tuple[Tensor, Tensor]:
    """Unit rows of both sides on the database's device; ValueError when their widths differ."""
    q, d = unit_rows(queries, query_name), unit_rows(database, database_name)
    if q.shape[1] != d.shape[1]:
        raise ValueError(f"{query_name} have width {q.shape[1]}, {database_name} width {d.shape[1]}; they must agree")
    return q.to(d.device), d


def block_rows(database_rows: int) -> int:
    """Queries a block of scores should hold, so that the block is bounded and the product stays efficient."""
    return max(32, SCORES_AT_ONCE // database_rows)


def score_blocks(queries: Tensor, database: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first query, scores (block, N) float32) of queries @ database.T; the buffer is reused on the CPU.

    Equal database rows get equal scores: a product may round a column by its place in a tile, which would let
    duplicates leave their tie, so the score of a row's first copy is written to its other copies.
    """
    copies, first = duplicate_rows(database)
    rows = min(block_rows(len(database)), len(queries))
    on_cpu = database.device.type == "cpu"
    buffer = torch.empty((rows, len(database)), dtype=torch.float32) if on_cpu else None
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        if buffer is not None:
            scores = buffer[: len(block)]
            # numpy's BLAS picks its kernels by the processor; torch's may not on every maker's processor.
            np.matmul(block.numpy(), database.numpy().T, out=scores.numpy())
        else:
            scores = full_precision_product(block, database)
        if len(copies):
            scores[:, copies] = scores[:, first]
        yield start, scores


def full_precision_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in true float32, even where the process allows TensorFloat-32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return a @ b.T
    finally:
        torch.set_float32_matmul_precision(before)


def duplicate_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of rows that repeat an earlier row, and the index of the first copy of each; two (c,) int64 tensors."""
    # A random projection in wrapping 64-bit integers: equal rows collide for certain, others with chance 2^-64 or so.
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).mul_(2).add_(1).to(rows.device)
    digest = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        words = (rows[start : start + ROWS_AT_ONCE] + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 removes -0.0
        digest[start : start + len(words)] = (words * weights).sum(dim=1)
    _, inverse, counts = torch.unique(digest, return_inverse=True, return_counts=True)
    if int(counts.max()) == 1:
        empty = torch.empty(0, dtype=torch.int64, device=rows.device)
        return empty, empty
    index = torch.arange(len(rows), device=rows.device)
    first = torch.full((len(counts),), len(rows), device=rows.device).scatter_reduce_(0, inverse, index, "amin")[inverse]
    copies = torch.nonzero(first != index)[:, 0]
    same = (rows[copies] == rows[first[copies]]).all(dim=1)
    return copies[same], first[copies[same]]
