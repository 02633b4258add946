"""Patch tokens and attention keys of a frozen backbone at any input size, for the tasks that read space.

Nothing is stored: a dense map is hundreds of times larger than a class token, and each is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from evaluate.features import PRECISIONS, Store
from evaluate.views import View, crop_box
from pretrain.backbones import preprocess
from pretrain.datasets import ImageData, ImageError
from pretrain.datasets.masks import MaskData

KINDS = ("patches", "keys")
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}
CROP_AREA = (0.5, 2.0)  # of the image; more than the whole is drawn again, as torchvision's crop does
JITTER = 0.1
PIXELS_AT_ONCE = 4_000_000  # of one batch: 17 images of 480 x 480


def snapped(size: int, patch: int) -> int:
    """The multiple of `patch` that is nearest to `size`, at least one patch; both in pixels."""
    return max(1, int(size / patch + 0.5)) * patch


def check_kind(kind: str) -> None:
    """Raises ValueError for features that no backbone has."""
    if kind not in KINDS:
        raise ValueError(f"unknown feature {kind!r}; use {', '.join(KINDS)}")


class ResizedViews(Dataset):
    """row -> the whole image at `size` x `size` pixels, its ratio not kept, then at the nearest multiple of `patch`."""

    def __init__(self, images: ImageData, size: int, patch: int, interpolation: str):
        self.images, self.sides, self.filter = images, (size, snapped(size, patch)), FILTERS[interpolation]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> View:
        try:
            image = self.images.image(row)
        except ImageError as error:
            return None, row, str(error)
        for side in self.sides:
            image = image if image.size == (side, side) else image.resize((side, side), self.filter)
        return np.array(image), row, ""


class MaskedViews(Dataset):
    """(epoch, row) -> image and mask at `size` x `size` pixels as four channels, (S, S, 4) uint8.

    The whole image, bilinear with antialias, its mask by nearest neighbour; with `augment` a random crop of it with
    jittered colours, which follow from (seed, epoch, row) alone.
    """

    def __init__(self, images: MaskData, size: int, *, augment: bool = False, seed: int = 0):
        self.images, self.size, self.augment, self.seed = images, size, augment, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> View:
        epoch, row = key
        try:
            image, mask = self.images.pair(row)
        except ImageError as error:
            return None, row, str(error)
        rng = np.random.default_rng((self.seed, epoch, row))
        box = crop_box(*image.size, rng, CROP_AREA) if self.augment else None
        sides = (self.size, self.size)
        image = image.resize(sides, FILTERS["bilinear"], box=box)
        labels = Image.fromarray(mask).resize(sides, Image.Resampling.NEAREST, box=box)
        return np.dstack([np.array(jittered(image, rng) if self.augment else image), np.array(labels)]), row, ""


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """RGB image with brightness, contrast, saturation and hue each changed by up to a tenth, half of the time."""
    for change in (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation):
        if rng.random() < 0.5:
            image = change(image, rng.uniform(1 - JITTER, 1 + JITTER))
    return TF.adjust_hue(image, rng.uniform(-JITTER, JITTER)) if rng.random() < 0.5 else image


def resized_batches(
    store: Store, images: ImageData, rows: Sequence[int], size: int, patch: int, interpolation: str
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """Batches of resized views uint8 (b, 3, S, S), the rows they belong to, and those of damaged images.

    Raises ImageError naming a damaged image unless `images.skip_bad`.
    """
    yield from _batches(store, images, ResizedViews(images, size, patch, interpolation), rows, snapped(size, patch))


def masked_batches(
    store: Store, images: MaskData, size: int, epoch: int = 0, *, augment: bool = False, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor, list[int], list[int]]]:
    """Batches of views uint8 (b, 3, S, S), masks (b, S, S), their rows, and those of damaged images; all images.

    Raises ImageError naming a damaged image or mask unless `images.skip_bad`.
    """
    keys = [(epoch, row) for row in range(len(images))]
    views = MaskedViews(images, size, augment=augment, seed=seed)
    for pixels, kept, damaged in _batches(store, images, views, keys, size):
        yield pixels[:, :3], pixels[:, 3:].flatten(0, 1), kept, damaged


def _batches(
    store: Store, images: ImageData, views: Dataset, keys: Sequence[Any], side: int
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    count = max(1, min(store.batch_size, PIXELS_AT_ONCE // side**2))
    batches = [list(keys[first : first + count]) for first in range(0, len(keys), count)]
    for batch, (pixels, kept, errors) in zip(batches, store._loader(views, batches), strict=True):
        if errors and not images.skip_bad:
            raise ImageError(errors[0])
        rows = [key[1] if isinstance(key, tuple) else key for key in batch]
        yield pixels, kept, [row for row in rows if row not in kept]


@torch.no_grad()
def dense_features(
    store: Store, backbone: Any, pixels: Tensor, kind: str = "patches", *, std: Sequence[float] | None = None
) -> Tensor:
    """Patch tokens of the last block, or keys of its attention: uint8 (B, 3, H, W) -> (B, h, w, D) float32.

    On the device of the store. `std` replaces the standard deviations of the backbone's own normalisation. Raises
    ValueError when features are not finite.
    """
    views = preprocess(pixels.to(store.device, non_blocking=True), backbone.mean, std or backbone.std)
    precision = PRECISIONS[store.precision]
    cast = torch.autocast(store.device.type, precision) if precision else nullcontext()
    with cast, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        network = backbone.to(store.device)
        found = network.keys(views).permute(0, 2, 3, 1) if kind == "keys" else network.features(views).patches
    found = found.float()
    if not torch.isfinite(found).all():
        raise ValueError(f"{kind} hold NaN or infinity; the weights have diverged, or precision=float32 is needed")
    return found
