"""Pickled ground truth read as data: containers, numbers, text and numpy arrays; anything else in it is refused.

Unpickling can call whatever a file names. Here a name is never looked up: the few that numpy arrays are written with
stand for the small classes below, which turn bytes into lists and do nothing else. The interpreter's own reader is used
in its Python form, whose memory is bounded by the length of the file.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections import OrderedDict
from typing import Any

import numpy as np

from pretrain.datasets.sources import ImageError

ELEMENT = re.compile(r"[biuf][1248]|[SU]\d{1,4}")
DAMAGE = (
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    struct.error,
)


class StandIn:
    """What a name in a pickle stands for; a file cannot change it."""

    def __setstate__(self, state: Any) -> None:
        raise TypeError(f"{type(self).__name__} has no state")


class Element(StandIn):
    """Stand-in of numpy.dtype: numbers, text, or objects ("O8")."""

    def __init__(self, code: str, *_: Any):
        if not (isinstance(code, str) and (code in ("O", "O8") or ELEMENT.fullmatch(code))):
            raise pickle.UnpicklingError(f"an array of type {str(code)!r:.40}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">", "=") else "="

    def values(self, raw: Any) -> list:
        """Elements (n,) from their bytes, or the list of objects itself."""
        if self.code in ("O", "O8"):
            return list(raw) if isinstance(raw, list) else []
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)  # Python 2 wrote bytes as text
        return np.frombuffer(data, self.order + self.code).tolist() if data else []


class Array(list):
    """Stand-in of a numpy array: its elements as a flat list."""

    def __setstate__(self, state: tuple) -> None:
        _, _, element, _, raw = state
        self[:] = element.values(raw)


class Reconstruct(StandIn):
    """Stand-in of numpy's _reconstruct: an empty array that its state will fill."""

    def __new__(cls, *_: Any) -> Any:
        return Array()


class FromBuffer(StandIn):
    """Stand-in of numpy's _frombuffer, which protocol 5 writes arrays with."""

    def __new__(cls, raw: Any, element: Element, *_: Any) -> Any:
        return Array(element.values(raw))


class Scalar(StandIn):
    """Stand-in of a numpy scalar: the number or text."""

    def __new__(cls, element: Element, raw: Any) -> Any:
        return element.values(raw)[0]


class Latin1(StandIn):
    """Stand-in of _codecs.encode, by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, *_: Any) -> Any:
        return text.encode("latin1")


class NoBytes(StandIn):
    """Stand-in of bytes, named only where there are none."""

    def __new__(cls) -> Any:
        return b""


CONTAINERS: dict[str, Any] = {kind.__name__: kind for kind in (dict, list, tuple, set, frozenset)}
CONTAINERS["bytes"] = NoBytes
STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Element,
    ("_codecs", "encode"): Latin1,
    ("collections", "OrderedDict"): OrderedDict,
}
for _module in ("numpy.core", "numpy._core"):  # before and since numpy 2
    STAND_INS[f"{_module}.multiarray", "_reconstruct"] = Reconstruct
    STAND_INS[f"{_module}.multiarray", "scalar"] = Scalar
    STAND_INS[f"{_module}.numeric", "_frombuffer"] = FromBuffer
for _module in ("builtins", "__builtin__"):
    STAND_INS |= {(_module, name): kind for name, kind in CONTAINERS.items()}


class _Reader(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return STAND_INS[module, name]

    def load_bytearray8(self) -> None:
        """Bytes as far as the file has them: the original makes room for the announced length first."""
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(self.read(length))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8  # type: ignore[assignment]


def load_plain(data: bytes, path: str) -> Any:
    """Content of a pickle as dicts, lists, tuples, sets, numbers and text; numpy arrays become flat lists.

    Nothing that the file names is imported or called. Raises ImageError naming the file and what it holds beside that,
    or that it is damaged.
    """
    try:
        return _Reader(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        what = f"holds {error}, which is neither a container nor a numpy array, or is damaged"
        raise ImageError(f"{path} {what}; it is refused, fetch it from its publisher") from error
    except DAMAGE as error:
        raise ImageError(f"{path} is no pickle of containers and numpy arrays ({error}); fetch it again") from error
