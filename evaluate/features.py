"""The feature store: one forward pass per checkpoint, image set and preprocessing, reused by every task.

.cache/features/<key>/NNNNN.npy        (slices, images, D) float32 or float16: class tokens of the last blocks, oldest
                                       first, then the average of the last block's patches
.cache/features/<key>/NNNNN.rows.npy   which images of the set these are (damaged ones may be left out)
.cache/features/<key>/meta.json        all that the key stands for, and the names it had

A shard appears whole or not at all, so an interrupted pass goes on at the first missing shard and several processes may
fill one folder. Logits of a projection head are not stored: they follow from the last class token in no time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from evaluate.cache import Hold, hold
from evaluate.claims import Claims, share_out
from evaluate.shards import Copy, arrived, as_stored, is_whole, rows_path, shard_path, write_array
from evaluate.views import CentreViews, RandomCrops, collate
from pretrain import checkpoint
from pretrain.backbones import preprocess
from pretrain.checkpoint import write_json
from pretrain.datasets import ImageData, ImageError

VERSION = 1  # raise it when the same images and weights would give other features
BLOCKS = 4  # the most that any protocol reads
SHARD_BYTES = 32_000_000
SHARD_IMAGES = 4096
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = ("float32", "float16")
FEW_IMAGES = 2048  # below this, starting decoding processes costs more than they save

_identities: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def identity(backbone: Any) -> str:
    """`pretrain.checkpoint.identity`, computed once."""
    if backbone not in _identities:
        _identities[backbone] = checkpoint.identity(backbone)
    return _identities[backbone]


@dataclass(frozen=True)
class Layout:
    """Slices of a backbone's tokens: class tokens of `blocks` last blocks, then the patch average if there is one."""

    blocks: int
    average: bool
    dim: int

    @classmethod
    def of(cls, backbone: Any) -> Layout:
        """What is stored of a backbone."""
        return cls(min(BLOCKS, backbone.depth), getattr(backbone, "has_average", True), backbone.dim)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.blocks + self.average

    @property
    def shard_images(self) -> int:
        """Images of a full shard."""
        return min(SHARD_IMAGES, max(1, SHARD_BYTES // (4 * self.slices * self.dim)))


@dataclass(frozen=True)
class Frozen:
    """Stored features of one image set: `rows` are the positions of its images in the set.

    While it is referred to, the cache tool leaves its files alone.
    """

    shards: tuple[Path, ...]
    images: ImageData
    rows: np.ndarray
    layout: Layout
    lock: Hold | None = field(default=None, repr=False)

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
    def labels(self) -> np.ndarray:
        """Labels of the images: (n,) class indices or (n, C) class sets."""
        assert self.images.labels is not None
        return self.images.labels[self.rows]

    def cls(self, block: int = -1) -> Tensor:
        """Class tokens of one of the last blocks (-1 the last): (n, D) float32."""
        return self._slice(self.layout.blocks + block)

    def average(self) -> Tensor | None:
        """Average of the last block's patch tokens, (n, D) float32, where the backbone has one."""
        return self._slice(self.layout.blocks) if self.layout.average else None

    def _slice(self, index: int) -> Tensor:
        parts = [np.load(path, mmap_mode="r")[index] for path in self.shards]
        return torch.from_numpy(np.concatenate(parts, dtype=np.float32))


class Store:
    """Features on disk below `root`, computed on `device` when first asked for.

    precision: "float32" (default), or "bfloat16" / "float16" for the forward pass; store: "float32" (default) or
    "float16", half the size on disk. Tasks get float32 either way. workers: decoding processes, None for as many as
    there are cores (none for a small set). rank, world: of this process among those that fill the store together, each
    every `world`-th shard; local_world of them share this machine's cores. `label` names the checkpoint at hand for
    people who look into the cache.
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
        store: str = "float32",
        rank: int = 0,
        world: int = 1,
        local_world: int = 1,
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; use {', '.join(PRECISIONS)}")
        if store not in STORED:
            raise ValueError(f"store={store!r} is no type that features are kept in; use {' or '.join(STORED)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.root, self.device, self.precision = Path(root) / "features", torch.device(device), precision
        self.batch_size, self.workers, self.quiet = batch_size, workers, quiet
        self.rank, self.world, self.local_world = rank, world, local_world
        self.stored, self.label = store, ""
        self.claims: Claims | None = None

    def share(self, items: Sequence[Any]) -> list[Any]:
        """The part of `items` that this process computes: every `world`-th, from `rank` on."""
        return list(items[self.rank :: self.world])

    def get(self, backbone: Any, images: ImageData) -> Frozen:
        """Features of every image, computing only the shards that are not stored.

        Raises ImageError naming a damaged image unless `images.skip_bad`, ValueError when features are not finite, and
        OSError when the disk is full.
        """
        folder, layout, starts, lock = self._open(backbone, images)
        self._fill(backbone, images, folder, starts, layout)
        rows = np.concatenate([np.load(rows_path(folder, start)) for start in starts])
        if len(rows) < len(images) and not images.skip_bad:
            lost = int(np.setdiff1d(np.arange(len(images)), rows)[0])
            images.image(lost)  # raises, unless the image was mended since
            raise ImageError(f"{images.paths[lost]} was damaged when features were stored; remove {folder}")
        if not len(rows):
            raise ImageError(f"no image of {images.name} can be decoded")
        return Frozen(tuple(shard_path(folder, start) for start in starts), images, rows, layout, lock)

    def prepare(self, backbone: Any, images: ImageData) -> None:
        """Compute this process's share of the shards; raises as `get` does."""
        folder, layout, starts, lock = self._open(backbone, images)
        self._fill(backbone, images, folder, self.share(starts), layout)
        if lock:
            lock.release()

    def _open(self, backbone: Any, images: ImageData) -> tuple[Path, Layout, range, Hold | None]:
        """Folder of an image set's features, their layout, the first image of every shard, and the folder's lock."""
        layout = Layout.of(backbone)
        settings = self._settings(backbone, images, layout)
        folder = self.root / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
        lock = hold(folder)
        if not (folder / "meta.json").exists():
            names = {"checkpoint": self.label, "dataset_name": images.name, "images": len(images)}
            write_json(folder / "meta.json", settings | names)
        return folder, layout, range(0, len(images), layout.shard_images), lock

    def _settings(self, backbone: Any, images: ImageData, layout: Layout) -> dict[str, Any]:
        """Everything that changes a stored number."""
        view = {"resize": backbone.resize, "crop": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
        packages = {name: version(name) for name in ("torch", "timm", "pillow")}
        settings = {"version": VERSION, "weights": identity(backbone), "dataset": images.fingerprint, "view": view}
        settings |= {"blocks": layout.blocks, "precision": self.precision, "packages": packages}
        return settings | ({} if self.stored == "float32" else {"stored": self.stored})

    def _fill(self, backbone: Any, images: ImageData, folder: Path, starts: Sequence[int], layout: Layout) -> None:
        """Have those of the shards beginning at `starts` computed that are not there."""

        def missing() -> list[int]:
            return [start for start in starts if not is_whole(shard_path(folder, start), layout.slices, layout.dim)]

        def fill(part: list[int]) -> None:
            self._write(backbone, images, folder, part, layout)

        share_out(self.claims, folder.name, missing, fill)

    def _write(self, backbone: Any, images: ImageData, folder: Path, missing: Sequence[int], layout: Layout) -> None:
        """Compute and write the shards beginning at `missing`."""
        step = layout.shard_images
        spans = [(start, min(start + step, len(images))) for start in missing]
        batches = [
            list(range(first, min(first + self.batch_size, stop)))
            for start, stop in spans
            for first in range(start, stop, self.batch_size)
        ]
        if not batches:
            return
        ends = {stop for _, stop in spans}
        rows: list[int] = []
        parts = [np.zeros((layout.slices, 0, layout.dim), self.stored)]
        with self.progress(f"features of {images.name}", sum(map(len, batches))) as bar:
            for batch, kept, tokens in self._forward(backbone, images, batches):
                if tokens is not None:
                    parts.append(as_stored(tokens, self.stored, [images.paths[row] for row in kept]))
                rows += kept
                bar.update(len(batch))
                if batch[-1] + 1 in ends:
                    start = batch[0] // step * step
                    write_array(rows_path(folder, start), np.array(rows, np.int64))
                    write_array(shard_path(folder, start), np.concatenate(parts, axis=1))
                    rows, parts = [], parts[:1]

    def _forward(
        self, backbone: Any, images: ImageData, batches: list[list[int]]
    ) -> Iterator[tuple[list[int], list[int], np.ndarray | None]]:
        """Every batch, its rows that could be decoded, and their tokens (slices, b, D) float32.

        With a GPU one batch behind: it computes the next one while the last is copied back and checked.
        """
        loader = self._loader(CentreViews(images, backbone.resize, backbone.image_size), batches)
        waiting: list[tuple[list[int], list[int], Copy | None]] = []
        for batch, (pixels, kept, errors) in zip(batches, loader, strict=True):
            if errors and not images.skip_bad:
                raise ImageError(errors[0])
            waiting.append((batch, kept, Copy(self.tokens(backbone, pixels)) if kept else None))
            while len(waiting) > (self.device.type == "cuda"):
                yield arrived(*waiting.pop(0))
        yield from (arrived(*one) for one in waiting)

    def random_crops(
        self, backbone: Any, images: ImageData, table: Tensor, seed: int, interpolation: str = "bicubic"
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Tokens (slices, b, D) of fresh random crops of the images in each row of `table` (steps, b), and their rows.

        Nothing is stored. Raises ImageError naming a damaged image unless `images.skip_bad`.
        """
        draws = torch.arange(table.numel()).view_as(table)
        batches = [list(zip(d, r, strict=True)) for d, r in zip(draws.tolist(), table.tolist(), strict=True)]
        for pixels, rows, errors in self._loader(
            RandomCrops(images, backbone.image_size, seed, interpolation), batches
        ):
            if errors:
                raise ImageError(errors[0])
            yield torch.cat([self.tokens(backbone, part) for part in pixels.split(self.batch_size)], dim=1), rows

    @torch.no_grad()
    def tokens(self, backbone: Any, pixels: Tensor) -> Tensor:
        """Tokens of uint8 views (B, 3, S, S): (slices, B, D) float32 on the device."""
        layout = Layout.of(backbone)
        views = preprocess(pixels.to(self.device, non_blocking=True), backbone.mean, backbone.std)
        kind = PRECISIONS[self.precision]
        cast = torch.autocast(self.device.type, kind) if kind else nullcontext()
        with cast, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # torch allows TF32 in convolutions
            found = backbone.to(self.device).blocks(views, layout.blocks)
        kinds = [features.cls.float() for features in found]
        kinds += [found[-1].patches.float().mean((1, 2))] if layout.average else []
        return torch.stack(kinds)

    def _loader(self, dataset: Dataset, batches: Sequence[Sequence[Any]]) -> DataLoader:
        """Batches of a dataset in the given order, decoded by as many processes as are worth starting."""
        workers = self.workers
        if workers is None:
            workers = (
                0 if sum(map(len, batches)) < FEW_IMAGES else min(16, max(1, (os.cpu_count() or 1) // self.local_world))
            )
        pin = self.device.type == "cuda"
        return DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pin)  # type: ignore[arg-type]

    def progress(self, what: str, total: int, unit: str = "image") -> tqdm:
        """Progress bar with an estimate; silent where no one watches."""
        return tqdm(total=total, desc=what, unit=unit, disable=True if self.quiet else None, leave=False)
