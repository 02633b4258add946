"""Where the files of a dataset lie: below a directory or inside a tar archive; nothing is ever written there."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

from PIL import UnidentifiedImageError

ARCHIVES = (".tar", ".tar.gz", ".tgz")
MEMORY_BYTES = 2_000_000_000  # the largest compressed archive that is unpacked into memory


class ImageError(ValueError):
    """An image that cannot be used; the message names its path."""


def reason(error: Exception) -> str:
    """Why Pillow cannot read an image; its own words for an unknown format name an object in memory."""
    return "no image format that is known" if isinstance(error, UnidentifiedImageError) else str(error)


class Folder:
    """Bytes of files below a directory."""

    def __init__(self, root: Path):
        self.root = root

    def names(self, inside: str = "") -> list[str]:
        """Relative paths of all files below the directory `inside` that are not hidden, in byte order."""
        found = []
        for base, folders, files in os.walk(self.root / inside, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            place = Path(base).relative_to(self.root)
            found += [(place / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(found, key=os.fsencode)

    def folders(self, inside: str = "") -> list[str]:
        """Names of the directories in `inside` that are not hidden, in byte order; none where it does not exist."""
        if not (self.root / inside).is_dir():
            return []
        with os.scandir(self.root / inside) as entries:
            return sorted((e.name for e in entries if e.is_dir() and not e.name.startswith(".")), key=os.fsencode)

    def holds(self, name: str) -> bool:
        """Whether there is a file or a directory of this name."""
        return (self.root / name).exists()

    def read(self, name: str) -> bytes:
        """Content of a file; raises ImageError naming the path when it is missing or unreadable."""
        try:
            # a list may name a file from the root on
            with open(os.path.join(self.root, name), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ImageError(f"cannot read {self.root / name}: {error.strerror}") from error

    def size(self, name: str) -> int:
        """Bytes of a file (0 when it is missing)."""
        try:
            return os.stat(os.path.join(self.root, name)).st_size
        except OSError:
            return 0


class Archive:
    """Bytes of members of a tar archive below its folder `inside`, read in place; a compressed one is held in memory.

    Raises ImageError when the archive is damaged, or compressed and larger than 2 GB.
    """

    def __init__(self, path: Path, inside: str):
        self.root, self._lock = path, threading.Lock()
        self._members: dict[str, tuple[int, int]] = {}
        self._directories = set[str]()  # those that have a member of their own, and so may hold nothing else
        self._memory: bytearray | None = None
        prefix = f"{inside}/" if inside else ""
        try:
            with tarfile.open(path) as archive:
                if not _is_plain_tar(path):
                    self._memory = _memory_for(path)
                for member in archive:
                    self._add(archive, member, prefix)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ImageError(f"cannot read archive {path}: {error}") from error
        self._file = None if self._memory is not None else os.open(path, os.O_RDONLY)

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo, prefix: str) -> None:
        name = PurePosixPath(member.name)
        if any(part.startswith(".") and part != "." for part in name.parts) or not str(name).startswith(prefix):
            return
        if member.isdir():
            self._directories.add(str(name)[len(prefix) :])
        if not member.isfile():
            return
        start = member.offset_data
        if self._memory is not None:
            start = len(self._memory)
            self._memory += archive.extractfile(member).read()  # type: ignore[union-attr]
        self._members[str(name)[len(prefix) :]] = (start, member.size)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._members, key=os.fsencode)

    def names(self, inside: str = "") -> list[str]:
        """Names of all members below the folder `inside` that are not hidden, in byte order."""
        prefix = os.fsencode(f"{inside}/" if inside else "")
        first = bisect_left(self._sorted, prefix, key=os.fsencode)
        last = bisect_left(self._sorted, True, first, key=lambda name: not os.fsencode(name).startswith(prefix))
        return self._sorted[first:last]

    def folders(self, inside: str = "") -> list[str]:
        """Names of the folders in `inside` that are not hidden, in byte order, empty ones too."""
        depth, prefix = inside.count("/") + 1 if inside else 0, f"{inside}/" if inside else ""
        parts = (name.split("/") for name in self.names(inside))
        found = {part[depth] for part in parts if len(part) > depth + 1}
        found |= {name.split("/")[depth] for name in self._directories if name.startswith(prefix)}
        return sorted(found - {"", "."}, key=os.fsencode)

    def holds(self, name: str) -> bool:
        """Whether there is a member or a folder of this name."""
        return name in self._members or name in self._directories or bool(self.names(name))

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


Source = Folder | Archive

_opened: WeakValueDictionary[tuple, Archive] = WeakValueDictionary()  # the splits of a dataset share one index


def open_archive(path: Path, inside: str) -> Archive:
    """An archive, opened once as long as it is in use and unchanged."""
    stat = path.stat()
    key = (path.resolve(), inside, stat.st_size, stat.st_mtime_ns)
    found = _opened.get(key)
    if found is None:
        found = _opened[key] = Archive(path, inside)
    return found


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _memory_for(path: Path) -> bytearray:
    if path.stat().st_size > MEMORY_BYTES:
        raise ImageError(
            f"compressed archive {path} is too large to be held in memory; unpack it, or only uncompress it"
        )
    return bytearray()


def one_or_more(names: str | Sequence[str]) -> list[str]:
    """A name or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def find_archive(root: Path, folders: Sequence[str], archive: str = "") -> Archive | None:
    """The archive named like one of the folders, which it holds, or the publisher's `archive` of the first of them."""
    named = [(folder, f"{folder}{suffix}") for folder in folders if folder for suffix in ARCHIVES]
    places = [(root / file, PurePosixPath(folder).name) for folder, file in named]
    if archive:
        places.append((root / archive, folders[0]))
    return next((open_archive(path, inside) for path, inside in places if path.is_file()), None)


