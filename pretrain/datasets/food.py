"""Food-101 (Bossard et al., ECCV 2014): 101 dishes, listed by meta/train.txt and meta/test.txt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pretrain.datasets.base import ImageData, indices
from pretrain.datasets.sources import locate, read_lines, require

LAYOUT = "images/<class>/<id>.jpg and meta/{classes,train,test}.txt"


class Food101(ImageData):
    """Images in the order of meta/<split>.txt, lines `class/id`; classes in byte order. split: train or test.

    Raises FileNotFoundError when a list or the folder of images is missing, and ValueError for a line whose class
    meta/classes.txt does not hold.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str | Sequence[str] = ("food-101", "food101"),
        name: str = "food101",
        skip_bad: bool = False,
    ):
        source = locate(root, folder, LAYOUT, "meta")
        classes = sorted(read_lines(source, "meta/classes.txt", LAYOUT), key=os.fsencode)
        lines = read_lines(source, f"meta/{split}.txt", LAYOUT)
        require(source, "images", LAYOUT)
        of = [line.split("/")[0] for line in lines]
        unknown = set(of).difference(classes)
        if unknown:
            raise ValueError(f"{source.root}/meta/{split}.txt: {min(unknown)!r} is no class of meta/classes.txt")
        paths = [f"images/{line}.jpg" for line in lines]
        super().__init__(name, source, paths, indices(of, classes), classes, skip_bad=skip_bad)
