"""Cosine similarity as every ranking metric uses it: unit rows, then float32 products in blocks of queries.

A database may be larger than the memory: a numpy.memmap is normalised tile by tile, once for every block of queries.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from evaluate.metrics.arrays import as_numpy, check_matrix

SCORES_AT_ONCE = 8_000_000  # one block of float32 scores fills about 32 MB: a cache, not the memory
MAPPED_SCORES = 64_000_000  # of a mapped database more: each block of queries reads and normalises it anew
TILE_ROWS = 65_536  # database rows that are worked on together


class MappedRows:
    """Unit rows (n, d) of a memory-mapped database, made when asked for; `zeros` counts rows without a length.

    Raises ValueError for an empty or non-2-D array and for NaN or infinity, naming the first such row.
    """

    device = torch.device("cpu")

    def __init__(self, features: np.memmap, name: str):
        check_matrix(features, name)
        self.features, self.shape = features, features.shape
        zeros = 0
        for start, raw in self._raw():
            _, lengths = normalised(raw)
            check_lengths(lengths, name, start)
            zeros += int((lengths == 0).sum())
        warn_zeros(zeros, name)

    def __len__(self) -> int:
        return len(self.features)

    def _raw(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self), TILE_ROWS):
            yield start, np.asarray(self.features[start : start + TILE_ROWS])

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """First row and unit rows of every tile."""
        for start, raw in self._raw():
            yield start, normalised(raw)[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        return normalised(np.asarray(self.features[index.numpy()]))[0]


def tiles(rows: Tensor | MappedRows) -> Iterator[tuple[int, Tensor]]:
    """First row and unit rows of every tile of a database on the CPU."""
    if isinstance(rows, MappedRows):
        yield from rows.tiles()
        return
    for start in range(0, len(rows), TILE_ROWS):
        yield start, rows[start : start + TILE_ROWS]


def unit_rows(features: Any, name: str) -> Tensor:
    """Rows of `features` (n, d) divided by their length, float32 on the device of the input.

    A zero row stays zero, so its cosine to everything is 0; one warning tells how many there are. Raises ValueError for
    an empty or non-2-D input and for NaN or infinity, naming the first such row.
    """
    values = features if isinstance(features, Tensor) and features.device.type != "cpu" else as_numpy(features)
    check_matrix(values, name)
    if isinstance(values, Tensor):
        out, lengths = unit_rows_torch(values)
    else:
        out, lengths = normalised(values)
    check_lengths(lengths, name)
    warn_zeros(int((lengths == 0).sum()), name)
    return out


def normalised(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Unit rows float32 and lengths float64 of an array (n, d)."""
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    unit, norms = np.empty(values.shape, np.float32), np.empty(len(values))
    normalise(np.ascontiguousarray(values), unit, norms)
    return torch.from_numpy(unit), torch.from_numpy(norms)


def check_lengths(lengths: Tensor, name: str, first: int = 0) -> None:
    """Raises ValueError naming the first row whose length is NaN or infinite; `first` is the row of lengths[0]."""
    finite = torch.isfinite(lengths)
    if not finite.all():
        raise ValueError(f"{name} hold NaN or infinity, first in row {first + int(torch.argmin(finite.int()))}")


def warn_zeros(zeros: int, name: str) -> None:
    """Warn that some rows have no direction."""
    if zeros:
        warnings.warn(f"{name} hold {zeros} zero vectors; their cosine to everything is 0", stacklevel=3)


@njit(cache=True, parallel=True)
def normalise(rows, out, lengths):
    """Write unit rows and lengths; double precision makes them the correctly rounded ones in any order of summation."""
    for i in prange(len(rows)):
        total = 0.0
        for value in rows[i]:
            total += np.float64(value) * np.float64(value)
        lengths[i] = np.sqrt(total)
        scale = lengths[i] if lengths[i] > 0.0 else 1.0
        for j in range(rows.shape[1]):
            out[i, j] = np.float64(rows[i, j]) / scale


