"""CIFAR-10 as its publisher packs it in binary (Krizhevsky 2009); the pickled batches are not read, for safety."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.datasets.base import ImageData
from pretrain.datasets.sources import ImageError, locate, read_lines, require

FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # class, then the red, green and blue planes
LAYOUT = "cifar-10-batches-bin/{batches.meta.txt,data_batch_{1..5}.bin,test_batch.bin}"


class CIFAR10Binary(ImageData):
    """Images of cifar-10-batches-bin, held in memory; an image is named `file:position`. split: train or test.

    Raises FileNotFoundError when a batch is missing, and ImageError when its size is no multiple of a record.
    """

    def __init__(self, root: str | Path, split: str, *, name: str = "cifar10_binary", skip_bad: bool = False):
        if split not in FILES:
            raise ValueError(f"unknown split {split!r} of CIFAR-10; use {', '.join(FILES)}")
        source = locate(root, "cifar-10-batches-bin", LAYOUT, "batches.meta.txt", "cifar-10-binary.tar.gz")
        classes, parts, paths = read_lines(source, "batches.meta.txt", LAYOUT), [], []
        for file in FILES[split]:
            require(source, file, LAYOUT)
            parts.append(records(source.read(file), f"{source.root}/{file}"))
            paths += [f"{file}:{i}" for i in range(len(parts[-1]))]
        self.records = np.concatenate(parts)
        super().__init__(name, source, paths, self.records[:, 0].astype(np.int64), classes, skip_bad=skip_bad)

    def image(self, index: int) -> Image.Image:
        """Image `index` as 8-bit RGB."""
        planes = self.records[index, 1:].reshape(3, SIDE, SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def length(self, index: int) -> int:
        """Bytes of an image, the same for all."""
        return RECORD - 1

    def content(self, index: int) -> bytes:
        """The planes of image `index`."""
        return self.records[index, 1:].tobytes()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the records, in order."""
        return hashlib.sha256(self.records.tobytes()).hexdigest()[:16]


def records(data: bytes, path: str) -> np.ndarray:
    """Records of a batch, (n, 3073) uint8; raises ImageError naming the file when it is no whole number of them."""
    if not data or len(data) % RECORD:
        raise ImageError(f"{path} has {len(data)} bytes, no multiple of {RECORD}; it is damaged, fetch it again")
    return np.frombuffer(data, np.uint8).reshape(-1, RECORD)
