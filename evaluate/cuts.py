"""Graph cuts of whole image sets: what the tasks on unsupervised objects share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from evaluate.dense import check_kind, dense_features, resized_batches, snapped
from evaluate.metrics.graph_cut import maskcut_batch
from evaluate.tasks.base import Subject
from pretrain.datasets import ImageData


@dataclass(frozen=True)
class Cut:
    """One image: its row, the input (S, S, 3) uint8 and the masks (stages, h, w) on its patch grid; None if damaged."""

    row: int
    image: np.ndarray | None = None
    masks: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Of the input, in pixels."""
        assert self.image is not None
        return self.image.shape[0], self.image.shape[1]


def check_cuts(tau: float, size: int, feature: str) -> None:
    """Raises ValueError for settings that no graph can be cut with."""
    check_kind(feature)
    if not 0 <= tau < 1:
        raise ValueError(f"tau={tau} must be in [0, 1), a cosine above which patches are joined")
    if size < 1:
        raise ValueError(f"size={size} must be a number of pixels")


def cut_protocol(subject: Subject, tau: float, size: int, feature: str, center: bool) -> dict[str, Any]:
    """The part of a protocol that all cuts share."""
    view = {"size": [size, snapped(size, subject.backbone.patch_size)], "ratio": "not kept", "interpolation": "lanczos"}
    shared = {"feature": feature, "tau": tau, "eps": 1e-5, "view": view, "precision": subject.store.precision}
    return shared | ({"center": "mean of the image's patches"} if center else {})


def alike(tau: float, center: bool) -> str:
    """Why an image could not be cut, and what may help."""
    return f"their patches are all alike beyond tau={tau}, or none" + (
        "" if center else "; center=true may tell them apart"
    )


def cut_images(
    subject: Subject,
    images: ImageData,
    rows: Sequence[int],
    tau: float,
    size: int,
    feature: str,
    stages: int,
    center: bool,
    corners: bool = True,
) -> Iterator[Cut]:
    """Every image as soon as it is cut; without masks where it is damaged.

    `center` takes the mean of an image's patches off them first. Where it is most of every patch, as in small networks,
    it makes all of them alike.
    """
    backbone = subject.backbone
    batches = resized_batches(subject.store, images, rows, size, backbone.patch_size, "lanczos")
    with subject.store.progress(f"cuts of {images.name}", len(rows)) as bar:
        for pixels, kept, damaged in batches:
            if kept:
                features = dense_features(subject.store, backbone, pixels, feature).permute(0, 3, 1, 2)
                if center:
                    features = features - features.mean(dim=(2, 3), keepdim=True)
                masks = maskcut_batch(features, tau=tau, stages=stages, corners=corners)
                yield from map(Cut, kept, pixels.permute(0, 2, 3, 1).numpy(), masks)
            yield from map(Cut, damaged)
            bar.update(len(kept) + len(damaged))