def unit_rows_torch(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows float32 and lengths float64 in torch operations, for a GPU."""
    out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    lengths = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    step = max(1, 50_000_000 // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        exact = rows[part].detach().double()
        lengths[part] = exact.norm(dim=1)
        out[part] = exact / torch.where(lengths[part] > 0, lengths[part], 1.0)[:, None]
    return out, lengths


def unit_pair(queries: Any, database: Any, query_name: str, database_name: str) -> tuple[Tensor, Tensor | MappedRows]:
    """Unit rows of both sides on the database's device; ValueError when their widths differ."""
    mapped = isinstance(database, np.memmap)
    q, d = unit_rows(queries, query_name), (MappedRows if mapped else unit_rows)(database, database_name)
    if q.shape[1] != d.shape[1]:
        raise ValueError(f"{query_name} have width {q.shape[1]}, {database_name} width {d.shape[1]}; they must agree")
    return q.to(d.device), d


def block_rows(database_rows: int) -> int:
    """Queries a block of scores should hold, so that the block is bounded and the product stays efficient."""
    return max(32, SCORES_AT_ONCE // database_rows)


def score_blocks(queries: Tensor, database: Tensor | MappedRows) -> Iterator[tuple[int, Tensor]]:
    """Yield (first query, scores (block, N) float32) of queries @ database.T; the buffer is reused on the CPU.

    Equal database rows get equal scores: a product may round a column by its place in a tile, which would let
    duplicates leave their tie, so the score of a row's first copy is written to its other copies.
    """
    copies, first = duplicate_rows(database)
    rows = block_rows(len(database))
    if isinstance(database, MappedRows):
        rows = max(rows, MAPPED_SCORES // len(database))
    rows = min(rows, len(queries))
    on_cpu = database.device.type == "cpu"
    buffer = torch.empty((rows, len(database)), dtype=torch.float32) if on_cpu else None
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        if buffer is not None:
            scores = buffer[: len(block)]
            for first_row, tile in database.tiles() if isinstance(database, MappedRows) else ((0, database),):
                # numpy's BLAS picks its kernels by the processor; torch's may not on every maker's processor.
                part = scores[:, first_row : first_row + len(tile)]
                np.matmul(block.numpy(), tile.numpy().T, out=part.numpy())
        else:
            assert isinstance(database, Tensor)
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


def duplicate_rows(rows: Tensor | MappedRows) -> tuple[Tensor, Tensor]:
    """Indices of rows that repeat an earlier row, and the index of the first copy of each; two (c,) int64 tensors."""
    # A random projection in wrapping 64-bit integers: equal rows collide for certain; others are compared below.
    weights = np.random.default_rng(0).integers(-(2**62), 2**62, rows.shape[1]) * 2 + 1
    if not isinstance(rows, Tensor) or rows.device.type == "cpu":
        digest = torch.empty(len(rows), dtype=torch.int64)
        for start, tile in tiles(rows):
            digest_rows(tile.numpy().view(np.int32), weights, digest[start : start + len(tile)].numpy())
    else:
        digest = torch.cat([(part.view(torch.int32) * torch.from_numpy(weights).to(part.device)).sum(1)
                            for part in rows.split(max(1, 50_000_000 // rows.shape[1]))])  # fmt: skip
    _, inverse, counts = torch.unique(digest, return_inverse=True, return_counts=True)
    index = torch.arange(len(rows), device=rows.device)
    first = torch.full((len(counts),), len(rows), device=rows.device).scatter_reduce_(0, inverse, index, "amin")[
        inverse
    ]
    copies = torch.nonzero(first != index)[:, 0]
    parts = [(rows[c] == rows[first[c]]).all(dim=1) for c in copies.split(TILE_ROWS)]
    same = torch.cat(parts) if parts else copies.bool()
    return copies[same], first[copies[same]]


@njit(cache=True, parallel=True)
def digest_rows(words, weights, out):
    """Weighted sum of the words of every row, modulo 2^64."""
    for i in prange(len(words)):
        total = np.int64(0)
        for j in range(words.shape[1]):
            total += np.int64(words[i, j]) * weights[j]
        out[i] = total
