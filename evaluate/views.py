"""Views of images for frozen networks: the centre view, and the random crops that a linear probe trains on.

A damaged image is a message instead of an error, so that it leaves a decoding process as one line.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.datasets import ImageData, ImageError, centre_view

View = tuple[np.ndarray | None, int, str]  # (S, S, 3) uint8 or None, row of the image, error
ATTEMPTS = 10
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class CentreViews(Dataset):
    """row -> centre view: shorter side to `resize`, centre crop of `crop` pixels."""

    def __init__(self, images: ImageData, resize: int, crop: int):
        self.images, self.resize, self.crop = images, resize, crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> View:
        try:
            return centre_view(self.images.image(row), self.resize, self.crop), row, ""
        except ImageError as error:
            return None, row, str(error)


class RandomCrops(Dataset):
    """(draw, row) -> random resized crop (area 0.08 to 1, ratio 3/4 to 4/3), flipped half of the time.

    The crop follows from (seed, draw) alone, whatever the number of processes. With `images.skip_bad` the next image
    stands in for a damaged one. `interpolation` is "bicubic" or "bilinear"; raises ValueError for another.
    """

    def __init__(self, images: ImageData, size: int, seed: int, interpolation: str = "bicubic"):
        if interpolation not in FILTERS:
            raise ValueError(f"unknown interpolation {interpolation!r}; use {', '.join(FILTERS)}")
        self.images, self.size, self.seed, self.interpolation = images, size, seed, interpolation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> View:
        draw, first = key
        error = ""
        for step in range(len(self.images) if self.images.skip_bad else 1):
            row = (first + step) % len(self.images)
            try:
                image = self.images.image(row)
            except ImageError as damage:
                error = str(damage)
                continue
            rng = np.random.default_rng((self.seed, draw))
            return random_crop(image, self.size, rng, self.interpolation), row, ""
        return None, first, error


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, interpolation: str = "bicubic") -> np.ndarray:
    """Random resized crop and flip of an RGB image: (size, size, 3) uint8."""
    small = image.resize((size, size), FILTERS[interpolation], box=crop_box(*image.size, rng))
    pixels = np.array(small)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def crop_box(
    width: int, height: int, rng: np.random.Generator, area: tuple[float, float] = (0.08, 1.0)
) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) of a share of the area, with a ratio of 3/4 to 4/3, uniform in its logarithm.

    Where ten draws do not fit: the largest central box within these ratios.
    Source: Inception-style cropping, as in torchvision.
    """
    for _ in range(ATTEMPTS):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def collate(items: list[View]) -> tuple[Tensor, list[int], list[str]]:
    """Views that could be decoded as uint8 (b, 3, S, S), the rows they belong to, and the errors of the others."""
    views: list[Any] = [view for view, _, _ in items if view is not None]
    rows = [row for view, row, _ in items if view is not None]
    errors = [error for view, _, error in items if view is None]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) if views else torch.empty(0), rows, errors
