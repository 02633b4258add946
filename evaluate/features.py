"""The feature store: one forward pass per checkpoint, image set and preprocessing, reused by every task.

.cache/features/<key>/NNNNN.npy        (slices, images, D) float32: class tokens of the last blocks, oldest first, then the
                                       average of the last block's patches
.cache/features/<key>/NNNNN.rows.npy   which images of the set these are (damaged ones may be left out)

A shard appears whole or not at all, so an interrupted pass goes on at the first missing shard and several processes may
fill one folder. Logits of a projection head are not stored: they follow from the last class token in no time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pretrain.backbones import preprocess
from pretrain.checkpoint import atomic_file, weights_digest, write_json
from pretrain.datasets import ImageData, ImageError, centre_view

VERSION = 1  # raise it when the same images and weights would give other features
BLOCKS = 4  # the most that any protocol reads
SHARD_BYTES = 32_000_000
SHARD_IMAGES = 4096
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FEW_IMAGES = 2048  # below this, starting decoding processes costs more than they save

_identities: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def identity(backbone: nn.Module) -> str:
    """Digest of weights and architecture: heads of attention, input size and normalisation leave no trace in the weights."""
    if backbone not in _identities:
        text = f"{weights_digest(backbone)} {json.dumps(backbone.spec, sort_keys=True)}"
        _identities[backbone] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return _identities[backbone]


@dataclass(frozen=True)
class Frozen:
    """Stored features of one image set: `rows` are the positions of its images in the set, `skipped` those left out."""

    shards: tuple[Path, ...]
    images: ImageData
    rows: np.ndarray
    blocks: int
    has_average: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def skipped(self) -> int:
        """Images of the set that could not be decoded."""
        return len(self.images) - len(self.rows)

    @property
    def ids(self) -> np.ndarray:
        """Relative path of every image, (n,) text."""
        return np.array([self.images.paths[row] for row in self.rows])

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of the images: (n,) class indices, (n, C) class sets, or None."""
        return None if self.images.labels is None else self.images.labels[self.rows]

    def cls(self, block: int = -1) -> Tensor:
        """Class tokens of one of the last blocks (-1 the last): (n, D) float32."""
        return self._slice(self.blocks + block)

    def average(self) -> Tensor:
        """Average of the last block's patch tokens: (n, D) float32."""
        return self._slice(self.blocks)

    def _slice(self, index: int) -> Tensor:
        return torch.from_numpy(np.concatenate([np.load(path, mmap_mode="r")[index] for path in self.shards]))


class CentreViews(Dataset):
    """index -> (view (S, S, 3) uint8, error): a damaged image is a message, so that it crosses process borders as one line."""

    def __init__(self, images: ImageData, resize: int, crop: int):
        self.images, self.resize, self.crop = images, resize, crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, str]:
        try:
            return centre_view(self.images.image(index), self.resize, self.crop), ""
        except ImageError as error:
            return None, str(error)


class Store:
    """Features on disk below `root`, computed on `device` when first asked for.

    precision: "float32" (default), or "bfloat16" / "float16" for the forward pass; what is stored is float32.
    workers: decoding processes, None for as many as there are cores (none for a small set).
    """

    def __init__(
        self,
        root: str | Path = ".cache",
        *,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        batch_size: int = 128,
        workers: int | None = None,
        quiet: bool = False,
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; use {', '.join(PRECISIONS)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.root, self.device, self.precision = Path(root) / "features", torch.device(device), precision
        self.batch_size, self.workers, self.quiet = batch_size, workers, quiet

    def get(self, backbone: Any, images: ImageData) -> Frozen:
        """Features of every image, computing only the shards that are not stored.

        Raises ImageError naming a damaged image unless `images.skip_bad`, ValueError when features are not finite, and
        OSError when the disk is full.
        """
        blocks, average = min(BLOCKS, backbone.depth), getattr(backbone, "has_average", True)
        settings = self._settings(backbone, images, blocks)
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
        folder = self.root / key
        step = min(SHARD_IMAGES, max(1, SHARD_BYTES // (4 * backbone.dim * (blocks + average))))
        starts = range(0, len(images), step)
        shape = (blocks + average, backbone.dim)
        missing = [start for start in starts if not is_whole(shard_path(folder, start), shape)]
        if missing:
            write_json(folder / "meta.json", settings)
            self._fill(backbone, images, folder, missing, step, blocks, average)
        rows = np.concatenate([np.load(rows_path(folder, start)) for start in starts])
        if len(rows) < len(images) and not images.skip_bad:
            lost = np.setdiff1d(np.arange(len(images)), rows)[0]
            images.image(int(lost))  # raises, unless the image was mended since
            raise ImageError(f"{images.paths[lost]} was damaged when features were stored; remove {folder}")
        if not len(rows):
            raise ImageError(f"no image of {images.name} can be decoded")
        return Frozen(tuple(shard_path(folder, start) for start in starts), images, rows, blocks, bool(average))

    def _settings(self, backbone: Any, images: ImageData, blocks: int) -> dict[str, Any]:
        """Everything that changes a stored number."""
        view = {"resize": backbone.resize, "crop": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
        packages = {name: version(name) for name in ("torch", "timm", "pillow")}
        settings = {"version": VERSION, "weights": identity(backbone), "dataset": images.fingerprint, "view": view}
        return settings | {"blocks": blocks, "precision": self.precision, "packages": packages}

    def _fill(
        self, backbone: Any, images: ImageData, folder: Path, starts: list[int], step: int, blocks: int, average: bool
    ) -> None:
        spans = [(start, min(start + step, len(images))) for start in starts]
        batches = [
            list(range(first, min(first + self.batch_size, stop)))
            for start, stop in spans
            for first in range(start, stop, self.batch_size)
        ]
        todo = sum(stop - start for start, stop in spans)
        views = CentreViews(images, backbone.resize, backbone.image_size)
        loader = self.loader(views, batches, collate_views)
        backbone.to(self.device)
        with self.progress(f"features of {images.name}", len(images), len(images) - todo) as bar:
            stream = zip(batches, loader, strict=True)
            for start, stop in spans:
                rows: list[int] = []
                parts: list[np.ndarray] = []
                while start + len(rows) < stop:  # rows counts damaged images too until the shard is written
                    batch, (pixels, errors) = next(stream)
                    if errors and not images.skip_bad:
                        raise ImageError(next(iter(errors.values())))
                    rows += batch
                    kept = [i for i in range(len(batch)) if i not in errors]
                    if kept:
                        parts.append(self.tokens(backbone, pixels, blocks, average).cpu().numpy())
                        check_finite(parts[-1], [images.paths[batch[i]] for i in kept])
                    bar.update(len(batch))
                self._write(folder, start, rows, parts, (blocks + average, backbone.dim))
        backbone.to("cpu")

    def _write(self, folder: Path, start: int, rows: Any, parts: list[np.ndarray], shape: tuple[int, int]) -> None:
        raise NotImplementedError
