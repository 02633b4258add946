"""Runs with random weights and what evaluating them needs, shared by tests of the evaluation path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from evaluate import importer
from evaluate.features import Store
from evaluate.tasks.base import Data, Subject
from pretrain.backbones import Backbone
from pretrain.checkpoint import save_run
from pretrain.datasets import ImageFolder
from pretrain.heads import build_head

SPEC: dict[str, Any] = {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 8, "init": "fan_in"}
SPEC |= {"embed_dim": 16, "depth": 2, "num_heads": 2, "resize": 18}


def save_tiny_run(runs: Path, objective: str = "bits_fixed", *, seed: int = 1, bits: int = 40, **info: Any) -> Path:
    """A run of a few thousand random weights, as training would leave it."""
    torch.manual_seed(seed)
    backbone = Backbone(**SPEC)
    head = {"kind": "mlp", "dim": 16, "hidden": 16, "out": bits, "init": "fan_in"}
    parts = (backbone, build_head(head))
    facts = {
        "name": objective,
        "objective": objective,
        "label": "",
        "binary": objective.startswith("bits"),
        "backbone": backbone.spec,
        "head": head,
    }
    facts |= {"config": {}, "epoch": 3.0, "step": 9, "images_seen": 108, "seed": seed, "commit": "none"}
    facts |= {"data": {"name": "folder", "fingerprint": "none", "images": 36}, "finished": True}
    directory = runs / info.get("name", objective)
    save_run(directory, parts, (Backbone(**SPEC), build_head(head)), facts | info)
    return directory


def folder_data(root: Path, **options: Any) -> Data:
    """The ImageFolder below `root` as a dataset."""
    readers = {
        split: (lambda part=part: ImageFolder(root, part, name="folder", **options))
        for split, part in (("train", "train"), ("test", "val"))
    }
    return Data("folder", readers)


def subject(run: str | Path, data: Data, cache: Path) -> Subject:
    """A checkpoint on a dataset, with features stored below `cache`."""
    checkpoint = importer.open_checkpoint(run)
    store = Store(cache, batch_size=64, workers=0, quiet=True)
    return Subject(checkpoint.backbone, checkpoint.head, data, store, segments=checkpoint.segments)


@contextmanager
def count_forward(backbone: Any) -> Iterator[list[int]]:
    """Batch sizes of all forward passes of a backbone while the block runs."""
    sizes: list[int] = []
    original = backbone.blocks

    def counted(images: torch.Tensor, n: int = 1) -> Any:
        sizes.append(len(images))
        return original(images, n)

    backbone.blocks = counted
    try:
        yield sizes
    finally:
        del backbone.blocks
