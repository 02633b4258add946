"""Readers of image sets as they come from their publishers: name and split -> images, labels, fingerprint.

Files are read by content, never by extension; nothing is ever written into a dataset.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


class ImageError(ValueError):
    """An image that cannot be used; the message names its path."""


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
            f"cannot decode {path}: {error}; mend or remove it, or set skip_bad=true (pretrain: trainer.skip_bad=true)"
        ) from error


class Folder:
    """Bytes of files below a directory."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        """Relative paths of all files that are not hidden, in byte order."""
        found = []
        for base, folders, files in os.walk(self.root, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(base).relative_to(self.root)
            found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(found, key=os.fsencode)

    def read(self, name: str) -> bytes:
        """Content of a file; raises ImageError naming the path when it is missing or unreadable."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise ImageError(f"cannot read {self.root / name}: {error.strerror}") from error

    def size(self, name: str) -> int:
        """Bytes of a file (0 when it is missing)."""
        try:
            return os.stat(f"{self.root}/{name}").st_size
        except OSError:
            return 0


class Archive:
    """Bytes of members of a tar archive, read in place; a compressed one is held in memory once."""

    def __init__(self, path: Path, inside: str):
        self.root, self._lock = path, threading.Lock()
        self._members: dict[str, tuple[int, int]] = {}
        self._memory: bytearray | None = None
        try:
            with tarfile.open(path) as archive:
                if tarfile.is_tarfile(path) and not _is_plain_tar(path):
                    self._memory = bytearray()
                for member in archive:
                    self._add(archive, member, inside)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ImageError(f"cannot read archive {path}: {error}") from error
        self._file = None if self._memory is not None else os.open(path, os.O_RDONLY)

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo, inside: str) -> None:
        name = PurePosixPath(member.name)
        if not member.isfile() or any(part.startswith(".") and part != "." for part in name.parts):
            return
        if inside and (not name.parts or name.parts[0] != inside):
            return
        relative = str(PurePosixPath(*name.parts[1:])) if inside else str(name)
        start = member.offset_data
        if self._memory is not None:
            start = len(self._memory)
            self._memory += archive.extractfile(member).read()  # type: ignore[union-attr]
        self._members[relative] = (start, member.size)

    def names(self) -> list[str]:
        """Names of all members that are not hidden, in byte order."""
        return sorted(self._members, key=os.fsencode)

    def read(self, name: str) -> bytes:
        """Content of a member; raises ImageError naming it when it is missing."""
        if name not in self._members:
            raise ImageError(f"cannot read {name}: no such member in {self.root}")
        start, size = self._members[name]
        if self._memory is not None:
            return bytes(self._memory[start : start + size])
        return os.pread(self._file, size, start)  # type: ignore[arg-type]  # no seek: safe between forked workers

    def size(self, name: str) -> int:
        """Bytes of a member (0 when it is missing)."""
        return self._members.get(name, (0, 0))[1]


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def locate(root: str | Path, folder: str, expected: str) -> Folder | Archive:
    """Find a dataset named `folder` at root/folder, root itself, or root/folder.tar[.gz], in this order.

    Raises FileNotFoundError naming the places looked at and the expected layout.
    """
    root = Path(root).expanduser()
    first = expected.split("/")[0]
    for place in (root / folder, root):
        if (place / first).is_dir():
            return Folder(place)
    for suffix in (".tar", ".tar.gz", ".tgz"):
        if folder and (archive := root / f"{folder}{suffix}").is_file():
            return Archive(archive, PurePosixPath(folder).name)
    raise FileNotFoundError(f"no dataset at {root / folder} (nor {folder or root.name}.tar there); expected {expected}")


class ImageData:
    """An ordered set of images with optional labels.

    paths: relative names; labels: (n,) class indices, (n, C) 0/1 for several labels, or None; `classes`: their names.
    `skip_bad` leaves out images that cannot be decoded and counts them in `skipped` (found when they are read).
    """

    def __init__(
        self,
        name: str,
        source: Folder | Archive,
        paths: Sequence[str],
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
        *,
        skip_bad: bool = False,
    ):
        if not len(paths):
            raise FileNotFoundError(f"no image found in {source.root}; known endings: {', '.join(sorted(EXTENSIONS))}")
        self.name, self.source, self.paths = name, source, list(paths)
        self.labels, self.classes, self.skip_bad = labels, list(classes), skip_bad

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """Image `index` as 8-bit RGB; raises ImageError naming its path when it is missing or damaged."""
        path = self.paths[index]
        return decode(self.source.read(path), f"{self.source.root}/{path}")

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all names, file sizes and labels, in order: equal sets have equal digests wherever they lie."""
        digest = hashlib.sha256()
        for i, path in enumerate(self.paths):
            label = "" if self.labels is None else self.labels[i].tolist()
            digest.update(f"{path}\0{self.source.size(path)}\0{label}\n".encode())
        return digest.hexdigest()[:16]


def is_image(name: str) -> bool:
    """Whether a file name ends like an image, in any case."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


