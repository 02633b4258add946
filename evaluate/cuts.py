"""Graph cuts of whole image sets: what the tasks on unsupervised objects share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from evaluate.dense import check_kind, dense_features, resized_batches, snapped
from evaluate.metrics.graph_cut import maskcut_batch
from evaluate.tasks.base import Subject
from pretrain.datasets import ImageData


def check_cuts(tau: float, size: int, feature: str) -> None:
    """Raises ValueError for settings that no graph can be cut with."""
    check_kind(feature)
    if not 0 <= tau < 1:
        raise ValueError(f"tau={tau} must be in [0, 1), a cosine above which patches are joined")
    if size < 1:
        raise ValueError(f"size={size} must be a number of pixels")


def cut_protocol(subject: Subject, tau: float, size: int, feature: str) -> dict[str, Any]:
    """The part of a protocol that all cuts share."""
    view = {"size": [size, snapped(size, subject.backbone.patch_size)], "ratio": "not kept", "interpolation": "lanczos"}
    return {"feature": feature, "tau": tau, "eps": 1e-5, "view": view, "precision": subject.store.precision}


def cut_images(
    subject: Subject,
    images: ImageData,
    rows: Sequence[int],
    tau: float,
    size: int,
    feature: str,
    stages: int,
    corners: bool = True,
) -> Iterator[tuple[int, Tensor | None, int]]:
    """Row, masks (stages, h, w) on the patch grid, and side of the input in pixels; no masks for a damaged image."""
    backbone, side = subject.backbone, snapped(size, subject.backbone.patch_size)
    batches = resized_batches(subject.store, images, rows, size, backbone.patch_size, "lanczos")
    with subject.store.progress(f"cuts of {images.name}", len(rows)) as bar:
        for pixels, kept, damaged in batches:
            if kept:
                features = dense_features(subject.store, backbone, pixels, feature).permute(0, 3, 1, 2)
                for row, masks in zip(
                    kept, maskcut_batch(features, tau=tau, stages=stages, corners=corners), strict=True
                ):
                    yield row, masks, side
            yield from ((row, None, side) for row in damaged)
            bar.update(len(kept) + len(damaged))
