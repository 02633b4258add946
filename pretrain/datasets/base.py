"""Readers of image sets as they come from their publishers: name and split -> images, labels, fingerprint.

Files are read by content, never by extension; nothing is ever written into a dataset.
"""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pretrain.datasets.names import BLOCK, Growing, Names, release
from pretrain.datasets.sources import (
    Archive,
    Folder,
    ImageError,
    Source,
    find_archive,
    locate,
    one_or_more,
    reason,
)

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def decode(data: bytes, path: str) -> Image.Image:
    """Decode an image of any kind (grey, palette, CMYK, 16-bit, alpha) to 8-bit RGB; EXIF orientation is not applied.

    Raises ImageError naming the path when the bytes are no image or end too early.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode.startswith("I"):  # 16 bit: Pillow's own conversion would clip instead of scaling
                return Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"cannot decode {path}: {reason(error)}; mend or remove it, or set skip_bad=true "
            "(pretrain: trainer.skip_bad=true)"
        ) from error


class ImageData:
    """An ordered set of images with optional labels.

    paths: relative names; labels: (n,) class indices, (n, C) 0/1 for several labels, or None; `classes`: their names.
    `skip_bad` leaves out images that cannot be decoded and counts them in `skipped` (found when they are read).
    `subset` says that its classes are known to be a part of those of other splits, so that probes choose among them
    alone. Raises FileNotFoundError where there is no image, and ValueError for labels that do not fit the images or the
    classes.
    """

    subset = False

    def __init__(
        self,
        name: str,
        source: Source,
        paths: Sequence[str],
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
        *,
        skip_bad: bool = False,
    ):
        if not len(paths):
            raise FileNotFoundError(f"no image found in {source.root}; known endings: {', '.join(sorted(EXTENSIONS))}")
        if labels is not None:
            check_labels(labels, paths, len(classes), name)
            release(labels)
        self.name, self.source, self.paths = name, source, Names(paths)
        self.labels, self.classes, self.skip_bad = labels, list(classes), skip_bad

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Image `index` as 8-bit RGB; raises ImageError naming its path when it is missing or damaged."""
        path = self.paths[index]
        return decode(self.source.read(path), f"{self.source.root}/{path}")

    def length(self, index: int) -> int:
        """Bytes of image `index` as they are stored."""
        return self.source.size(self.paths[index])

    def content(self, index: int) -> bytes:
        """Image `index` as it is stored; raises ImageError when it is missing."""
        return self.source.read(self.paths[index])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all names, file sizes and labels, in order: equal sets have equal digests wherever they lie."""
        digest, size = hashlib.sha256(), self.source.size
        for start in range(0, len(self), BLOCK):  # a million lines one at a time take twice as long
            paths = self.paths[start : start + BLOCK]
            labels = [""] * len(paths) if self.labels is None else self.labels[start : start + BLOCK].tolist()
            lines = [f"{path}\0{size(path)}\0{label}\n" for path, label in zip(paths, labels, strict=True)]
            digest.update("".join(lines).encode(errors="surrogateescape"))
            self.paths.release()
            if self.labels is not None:
                release(self.labels)
        return digest.hexdigest()[:16]


def check_labels(labels: np.ndarray, paths: Sequence[str], classes: int, name: str) -> None:
    """Raises ValueError unless labels are (n,) class indices below `classes`, or (n, classes) zeros and ones."""
    if len(labels) != len(paths):
        raise ValueError(f"{name} has {len(labels)} labels for {len(paths)} images; one row per image is needed")
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise ValueError(f"labels of {name} have {labels.shape[1]} columns for {classes} classes")
    if labels.size and (labels.min() < 0 or labels.max() >= (classes if labels.ndim == 1 else 2)):
        wrong = (labels < 0) | (labels >= (classes if labels.ndim == 1 else 2))
        path, allowed = paths[int(np.argwhere(wrong)[0, 0])], f"0..{classes - 1}" if labels.ndim == 1 else "0 and 1"
        raise ValueError(f"label {labels[wrong][0]} of {path} in {name} is outside {allowed}")


def is_image(name: str) -> bool:
    """Whether a file name ends like an image, in any case."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def class_tree(source: Source, inside: str, *, allow_empty: bool = False) -> tuple[Names, np.ndarray, list[str]]:
    """Images of `inside`/<class>/...: their paths in byte order, the class of each (n,) int64, classes in byte order.

    Raises FileNotFoundError where there is no image, and ImageError for a class directory without one (`allow_empty`
    admits it).
    """
    folders, labels, empty = source.folders(inside), Growing(np.int64), list[str]()
    position = {name: i for i, name in enumerate(folders)}

    def images() -> Iterable[str]:  # one class at a time, so that a large tree is never held as strings
        for name in sorted(folders, key=lambda name: os.fsencode(f"{name}/")):
            found = [path for path in source.names(f"{inside}/{name}".lstrip("/")) if is_image(path)]
            labels.extend(np.full(len(found), position[name]))
            empty.extend([] if found else [name])
            yield from found

    paths = Names(images())
    place = f"{source.root}/{inside}".rstrip("/")
    if not paths:
        raise FileNotFoundError(f"no image in {place}; expected {f'{inside}/' if inside else ''}<class>/<image>")
    if empty and not allow_empty:
        raise ImageError(
            f"class directory {place}/{min(empty)} holds no image; fill it, remove it or set allow_empty=true"
        )
    return paths, labels.whole(), folders


