"""Many strings as one block of bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """A fixed sequence of file names that takes their bytes and 8 more each.

    A list of strings takes some 100 bytes a name, and forked processes copy it as they look at it, since each look
    changes a count of references; a million images would so cost every decoding process 100 MB.
    """

    def __init__(self, names: Iterable[str]):
        self._text: bytearray
        self._ends: np.ndarray
        if isinstance(names, Names):
            self._text, self._ends = names._text, names._ends
            return
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        self._text, self._ends = text, np.frombuffer(ends, np.int64)

    @classmethod
    def of_block(cls, text: bytearray, ends: np.ndarray) -> Names:
        """Names that stand one behind the other in `text`, `ends` (n + 1,) int64 from 0 to where the last one ends."""
        names = cls.__new__(cls)
        names._text, names._ends = text, ends
        return names

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            rows = range(*index.indices(len(self)))
            if rows.step != 1:
                return [self[i] for i in rows]
            ends = self._ends[rows.start : rows.stop + 1].tolist()
            return [self._text[a:b].decode("utf-8", "surrogateescape") for a, b in pairwise(ends)]
        row = range(len(self))[index]
        return self._text[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._text == other._text and np.array_equal(self._ends, other._ends)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({list(self[:3])}{'...' if len(self) > 3 else ''}, {len(self)} in all)"
