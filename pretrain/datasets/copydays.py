"""Copydays: photographs, and copies of them made by compression, cropping and strong edits (Douze et al. 2009)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from pretrain.datasets.base import ImageData, is_image
from pretrain.datasets.sources import locate, require

LAYOUT = "copydays/{original,strong}/<number>.jpg, and where at hand {jpegqual,crops}/<level>/<number>.jpg"
KINDS = ("strong", "jpegqual", "crops")
SPLITS = ("queries", "database")


class Copydays(ImageData):
    """The originals (split database), or all copies of them that are there (split queries); no labels.

    blocks: what was done to each image, "strong", "jpegqual/3", "crops/80", ...; originals: the first four digits of
    its number, which a copy shares with its original (n,) text. Raises FileNotFoundError when originals or strong
    copies are missing.
    """

    def __init__(
        self, root: str | Path, split: str, *, folder: str = "copydays", name: str = "copydays", skip_bad: bool = False
    ):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r} of Copydays; use {', '.join(SPLITS)}")
        source = locate(root, folder, LAYOUT, "original")
        for needed in ("original", "strong"):
            require(source, needed, LAYOUT)
        kinds = KINDS if split == "queries" else ("original",)
        paths = [path for kind in kinds for path in source.names(kind) if is_image(path)]
        self.blocks = np.array([str(PurePosixPath(path).parent) for path in paths])
        self.originals = np.array([PurePosixPath(path).name[:4] for path in paths])
        super().__init__(name, source, paths, skip_bad=skip_bad)
