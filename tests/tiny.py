"""A tiny image set and the smallest configuration that trains on it, shared by tests of the training path."""

from __future__ import annotations

from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig
from PIL import Image

from pretrain.cli import CONFIGS

OBJECTIVES = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))

NETWORK = (
    "backbone={name: vit_tiny_patch16_224, image_size: 16, patch_size: 8, stem: patch, pool: token, init: fan_in, "
    "cls_init: reference, drop_path: 0.1, resize: 16, embed_dim: 16, depth: 2, num_heads: 2}"
)
VIEWS = [
    "views.local_crops=1",
    "views.global_view={size: 16, scale: [0.4, 1.0], jitter: [0.4, 0.4, 0.2, 0.1]}",
    "views.local={size: 8, scale: [0.05, 0.4], blur_p: 0.5}",
]
JOINT = ["objective.head.out=12", "objective.loss.bins=4"]
TWO_VIEWS = ("barlow_twins", "imsvd", "music", "vicreg")
HEADS = {
    "imsvd": JOINT,
    "music": JOINT,
    "dino": ["objective.head.bottleneck=8", "objective.head.prototypes=32"],
}


def write_images(root: Path, *, train: int = 12, val: int = 6, side: int = 20, classes: int = 3) -> Path:
    """An ImageFolder of noisy class-coloured squares, `train` and `val` images a class."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c in range(classes):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.integers(0, 255, (side, side, 3), dtype=np.uint8)
                pixels[: side // 2, :, c] = 255
                Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return root


def overrides(root: Path, objective: str, runs: Path, *more: str) -> list[str]:
    """Command-line overrides of a training run of a second or two."""
    return [
        "data=folder",
        f"data_root={root}",
        f"objective={objective}",
        f"runs={runs}",
        NETWORK,
        *VIEWS,
        *(["views.local_crops=0"] if objective in TWO_VIEWS else []),
        "objective.head.hidden=16",
        *HEADS.get(objective, ["objective.head.out=8"]),
        "optim.lr=0.02",
        "optim.warmup_epochs=1",
        "head_reset.every_epochs=2" if objective == "bits_reset" else "head_reset.every_epochs=0",
        "trainer={epochs: 3, batch_size: 12, workers: 0, accelerator: cpu, log_every: 1, curves: false}",
        "quiet=true",
        *more,
    ]


def compose(*values: str) -> DictConfig:
    """The training configuration with overrides."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        return hydra.compose("pretrain", list(values))
