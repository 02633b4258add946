"""What every metric asks of its input: torch tensor or numpy array in, numpy out, one clear error when it is unusable.

This file imports no torch: a tensor is known by its methods, so that numpy-only metrics stay light.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def as_numpy(x: Any) -> np.ndarray:
    """The values of a tensor (any device) or array as a numpy array, without a copy where none is needed."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        # numpy has no bfloat16; float32 holds every bfloat16 exactly.
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x)


def check_matrix(x: Any, name: str) -> None:
    """Raises ValueError unless `x` is a two-dimensional array with at least one row and one column."""
    if x.ndim != 2:
        raise ValueError(f"{name} must be a matrix (items, values), got shape {tuple(x.shape)}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name} are empty: shape {tuple(x.shape)}; at least one row and one column are needed")


def check_finite(x: np.ndarray, name: str) -> None:
    """Raises ValueError naming the first row of `x` that holds NaN or infinity."""
    if x.dtype.kind != "f":
        return
    good = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not good.all():
        raise ValueError(f"{name} hold NaN or infinity, first in row {int(np.argmin(good))}")


def as_labels(labels: Any, count: int, name: str) -> np.ndarray:
    """Class indices (n,) int64 or class sets (n, C) 0/1 uint8; ValueError for any other content or another length."""
    array = as_numpy(labels)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must be (n,) class indices or (n, C) zeros and ones, got shape {tuple(array.shape)}")
    if len(array) != count:
        raise ValueError(f"{name} have {len(array)} entries for {count} items; one label row per item is needed")
    if array.ndim == 2:
        return as_bits(array, name)
    if array.size and array.dtype.kind not in "iub":
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} hold {int(array.min())} in row {int(array.argmin())}; class indices start at 0")
    return array.astype(np.int64, copy=False)


def as_bits(bits: Any, name: str) -> np.ndarray:
    """A 0/1 matrix (n, b) as uint8; ValueError when it is empty or holds another value."""
    array = as_numpy(bits)
    check_matrix(array, name)
    if array.dtype == bool:
        return array.view(np.uint8)
    # Two reductions tell integers apart from bits; anything else is looked at value by value.
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 1:
        wrong = np.argwhere((array != 0) & (array != 1))
        if not len(wrong):
            return array.astype(np.uint8)
        row, column = wrong[0]
        raise ValueError(f"{name} may hold only 0 and 1, got {array[row, column]} in row {row}, column {column}")
    return array.astype(np.uint8, copy=False)


def check_label_pair(queries: np.ndarray, database: np.ndarray) -> None:
    """Raises ValueError when one side has class indices and the other class sets, or the sets differ in width."""
    if queries.ndim != database.ndim:
        raise ValueError("query and database labels must both be (n,) indices or both be (n, C) zeros and ones")
    if queries.ndim == 2 and queries.shape[1] != database.shape[1]:
        raise ValueError(f"query labels have {queries.shape[1]} classes, database labels {database.shape[1]}")
