"""On disk: files that appear whole or not at all, names safe in a path, values safe in JSON, arrays beside them."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import secrets
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file that other processes see either whole or not at all, also when this one is killed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:80]}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def slug(text: str) -> str:
    """`text` as a safe part of a file name; what had to be changed is told apart by a hash."""
    clean = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:48]
    if clean == text != "":
        return clean
    return f"{clean}-{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:6]}".lstrip("-")


def plain(value: Any, where: str) -> Any:
    """The same value made of JSON types only (arrays, tuples and paths converted); raises ValueError naming `where`."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(f"{where} = {value!r} cannot be stored: use finite numbers, text, lists and dictionaries")


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Content of an `.npz` file; raises ValueError for an array of Python objects."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"outcomes[{name!r}] holds Python objects: use an array of numbers or of text")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    return buffer.getvalue()


class StoredArrays(Mapping[str, np.ndarray]):
    """Arrays of one `.npz` file, loaded and checked against their digest when first asked for.

    `names`, where they are known, tell what is there without opening the file. Raises FileNotFoundError when the file
    is gone and ValueError when it is not the file that was written.
    """

    def __init__(self, path: Path, sha256: str, names: Sequence[str] | None = None) -> None:
        self.path, self.sha256 = path, sha256
        self._names = None if names is None else tuple(names)
        self._arrays: dict[str, np.ndarray] | None = None

    def _load(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            if not self.path.exists():
                raise FileNotFoundError(f"{self.path}: the outcomes of a record are missing; evaluate it again")
            content = self.path.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.sha256:
                raise ValueError(f"{self.path}: not the outcomes that were recorded (other sha256); evaluate it again")
            try:
                with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                    self._arrays = {name: stored[name] for name in stored.files}
            except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
                raise ValueError(f"{self.path}: no file of arrays ({one_line(error)}); evaluate it again") from error
        return self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self._load()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load() if self._names is None else self._names)

    def __contains__(self, name: object) -> bool:
        return name in (self._load() if self._names is None else self._names)

    def __len__(self) -> int:
        return len(self._load() if self._names is None else self._names)

    def check(self) -> None:
        """Load the file; raises as above, also when the names are not those that were recorded."""
        found = self._load()
        if self._names is not None and set(found) != set(self._names):
            raise ValueError(
                f"{self.path}: holds {sorted(found)}, recorded were {sorted(self._names)}; evaluate it again"
            )


def one_line(error: Exception) -> str:
    """Kind and first line of an error, at most 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
