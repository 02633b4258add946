"""Speed of a pass of the feature store as a share of the bare backbone's: rows of `python -m evaluate.bench`.

The reference is the backbone alone on views that lie decoded in memory. Ours is a whole pass, blocks and checks and
writing included, once from the same views and once from JPEG files, which processors must decode beside the network.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluate.features import Store
from evaluate.timing import Comparison
from pretrain.backbones import Backbone, preprocess
from pretrain.datasets import Folder, ImageData

BATCH = 32
TINY = {"name": "vit_tiny_patch16_224", "image_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "resize": 64}
SMALL = {"name": "vit_small_patch16_224", "resize": 224}  # resized to the crop: a decoded view stays as it is


class InMemory(ImageData):
    """Images as JPEG bytes of 500 x 375 pixels, or decoded to the view of a backbone."""

    def __init__(self, count: int, side: int, decoded: bool):
        super().__init__("memory", Folder(Path()), [f"{i:05d}.jpg" for i in range(count)])
        random = np.random.default_rng(0)
        self._files = [jpeg(random) for _ in range(min(count, 64))]
        self._views = [Image.open(io.BytesIO(file)).convert("RGB").resize((side, side)) for file in self._files]
        self._decoded = decoded

    def image(self, index: int) -> Image.Image:
        """One of the images."""
        index %= len(self._files)
        return self._views[index] if self._decoded else Image.open(io.BytesIO(self._files[index])).convert("RGB")


def jpeg(random: np.random.Generator) -> bytes:
    """A JPEG file of 500 x 375 pixels: a coarse picture with fine noise."""
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse, np.int16) + random.integers(-12, 13, (375, 500, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def a_pass(spec: dict[str, Any], count: int, decoded: bool, name: str) -> Comparison:
    """A pass of the store against the backbone alone."""
    torch.manual_seed(0)
    backbone = Backbone(**spec).eval().requires_grad_(False)
    images = InMemory(count, backbone.image_size, decoded)
    in_memory = InMemory(count, backbone.image_size, decoded=True)
    views = torch.from_numpy(np.stack([np.asarray(in_memory.image(i)) for i in range(count)])).permute(0, 3, 1, 2)
    folder, number = tempfile.TemporaryDirectory(), itertools.count()
    workers = 0 if decoded else min(16, os.cpu_count() or 1)

    @torch.no_grad()
    def bare() -> torch.Tensor:
        return torch.cat([backbone.vit(preprocess(part, backbone.mean, backbone.std)) for part in views.split(BATCH)])

    def ours() -> torch.Tensor:
        root = Path(folder.name) / str(next(number))
        return Store(root, batch_size=BATCH, workers=workers, quiet=True).get(backbone, images).cls()

    def check(reference: torch.Tensor, found: torch.Tensor) -> None:
        if decoded:
            torch.testing.assert_close(found, reference, rtol=1e-3, atol=1e-3)
        assert len(found) == len(reference)

    what = "decoded views" if decoded else "JPEG files of 500 x 375"
    return Comparison(f"store pass, {name}, {count} {what}", "bare backbone, decoded views", bare, ours, check, 3)


def pass_tiny_decoded(quick: bool) -> Comparison:
    """A small network at 64 pixels, views in memory."""
    return a_pass(TINY, 256 if quick else 1024, True, "ViT 192x6/8 at 64")


def pass_tiny_jpeg(quick: bool) -> Comparison:
    """A small network at 64 pixels, from files: bound by decoding."""
    return a_pass(TINY, 256 if quick else 1024, False, "ViT 192x6/8 at 64")


def pass_small_decoded(quick: bool) -> Comparison:
    """ViT-S/16 at 224 pixels, views in memory."""
    return a_pass(SMALL, 32 if quick else 128, True, "ViT-S/16 at 224")


def pass_small_jpeg(quick: bool) -> Comparison:
    """ViT-S/16 at 224 pixels, from files."""
    return a_pass(SMALL, 32 if quick else 128, False, "ViT-S/16 at 224")


ROWS = (pass_tiny_decoded, pass_tiny_jpeg, pass_small_decoded, pass_small_jpeg)