def locate(
    root: str | Path,
    folder: str | Sequence[str],
    expected: str,
    needs: str | Sequence[str] = (),
    archive: str = "",
) -> Source:
    """Find a dataset at root/folder, in root/folder.tar[.gz] or the publisher's `archive`, or at root itself.

    folder: its usual name, or several; needs: relative paths of which a directory must hold one to be the dataset, the
    first part of `expected` where none is given. Raises FileNotFoundError naming the place and the expected layout.
    """
    root = Path(root).expanduser()
    folders = one_or_more(folder)
    marks = one_or_more(needs) or [expected.split("/")[0]]
    for name in folders:
        if any((root / name / mark).exists() for mark in marks):
            return Folder(root / name)
    if found := find_archive(root, folders, archive):
        return found
    if any((root / mark).exists() for mark in marks):
        return Folder(root)
    packed = archive or (f"{folders[0]}.tar" if folders[0] else "")
    nor = f" (nor {packed} there)" if packed else ""
    raise FileNotFoundError(f"no dataset at {root / folders[0]}{nor}; expected {expected}")


def require(source: Source, name: str, expected: str) -> None:
    """Raises FileNotFoundError with the expected layout unless a dataset holds this file or directory."""
    if not source.holds(name):
        raise FileNotFoundError(f"no {source.root}/{name}; expected {expected}")


def read_lines(source: Source, name: str, expected: str) -> list[str]:
    """Lines of a text file without blank ones, CR ends and outer spaces; FileNotFoundError when it is missing."""
    require(source, name, expected)
    text = source.read(name).decode("utf-8-sig", "surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_json(source: Source, name: str, expected: str) -> Any:
    """Content of a JSON file; FileNotFoundError when it is missing, ValueError when it cannot be read as JSON."""
    require(source, name, expected)
    try:
        return json.loads(source.read(name))
    except ValueError as error:
        raise ValueError(f"{source.root}/{name} is no JSON file: {error}; fetch it again") from error
