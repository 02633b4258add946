"""One vector an image, for tasks whose images have a size of their own; kept block by block like stored features.

.cache/<task>/<key>/NNNNNNNNN.npy    (images, D) float32, NaN where an image could not be decoded

A block appears whole or not at all, so an interrupted task goes on at the first missing one, and several processes may
share the work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from evaluate.cache import hold
from evaluate.claims import share_out
from evaluate.features import PRECISIONS, Store, identity
from evaluate.shards import check_finite, shard_path, write_array
from pretrain.backbones import Features, preprocess
from pretrain.checkpoint import write_json
from pretrain.datasets import ImageData, ImageError

VERSION = 1  # raise it when the same images and weights would give other vectors
BLOCK = 512  # images
Describe = Callable[[Tensor], Tensor]  # uint8 views (B, 3, H, W) -> vectors (B, D)


class Vectors:
    """Vectors of one image set by one backbone, computed when first asked for.

    views: row -> (pixels, row, error) as in `evaluate.views`; describe: what turns views into vectors; settings: every
    choice of both that moves a number. batch_size: images of one call, 1 where their sizes differ.
    """

    def __init__(
        self,
        store: Store,
        backbone: Any,
        task: str,
        images: ImageData,
        views: Dataset,
        describe: Describe,
        settings: Mapping[str, Any],
        batch_size: int = 1,
    ):
        self.store, self.images, self.views, self.describe = store, images, views, describe
        self.batch_size, self.task = batch_size, task
        packages = {name: version(name) for name in ("torch", "timm", "pillow")}
        self.meta = {"version": VERSION, "weights": identity(backbone), "dataset": images.fingerprint}
        self.meta |= {"mean": backbone.mean, "std": backbone.std, "precision": store.precision}
        self.meta |= {"packages": packages, "settings": dict(settings)}
        key = hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode()).hexdigest()[:24]
        self.folder = store.root.parent / task / key

    def get(self) -> np.ndarray:
        """Vectors (n, D) float32 of all images.

        Raises ImageError naming a damaged image unless `images.skip_bad`, and ValueError when vectors are not finite.
        """
        starts = range(0, len(self.images), BLOCK)
        lock = hold(self.folder)
        share_out(self.store.claims, self.folder.name, lambda: [s for s in starts if not self._is_whole(s)], self._fill)
        blocks = [np.load(shard_path(self.folder, start)) for start in starts]
        if lock:
            lock.release()
        width = max(block.shape[1] for block in blocks)
        wide = [block if block.shape[1] == width else np.full((len(block), width), np.nan) for block in blocks]
        found = np.concatenate(wide, dtype=np.float32)
        lost = ~np.isfinite(found).all(1)
        if lost.any() and not self.images.skip_bad:
            self.images.image(int(lost.argmax()))  # raises, unless the image was mended since
            raise ImageError(f"{self.images.paths[int(lost.argmax())]} was damaged before; remove {self.folder}")
        return found

    def prepare(self) -> None:
        """Compute this process's share of the blocks."""
        starts = self.store.share(range(0, len(self.images), BLOCK))
        lock = hold(self.folder)
        share_out(self.store.claims, self.folder.name, lambda: [s for s in starts if not self._is_whole(s)], self._fill)
        if lock:
            lock.release()

    def _is_whole(self, start: int) -> bool:
        try:
            rows = np.load(shard_path(self.folder, start), mmap_mode="r").shape[0]
        except (OSError, ValueError, EOFError):
            return False
        return rows == min(BLOCK, len(self.images) - start)

    def _fill(self, starts: list[int]) -> None:
        """Compute and write the blocks that begin at `starts`."""
        if not starts:
            return
        write_json(self.folder / "meta.json", self.meta | {"checkpoint": self.store.label} | self._names())
        spans = [range(start, min(start + BLOCK, len(self.images))) for start in starts]
        batches = [list(span[i : i + self.batch_size]) for span in spans for i in range(0, len(span), self.batch_size)]
        found: dict[int, np.ndarray] = {}
        with self.store.progress(f"{self.task} on {self.images.name}", sum(map(len, spans))) as bar:
            loader = self.store._loader(self.views, batches)
            for batch, (pixels, rows, errors) in zip(batches, loader, strict=True):
                if errors and not self.images.skip_bad:
                    raise ImageError(errors[0])
                if rows:
                    vectors = self.describe(pixels).cpu().numpy()
                    check_finite(vectors[None], [self.images.paths[row] for row in rows])
                    found |= dict(zip(rows, vectors, strict=True))
                bar.update(len(batch))
                start = batch[0] // BLOCK * BLOCK
                if batch[-1] + 1 in (start + BLOCK, len(self.images)):
                    self._write(start, found)
                    found = {}

    def _names(self) -> dict[str, Any]:
        return {"dataset_name": self.images.name, "images": len(self.images)}

    def _write(self, start: int, found: Mapping[int, np.ndarray]) -> None:
        """A block whose undecodable images are rows of NaN; of one column where there is no other image."""
        rows = range(start, min(start + BLOCK, len(self.images)))
        width = len(next(iter(found.values()))) if found else 1
        lost = np.full(width, np.nan, np.float32)
        write_array(shard_path(self.folder, start), np.stack([found.get(row, lost) for row in rows]))


@torch.no_grad()
def last_block(store: Store, backbone: Any, pixels: Tensor, scale: float = 1.0) -> Features:
    """Features of the last block, float32, of uint8 views (B, 3, H, W) resized bilinearly by `scale` first."""
    views = preprocess(pixels.to(store.device), backbone.mean, backbone.std)
    if scale != 1:
        views = F.interpolate(views, scale_factor=scale, mode="bilinear", align_corners=False)
    kind = PRECISIONS[store.precision]
    cast = torch.autocast(store.device.type, kind) if kind else nullcontext()
    with cast, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # torch allows TF32 in convolutions
        found = backbone.to(store.device).features(views)
    return Features(found.cls.float(), found.patches.float())
