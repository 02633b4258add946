"""Images that two sets share, by content: what was trained on must not be what is measured on."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable

from pretrain.datasets.base import ImageData
from pretrain.datasets.sources import ImageError


def overlap(training: ImageData, held_out: ImageData) -> list[int]:
    """Positions in `training` of the images whose stored bytes are those of an image of `held_out`.

    Only images of equal size are read. An image that cannot be read overlaps with nothing: training names it.
    """
    here = [training.length(i) for i in range(len(training))]
    there = [held_out.length(i) for i in range(len(held_out))]
    shared = set(here) & set(there)
    known = set(digests(held_out, (i for i, size in enumerate(there) if size in shared)).values())
    found = digests(training, (i for i, size in enumerate(here) if size in shared))
    return [i for i, digest in found.items() if digest in known]


def digests(images: ImageData, positions: Iterable[int]) -> dict[int, bytes]:
    """sha256 of the stored bytes of some images, by position."""
    found = {}
    for i in positions:
        with contextlib.suppress(ImageError):
            found[i] = hashlib.sha256(images.content(i)).digest()
    return found
