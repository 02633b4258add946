"""Revisited Oxford and Paris: landmarks with easy, hard and junk images per query (Radenovic et al. 2018)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pretrain.datasets.base import ImageData
from pretrain.datasets.pickles import load_plain
from pretrain.datasets.sources import locate, require

KINDS = {"easy": 1, "hard": 2, "junk": 3}  # values of `relevance`; 0 is none of them
SPLITS = ("queries", "database")


@dataclass(frozen=True)
class Truth:
    """Names of images without ending, the box of each query's landmark (Q, 4) and `relevance` (Q, N) int8."""

    database: list[str]
    queries: list[str]
    boxes: np.ndarray
    relevance: np.ndarray


class Landmarks(ImageData):
    """Images named by gnd_<folder>.pkl, without labels; split: queries or database. folder: roxford5k or rparis6k.

    truth: names, boxes (left, top, right, bottom in pixels) and relevance, the same for both splits. Raises
    FileNotFoundError when the ground truth or the folder of images is missing, and ValueError when it names an image
    outside its list, lacks a part, or holds anything but containers and numpy arrays.
    """

    def __init__(
        self, root: str | Path, split: str, *, folder: str = "roxford5k", name: str = "", skip_bad: bool = False
    ):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r} of {folder}; use {', '.join(SPLITS)}")
        file = f"gnd_{folder}.pkl"
        layout = f"{folder}/jpg/<image>.jpg and {folder}/{file}"
        source = locate(root, folder, layout, file)
        require(source, file, layout)
        require(source, "jpg", layout)
        data = source.read(file)
        self.truth = read_truth(load_plain(data, f"{source.root}/{file}"), f"{source.root}/{file}")
        self._digest = hashlib.sha256(data).hexdigest()
        paths = [f"jpg/{image}.jpg" for image in getattr(self.truth, split)]
        super().__init__(name or folder, source, paths, skip_bad=skip_bad)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the images' names and sizes and of the ground truth."""
        return hashlib.sha256(f"{super().fingerprint} {self._digest}".encode()).hexdigest()[:16]


def read_truth(content: Any, path: str) -> Truth:
    """Checked ground truth; raises ValueError naming the file and what is wrong with it."""
    parts = ("imlist", "qimlist", "gnd")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list | tuple) for part in parts):
        raise ValueError(f"{path}: expected a dictionary with lists {', '.join(parts)}")
    database, queries = (image_names(content[part], f"{path}: {part}") for part in parts[:2])
    if len(content["gnd"]) != len(queries):
        raise ValueError(f"{path}: {len(content['gnd'])} entries of gnd for {len(queries)} queries")
    relevance = np.zeros((len(queries), len(database)), np.int8)
    boxes = np.empty((len(queries), 4))
    for row, entry in enumerate(content["gnd"]):
        place = f"{path}: query {queries[row]}"
        try:
            left, top, right, bottom = boxes[row] = [float(value) for value in entry["bbx"]]
            images = {kind: [int(value) for value in entry[kind]] for kind in KINDS}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{place} needs bbx of 4 numbers and lists easy, hard, junk ({error!r:.80})") from error
        if not (left < right and top < bottom and np.isfinite(boxes[row]).all()):
            raise ValueError(f"{place}: bbx {boxes[row].tolist()} is no box (left, top, right, bottom)")
        for kind, rows in images.items():
            outside = [value for value in rows if not 0 <= value < len(database)]
            if outside:
                raise ValueError(f"{place}: {kind} image {outside[0]} is outside 0..{len(database) - 1}")
            relevance[row, rows] = KINDS[kind]
    return Truth(database, queries, boxes, relevance)


def image_names(values: Sequence[Any], what: str) -> list[str]:
    """Names of images, which may not lead out of their folder; raises ValueError for another value."""
    names = [value.decode("latin1") if isinstance(value, bytes) else value for value in values]
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{what} holds {name!r:.80}, which is no name of an image in jpg/")
    return names
