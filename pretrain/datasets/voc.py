"""PASCAL VOC as sets of classes: which of the 20 classes an image shows (Everingham et al., IJCV 2010)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from pretrain.datasets.base import ImageData
from pretrain.datasets.sources import Source, locate, read_lines, require

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MAIN = "ImageSets/Main"
LAYOUT = "VOCdevkit/VOC2012/{JPEGImages/<id>.jpg,ImageSets/Main/<split>.txt,Annotations/<id>.xml}"


class VOCClasses(ImageData):
    """Images in the order of ImageSets/Main/<split>.txt, labels (n, 20) 0/1. split: train, val or trainval.

    A class is present where <class>_<split>.txt says 1; where there are no such lists, where Annotations/<id>.xml has
    an object of it that is not marked difficult. An image of difficult objects alone stays, without a class. Raises
    FileNotFoundError for a missing list, annotation or folder of images, and ValueError for one that cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str | Sequence[str] = ("VOCdevkit/VOC2012", "VOC2012", "voc/VOCdevkit/VOC2012", "voc/VOC2012", "voc"),
        archive: str = "VOCtrainval_11-May-2012.tar",
        name: str = "voc",
        skip_bad: bool = False,
    ):
        source = locate(root, folder, LAYOUT, MAIN, archive)
        ids = [line.split()[0] for line in read_lines(source, f"{MAIN}/{split}.txt", LAYOUT)]
        require(source, "JPEGImages", LAYOUT)
        listed = any(source.holds(f"{MAIN}/{one}_{split}.txt") for one in CLASSES)
        labels = labels_of_lists(source, split, ids) if listed else labels_of_xml(source, ids)
        super().__init__(name, source, [f"JPEGImages/{i}.jpg" for i in ids], labels, CLASSES, skip_bad=skip_bad)


def labels_of_lists(source: Source, split: str, ids: Sequence[str]) -> np.ndarray:
    """(n, 20) 0/1 uint8 from the lists `id 1|0|-1` of each class; ValueError where an image is not in one of them."""
    labels = np.zeros((len(ids), len(CLASSES)), np.uint8)
    for column, one in enumerate(CLASSES):
        file = f"{MAIN}/{one}_{split}.txt"
        fields = [line.split() for line in read_lines(source, file, LAYOUT)]
        states = {field[0]: field[-1] for field in fields}
        for row, i in enumerate(ids):
            if states.get(i) not in ("1", "0", "-1"):
                raise ValueError(f"{source.root}/{file} has no line `{i} 1`, `{i} 0` or `{i} -1`")
            labels[row, column] = states[i] == "1"
    return labels


def labels_of_xml(source: Source, ids: Sequence[str]) -> np.ndarray:
    """(n, 20) 0/1 uint8 from the objects of the annotations that are not marked difficult."""
    column = {name: i for i, name in enumerate(CLASSES)}
    labels = np.zeros((len(ids), len(CLASSES)), np.uint8)
    for row, i in enumerate(ids):
        file = f"Annotations/{i}.xml"
        require(source, file, LAYOUT)
        try:
            objects = ElementTree.fromstring(source.read(file)).findall("object")
        except ElementTree.ParseError as error:
            raise ValueError(f"{source.root}/{file} is no XML file: {error}") from error
        for found in objects:
            name = found.findtext("name", "").strip()
            if name not in column:
                raise ValueError(f"{source.root}/{file}: {name!r} is none of the 20 classes")
            if found.findtext("difficult", "0").strip() != "1":
                labels[row, column[name]] = 1
    return labels
