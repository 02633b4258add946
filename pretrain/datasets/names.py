"""Many strings as one block of bytes, and long arrays that lie on the disk rather than in memory."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import IO, Any, overload

import numpy as np

BLOCK = 10_000  # names that are worked on at a time


class Growing:
    """An array that grows at its end: held in memory up to `limit` bytes, beyond that in a file without a name.

    The file goes when the array does. It is mapped, so that the system holds of it what is being read, once for all
    processes, and drops that where memory is short.
    """

    def __init__(self, dtype: Any, limit: int = 1 << 20):
        self.dtype, self.limit = np.dtype(dtype), limit
        self._parts: list[np.ndarray] = []
        self._held = 0
        self._file: IO[bytes] | None = None

    def extend(self, values: np.ndarray) -> None:
        """Add values (n,) behind the others."""
        self._parts.append(np.ascontiguousarray(values, self.dtype))
        self._held += self._parts[-1].nbytes
        if self._held > self.limit:
            self._write()

    def _write(self) -> None:
        self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the array grows
        for part in self._parts:
            self._file.write(part.data)
        self._parts, self._held = [], 0

    def whole(self) -> np.ndarray:
        """All values (n,), not to be written to."""
        if self._file is None:
            return np.concatenate([np.zeros(0, self.dtype), *self._parts])
        self._write()
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns of arrays that are read-only
        return np.frombuffer(mapped, self.dtype)


def release(values: np.ndarray) -> None:
    """Let go of what was read of a mapped array; it is read again where it is asked for again."""
    owner: Any = values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap):
        owner.obj.madvise(mmap.MADV_DONTNEED)


class Names(Sequence[str]):
    """A fixed sequence of file names that takes their bytes and 8 more each, of many names on the disk.

    A list of strings takes some 100 bytes a name, and forked processes copy it as they look at it, since each look
    changes a count of references; a million images would so cost every decoding process 100 MB.
    """

    _text: np.ndarray  # the bytes of one name behind the other
    _ends: np.ndarray  # (n + 1,) from 0 to where the last one ends

    def __init__(self, names: Iterable[str]):
        if isinstance(names, Names):
            self._text, self._ends = names._text, names._ends
            return
        rest = iter(names)
        encoded = iter(lambda: [name.encode("utf-8", "surrogateescape") for name in islice(rest, BLOCK)], [])
        self._fill((b"".join(block), np.array([len(name) for name in block])) for block in encoded)

    @classmethod
    def of_blocks(cls, blocks: Iterable[tuple[bytes, np.ndarray]]) -> Names:
        """Names that come many at a time: their bytes, one behind the other, and the length of each (n,)."""
        names = cls.__new__(cls)
        names._fill(blocks)
        return names

    def _fill(self, blocks: Iterable[tuple[bytes, np.ndarray]]) -> None:
        text, ends, size = Growing(np.uint8), Growing(np.int64), 0
        ends.extend(np.zeros(1))
        for joined, lengths in blocks:
            text.extend(np.frombuffer(joined, np.uint8))
            ends.extend(size + np.cumsum(lengths))
            size += len(joined)
        self._text, self._ends = text.whole(), ends.whole()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            rows = range(*index.indices(len(self)))
            return [self[i] for i in rows] if rows.step != 1 else self._between(rows.start, max(rows.start, rows.stop))
        row = range(len(self))[index]
        return self._between(row, row + 1)[0]

    def _between(self, start: int, stop: int) -> list[str]:
        ends = self._ends[start : stop + 1]
        text = self._text[ends[0] : ends[-1]].tobytes()
        return [text[a:b].decode("utf-8", "surrogateescape") for a, b in pairwise((ends - ends[0]).tolist())]

    def release(self) -> None:
        """Let go of what was read of names that lie on the disk."""
        release(self._text)
        release(self._ends)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self._text, other._text) and np.array_equal(self._ends, other._ends)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({list(self[:3])}{'...' if len(self) > 3 else ''}, {len(self)} in all)"