class ImageFolder(ImageData):
    """`root/<split>/<class>/...image`, a directory or a tar archive; classes in byte order of their names.

    Accepts the dataset's folder or its parent as `root`. Raises FileNotFoundError when the split is missing or holds
    no image, and ImageError when a class directory is empty (`allow_empty` admits it).
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str = "",
        name: str = "",
        allow_empty: bool = False,
        skip_bad: bool = False,
    ):
        layout = f"{split}/<class>/<image>"
        source = locate(root, folder, layout)
        inside = f"{split}/"
        paths = [path for path in source.names() if path.startswith(inside) and is_image(path) and path.count("/") >= 2]
        if not paths:
            raise FileNotFoundError(f"no image in {source.root}/{split}; expected {layout}")
        names = {path.split("/")[1] for path in paths}
        if isinstance(source, Folder):
            entries = {e.name for e in os.scandir(source.root / split) if e.is_dir() and not e.name.startswith(".")}
            if entries - names and not allow_empty:
                empty = sorted(entries - names)[0]
                raise ImageError(
                    f"class directory {source.root}/{split}/{empty} holds no image; "
                    "fill it, remove it or set allow_empty=true"
                )
            names |= entries
        classes = sorted(names, key=os.fsencode)
        index = {name: i for i, name in enumerate(classes)}
        labels = np.array([index[path.split("/")[1]] for path in paths])
        super().__init__(name or folder or source.root.name, source, paths, labels, classes, skip_bad=skip_bad)


class Images(ImageData):
    """Every image below a folder (or in a tar archive), whatever its sub-folders; no labels."""

    def __init__(self, root: str | Path, *, folder: str = "", name: str = "", skip_bad: bool = False):
        place = Path(root).expanduser() / folder
        if place.is_file():
            source: Folder | Archive = Archive(place, "")
        elif place.is_dir():
            source = Folder(place)
        else:
            raise FileNotFoundError(f"no folder of images at {place}; give data_root=<folder that holds images>")
        paths = [path for path in source.names() if is_image(path)]
        super().__init__(name or place.name, source, paths, skip_bad=skip_bad)


class ImageList(ImageData):
    """Images named by a text file: `relative/path class_index` or `relative/path l_1 ... l_C` with zeros and ones.

    Blank lines and CR line ends are ignored, the order is kept. Raises FileNotFoundError when the list is missing and
    ImageError naming the line that cannot be read.
    """

    def __init__(self, root: str | Path, list_file: str, *, folder: str = "", name: str = "", skip_bad: bool = False):
        place = Path(root).expanduser() / folder
        file = place / list_file
        if not file.is_file():
            raise FileNotFoundError(
                f"no list file {file}; expected lines `relative/path class` or `relative/path 0 1 ...`"
            )
        paths, rows = [], []
        for number, line in enumerate(file.read_text().splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            try:
                rows.append([int(value) for value in fields[1:]])
            except ValueError as error:
                raise ImageError(f"{file} line {number}: labels must be integers, got {line!r}") from error
            paths.append(fields[0])
            if len(rows[-1]) != len(rows[0]) or not rows[-1]:
                raise ImageError(f"{file} line {number}: {len(rows[-1])} labels, the first line has {len(rows[0])}")
        table = np.array(rows, np.int64)
        labels = table[:, 0] if table.shape[1] == 1 else table
        count = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
        super().__init__(
            name or place.name, Folder(place), paths, labels, [str(i) for i in range(count)], skip_bad=skip_bad
        )


def centre_view(image: Image.Image, resize: int, crop: int) -> np.ndarray:
    """Evaluation view: shorter side to `resize` (bicubic, antialiased), centre crop; RGB -> uint8 (crop, crop, 3)."""
    width, height = image.size
    short = min(width, height)
    size = (resize, int(resize * height / short)) if width <= height else (int(resize * width / short), resize)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return np.array(image.crop((left, top, left + crop, top + crop)))
