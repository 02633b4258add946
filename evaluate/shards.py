"""Shards of the feature store: tokens on their way from the device to a file that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.checkpoint import atomic_file


class Copy:
    """A tensor on its way to main memory: a GPU goes on with other work until the values are asked for."""

    def __init__(self, values: Tensor):
        self._host = values.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if values.is_cuda else None
        if self._event:
            self._event.record(torch.cuda.current_stream(values.device))

    def numpy(self) -> np.ndarray:
        """The values, once they are there."""
        if self._event:
            self._event.synchronize()
        return self._host.numpy()


def arrived(batch: list[int], kept: list[int], copy: Copy | None) -> tuple[list[int], list[int], np.ndarray | None]:
    """A batch with its tokens in main memory."""
    return batch, kept, copy.numpy() if copy else None


def as_stored(tokens: np.ndarray, kind: str, paths: list[str]) -> np.ndarray:
    """Tokens (slices, B, D) in the type they are kept in.

    Raises ValueError naming the first image whose tokens are not finite, or too large for that type.
    """
    check_finite(tokens, paths)
    with np.errstate(over="ignore"):
        kept = tokens.astype(kind, copy=False)
    fits = np.isfinite(kept).all(axis=(0, 2))
    if not fits.all():
        raise ValueError(f"features of {paths[int(np.argmin(fits))]} exceed what {kind} holds; use store=float32")
    return kept


def check_finite(tokens: np.ndarray, paths: list[str]) -> None:
    """Raises ValueError naming the first image whose tokens (slices, B, D) hold NaN or infinity."""
    good = np.isfinite(tokens).all(axis=(0, 2))
    if not good.all():
        raise ValueError(
            f"features hold NaN or infinity, first for {paths[int(np.argmin(good))]}; "
            "the weights have diverged, or precision=float32 is needed"
        )


def shard_path(folder: Path, start: int) -> Path:
    """File of the shard whose first image is `start`."""
    return folder / f"{start:09d}.npy"


def rows_path(folder: Path, start: int) -> Path:
    """File with the images that a shard holds."""
    return folder / f"{start:09d}.rows.npy"


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array so that it appears whole or not at all."""
    with atomic_file(path) as file:
        np.save(file, array)


def is_whole(path: Path, slices: int, dim: int) -> bool:
    """Whether a shard can be read as (slices, images, dim); a damaged one is computed again."""
    try:
        stored = np.load(path, mmap_mode="r").shape
        rows = np.load(path.with_suffix(".rows.npy")).shape
    except (OSError, ValueError, EOFError):
        return False
    return stored == (slices, *rows, dim)
