"""iNaturalist 2019 (Van Horn et al., FGVC6): 1,010 species, annotations in COCO's style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pretrain.datasets.base import ImageData
from pretrain.datasets.coco import entries, lookup
from pretrain.datasets.sources import locate, read_json, require


class INat2019(ImageData):
    """Images of <split>2019.json, whose file names start at the root; classes by ascending category id.

    split: train, val, or test, which has no annotations and so no labels. Raises FileNotFoundError when the annotations
    or the folder of images are missing, and ValueError unless every image has exactly one category.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str | Sequence[str] = ("inat2019", "iNat2019"),
        name: str = "inat2019",
        skip_bad: bool = False,
    ):
        file = f"{split}2019.json"
        layout = f"{file} and train_val2019/<group>/<category>/<image>"
        source = locate(root, folder, layout, file)
        data, path = read_json(source, file, layout), f"{source.root}/{file}"
        images = entries(data, "images", ("id", "file_name"), path)
        for top in sorted({PurePosixPath(image).parts[0] for _, image in images}):
            require(source, top, layout)
        labels, classes = None, list[str]()
        if "annotations" in data:
            categories = sorted(entries(data, "categories", ("id", "name"), path))
            classes = [category for _, category in categories]
            marks = entries(data, "annotations", ("image_id", "category_id"), path)
            labels = one_class_each([i for i, _ in images], [i for i, _ in categories], marks, path)
        super().__init__(name, source, [image for _, image in images], labels, classes, skip_bad=skip_bad)


def one_class_each(images: Sequence[int], categories: Sequence[int], marks: Sequence[tuple], file: str) -> np.ndarray:
    """Class index of every image, (n,) int64, from (image id, category id) pairs; ValueError unless each has one."""
    row = {image: i for i, image in enumerate(images)}
    column = {category: i for i, category in enumerate(categories)}
    labels = np.full(len(images), -1, np.int64)
    for image, category in marks:
        i = lookup(row, image, "image", file)
        if labels[i] >= 0:
            raise ValueError(f"{file}: image {image} has two annotations; one species each is expected")
        labels[i] = lookup(column, category, "category", file)
    if (labels < 0).any():
        raise ValueError(f"{file}: image {images[int((labels < 0).argmax())]} has no annotation")
    return labels