def indices(of: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Class names (n,) as positions among `classes`, int64; raises KeyError for one that is not there."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[name] for name in of], np.int64)


class ImageFolder(ImageData):
    """`root/<split>/<class>/...image`, a directory or a tar archive; classes in byte order of their names.

    split, folder: where publishers or their releases differ, several names, of which the first that is there is read.
    archive: the publisher's name of a tar archive that holds `folder`; subset: see `ImageData`. Accepts the dataset's
    folder or its parent as `root`. Raises FileNotFoundError when the split is missing or holds no image, and ImageError
    when a class directory is empty (`allow_empty` admits it).
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str],
        *,
        folder: str | Sequence[str] = "",
        archive: str = "",
        name: str = "",
        allow_empty: bool = False,
        subset: bool = False,
        skip_bad: bool = False,
    ):
        splits = one_or_more(split)
        layout = " or ".join(f"{part}/<class>/<image>" for part in splits)
        source = locate(root, folder, layout, splits, archive)
        inside = next((part for part in splits if source.holds(part)), splits[0])
        paths, labels, classes = class_tree(source, inside, allow_empty=allow_empty)
        name = name or one_or_more(folder)[0] or source.root.name
        super().__init__(name, source, paths, labels, classes, skip_bad=skip_bad)
        self.subset = subset


class Images(ImageData):
    """Every image below a folder (or in a tar archive), whatever its sub-folders; no labels.

    `root` is its parent, or the folder itself where it has that name. Raises FileNotFoundError when it is missing.
    """

    def __init__(self, root: str | Path, *, folder: str = "", name: str = "", skip_bad: bool = False):
        root = Path(root).expanduser()
        place = root / folder
        source: Source | None = None
        if place.is_file():
            source = Archive(place, "")
        elif place.is_dir():
            source = Folder(place)
        elif not (source := find_archive(root, [folder])) and root.name == folder and root.is_dir():
            source = Folder(root)
        if source is None:
            raise FileNotFoundError(f"no folder of images at {place}; give data_root=<folder that holds images>")
        paths = [path for path in source.names() if is_image(path)]
        super().__init__(name or place.name, source, paths, skip_bad=skip_bad)


class ImageList(ImageData):
    """Images named by a text file: `relative/path class_index` or `relative/path l_1 ... l_C` with zeros and ones.

    Blank lines and CR line ends are ignored, the order is kept; a path may hold spaces where it ends like an image.
    classes: their number, where the list need not show all. Raises FileNotFoundError when the list is missing,
    ImageError naming the line that cannot be read, and ValueError for labels outside the classes.
    """

    def __init__(
        self,
        root: str | Path,
        list_file: str,
        *,
        folder: str = "",
        name: str = "",
        classes: int = 0,
        skip_bad: bool = False,
    ):
        source = Folder(Path(root).expanduser() / folder)
        file = source.root / list_file
        if not file.is_file():
            raise FileNotFoundError(
                f"no list file {file}; expected lines `relative/path class` or `relative/path 0 1 ...`"
            )
        with open(file, "rb") as plain:
            found = plainly_listed(plain)
        if found is None:
            with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
                found = listed(lines, str(file))
        paths, table = found
        labels = table[:, 0] if table.shape[1] == 1 else table
        count = classes or (int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1])
        name = name or source.root.name
        super().__init__(name, source, paths, labels, [str(i) for i in range(count)], skip_bad=skip_bad)


def plainly_listed(file: BinaryIO, block: int = 1 << 20) -> tuple[Names, np.ndarray] | None:
    """What `listed` makes of a list, twenty times as fast, where all of its lines are `path class`; else None.

    That is: ASCII without other blanks than one space a line, and a class of at most 18 digits. Read by blocks of so
    many bytes, so that little is held beside the result.
    """
    labels = Growing(np.int64)

    def blocks() -> Iterator[tuple[bytes, np.ndarray]]:
        while data := file.read(block) + file.readline():
            text, lengths, classes = _plain_block(np.frombuffer(data.removesuffix(b"\n") + b"\n", np.uint8))
            labels.extend(classes)
            yield text, lengths

    try:
        names = Names.of_blocks(blocks())
    except _OtherLines:
        return None
    return (names, labels.whole()[:, None]) if names else None


class _OtherLines(Exception):
    pass


def _plain_block(text: np.ndarray) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Names one behind the other, their lengths (n,) and the classes (n,) of whole lines; raises for other lines."""
    ends = np.flatnonzero(text == ord("\n"))
    spaces = np.flatnonzero(text == ord(" "))
    if len(spaces) != len(ends) or text.max() > 126 or np.count_nonzero(text <= 32) != 2 * len(ends):
        raise _OtherLines
    starts = np.append(0, ends[:-1] + 1)
    digits = ends - spaces - 1
    if (starts >= spaces).any() or digits.min() < 1 or digits.max() > 18:
        raise _OtherLines
    labels = np.zeros(len(ends), np.int64)
    for place in range(int(digits.max())):
        longer = digits > place
        digit = text[spaces[longer] + 1 + place] - np.uint8(ord("0"))
        if (digit > 9).any():
            raise _OtherLines
        labels[longer] = labels[longer] * 10 + digit
    sign = np.zeros(len(text), np.int8)  # 1 where a name begins, -1 behind it
    sign[starts], sign[spaces] = 1, -1
    kept = np.cumsum(sign, dtype=np.int8).view(bool)
    return text[kept].tobytes(), spaces - starts, labels


def listed(lines: Iterable[str], file: str) -> tuple[Names, np.ndarray]:
    """Paths and their label columns (n, C) int64 of the lines of a list; raises ImageError naming the odd line."""
    values, width = array("q"), 0

    def images() -> Iterable[str]:
        nonlocal width
        for line in filter(None, map(str.strip, lines)):
            fields = line.split()
            last = max((i for i, field in enumerate(fields) if is_image(field)), default=0)
            count = len(fields) - last - 1
            try:
                values.extend(map(int, fields[last + 1 :]))
            except (ValueError, OverflowError) as error:
                raise ImageError(f"{file}: labels must be integers, got {line!r}") from error
            width = width or count
            if count != width or not count:
                raise ImageError(f"{file}: {count} labels in {line!r}, the first line has {width}")
            yield line.rsplit(maxsplit=count)[0]

    paths = Names(images())
    if not paths:
        raise ImageError(f"{file} lists no image; expected lines `relative/path class` or `relative/path 0 1 ...`")
    return paths, np.array(values, np.int64).reshape(len(paths), width)


def centre_view(image: Image.Image, resize: int, crop: int) -> np.ndarray:
    """Evaluation view: shorter side to `resize` (bicubic, antialiased), centre crop; RGB -> uint8 (crop, crop, 3)."""
    width, height = image.size
    short = min(width, height)
    size = (resize, int(resize * height / short)) if width <= height else (int(resize * width / short), resize)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return np.array(image.crop((left, top, left + crop, top + crop)))
