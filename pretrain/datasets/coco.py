"""COCO as sets of classes: which of the 80 categories an image shows (Lin et al. 2014, arXiv 1405.0312)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.datasets.base import ImageData
from pretrain.datasets.sources import locate, read_json, require


class COCOClasses(ImageData):
    """Images of annotations/instances_<split><year>.json with at least one object, labels (n, C) 0/1.

    Classes are the categories by ascending id (COCO's own have gaps); crowds count as objects. split: train or val.
    Raises FileNotFoundError when the annotations or the folder of images are missing, and ValueError when the file is
    not COCO's or an annotation names an image or a category that it does not list.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        year: int | str = 2017,
        folder: str | Sequence[str] = "coco",
        name: str = "coco",
        skip_bad: bool = False,
    ):
        part = f"{split}{year}"
        file = f"annotations/instances_{part}.json"
        layout = f"{file} and {part}/<image>"
        source = locate(root, folder, layout, file)
        require(source, part, layout)
        files, labels, classes = class_sets(read_json(source, file, layout), f"{source.root}/{file}")
        super().__init__(name, source, [f"{part}/{name}" for name in files], labels, classes, skip_bad=skip_bad)


def class_sets(instances: Any, file: str) -> tuple[list[str], np.ndarray, list[str]]:
    """File names of the images with an object, their classes (n, C) 0/1 uint8, and the names of the classes."""
    images = entries(instances, "images", ("id", "file_name"), file)
    categories = sorted(entries(instances, "categories", ("id", "name"), file))
    row = {image: i for i, (image, _) in enumerate(images)}
    column = {category: i for i, (category, _) in enumerate(categories)}
    labels = np.zeros((len(row), len(column)), np.uint8)
    for image, category in entries(instances, "annotations", ("image_id", "category_id"), file):
        labels[lookup(row, image, "image", file), lookup(column, category, "category", file)] = 1
    shown = np.flatnonzero(labels.any(axis=1))
    return [images[i][1] for i in shown], labels[shown], [name for _, name in categories]


def entries(data: Any, key: str, fields: Sequence[str], file: str) -> list[tuple]:
    """The fields of every entry of a list in a COCO-style file; raises ValueError naming what is not there."""
    try:
        return [tuple(entry[field] for field in fields) for entry in data[key]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: {key!r} must be a list of entries with {' and '.join(fields)}") from error


def lookup(positions: dict[Any, int], key: Any, what: str, file: str) -> int:
    """Position of an image or a category; raises ValueError when an annotation names one that is not listed."""
    if key not in positions:
        raise ValueError(f"{file}: an annotation names {what} {key!r}, which the file does not list")
    return positions[key]
