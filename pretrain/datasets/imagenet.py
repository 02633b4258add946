"""ImageNet-1k (Russakovsky et al. 2015), ImageNet-V2 (Recht et al. 2019) and subsets such as ImageNet-100.

Classes are numbered in the order of their sorted wnids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.datasets.base import ImageData, class_tree, indices, is_image
from pretrain.datasets.names import Names
from pretrain.datasets.sources import Folder, ImageError, Source, locate, read_lines

FOLDERS = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
V2_FOLDER = "imagenetv2-matched-frequency-format-val"
LABEL_FILES = (
    "val_labels.txt",
    "val.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "../../../LOC_val_solution.csv",  # seen from ILSVRC/Data/CLS-LOC
)
LABEL_LINES = "lines `name wnid`, `name class`, or one wnid or class (0..999, by sorted wnid) a line, by number of file"


class ImageNet(ImageData):
    """`<split>/<wnid>/*.JPEG`, or a flat `<split>/ILSVRC2012_val_%08d.JPEG` with a label file. split: train or val.

    labels: the label file of a flat split, from the dataset's root on; by default one of the usual names, there or in
    the split. Its lines are `name wnid`, `name class` (Caffe), `name,wnid ...` (Kaggle), or, in the order of the file
    numbers, one wnid or class each. Raises FileNotFoundError when split or label file are missing, and ValueError for
    labels that cannot be read, among them the ids of the development kit, which are not in wnid order.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str | Sequence[str] = FOLDERS,
        labels: str = "",
        name: str = "imagenet",
        allow_empty: bool = False,
        skip_bad: bool = False,
    ):
        source = locate(root, folder, f"{split}/<wnid>/<image>", split)
        if source.folders(split):
            paths, numbers, classes = class_tree(source, split, allow_empty=allow_empty)
        else:
            paths = Names(path for path in source.names(split) if is_image(path))
            file = label_file(source, split, labels)
            classes, numbers = flat_labels(paths, read_lines(source, file, ""), source.folders("train"), file)
        super().__init__(name, source, paths, numbers, classes, skip_bad=skip_bad)


class ImageNetSubset(ImageNet):
    """Those classes of an ImageNet tree whose wnids a text file lists, such as ImageNet-100; numbered among themselves.

    class_list: its name, in the dataset's folder, beside it, or in a folder called `name`; a wnid is the first word of
    a line. Without it a tree of at most `size` classes is read as it is. Raises FileNotFoundError when a larger tree
    lacks the list, ValueError for a wnid that the tree does not hold, and ImageError for one of which it holds no image
    (`allow_empty` admits it).
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str | Sequence[str] = ("imagenet100", *FOLDERS),
        class_list: str = "imagenet100.txt",
        size: int = 100,
        name: str = "imagenet100",
        allow_empty: bool = False,
        skip_bad: bool = False,
    ):
        super().__init__(root, split, folder=folder, name=name, allow_empty=True, skip_bad=skip_bad)
        base = Path(root).expanduser()
        places: list[Source] = [self.source, Folder(base), Folder(base / name), Folder(self.source.root.parent)]
        place = next((place for place in places if place.holds(class_list)), None)
        if place is not None:
            self._keep(sorted({line.split()[0] for line in read_lines(place, class_list, "")}), class_list)
        elif len(self.classes) > size:
            raise FileNotFoundError(
                f"no {base}/{class_list}, while {self.source.root}/{split} has {len(self.classes)} classes; "
                f"expected a text file with {size} wnids, or a tree of just these"
            )
        assert self.labels is not None
        empty = np.setdiff1d(np.arange(len(self.classes)), self.labels)
        if len(empty) and not allow_empty:  # of the kept ones alone: the tree may be a part of ImageNet
            raise ImageError(
                f"{self.source.root}/{split} holds no image of class {self.classes[empty[0]]}; "
                "add some, remove the class or set allow_empty=true"
            )

    def _keep(self, wnids: list[str], file: str) -> None:
        """Restrict the images to some classes, which become 0, 1, ... in the order given."""
        number = np.full(len(self.classes), -1)
        for i, wnid in enumerate(wnids):
            if wnid not in self.classes:
                raise ValueError(f"{file} lists {wnid}, which {self.source.root} does not hold")
            number[self.classes.index(wnid)] = i
        assert self.labels is not None
        kept = np.flatnonzero(number[self.labels] >= 0)
        self.paths = Names(self.paths[i] for i in kept)
        self.labels, self.classes = number[self.labels[kept]], wnids


class ImageNetV2(ImageData):
    """`<0..999>/*.jpeg`: the folder's number is the class, so folders are ordered as numbers, not as text.

    Raises FileNotFoundError when the folder is missing, and ValueError for one that is not named by a number.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        folder: str | Sequence[str] = (V2_FOLDER, f"imagenetv2/{V2_FOLDER}", "imagenetv2"),
        archive: str = "imagenetv2-matched-frequency.tar.gz",
        name: str = "imagenetv2",
        skip_bad: bool = False,
    ):
        source = locate(root, folder, f"{V2_FOLDER}/<0..999>/<image>", "0", archive)
        paths, of, names = class_tree(source, "")
        for one in names:
            if not one.isdecimal():
                raise ValueError(f"{source.root}/{one} is not named by a class number as in ImageNet-V2 (0, 1, ...)")
        numbers = np.array([int(one) for one in names])[of]
        order = np.argsort(numbers, kind="stable")
        classes = [str(i) for i in range(int(numbers.max()) + 1)]
        super().__init__(name, source, [paths[i] for i in order], numbers[order], classes, skip_bad=skip_bad)


def label_file(source: Source, split: str, given: str = "") -> str:
    """Name of the label file of a flat split; raises FileNotFoundError naming what it may be called and hold."""
    names = [given] if given else [f"{place}{name}" for name in LABEL_FILES for place in ("", f"{split}/")]
    for name in names:
        if source.holds(name):
            return name
    expected = given or ", ".join(LABEL_FILES[:-1])
    raise FileNotFoundError(
        f"{source.root}/{split} has no folders of classes and no label file; expected {expected} with {LABEL_LINES}"
    )


def flat_labels(
    paths: Sequence[str], lines: Sequence[str], wnids: Sequence[str], file: str
) -> tuple[list[str], np.ndarray]:
    """Classes, and the class of each flat image (n,) int64, from the lines of a label file.

    wnids: the known classes in order; without them, those of the file, or 0..999. Raises ValueError for an image
    without a label and for labels that are neither wnids nor class indices.
    """
    rows = [re.split(r"[\s,]+", line) for line in lines if not line.startswith("ImageId,")]
    if all(len(row) == 1 for row in rows):
        stems = [stem(path) for path in paths]
        table = {one: rows[number(one) - 1][0] for one in stems if 0 < number(one) <= len(rows)}
    else:
        table = {stem(row[0]): row[1] for row in rows if len(row) > 1}
    missing = next((path for path in paths if stem(path) not in table), None)
    if missing is not None:
        raise ValueError(f"{file} has no label for {missing}; expected {LABEL_LINES}")
    values = [table[stem(path)] for path in paths]
    if all(value.isdecimal() for value in table.values()):
        return _numbered(values, wnids, file)
    classes = list(wnids) or sorted(set(table.values()))
    odd = next((value for value in values if not re.fullmatch(r"n\d{8}", value) or value not in classes), None)
    if odd is not None:
        raise ValueError(f"{file}: {odd!r} is no wnid of this ImageNet; expected {LABEL_LINES}")
    return classes, indices(values, classes)


def _numbered(values: Sequence[str], wnids: Sequence[str], file: str) -> tuple[list[str], np.ndarray]:
    classes = list(wnids) or [str(i) for i in range(1000)]
    numbers = np.array([int(value) for value in values])
    if numbers.max() >= len(classes):
        raise ValueError(
            f"{file}: class {numbers.max()} is outside 0..{len(classes) - 1}; "
            "the development kit's ids (1..1000) are not in wnid order: use a file of wnids"
        )
    return classes, numbers


def stem(path: str) -> str:
    """Name of a file without folders and ending."""
    return path.rsplit("/", 1)[-1].split(".")[0]


def number(name: str) -> int:
    """The number at the end of a name such as ILSVRC2012_val_00000007; 0 where there is none."""
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else 0
