"""What tasks that label pixels show: tiles of a sheet, and a table by class."""

from __future__ import annotations

import numpy as np

from evaluate.overlay import Tile, colours
from evaluate.pictures import safe_cell
from pretrain.datasets.masks import VOID


def tiles_of(image: np.ndarray, truth: np.ndarray, found: np.ndarray, path: str, iou: float) -> list[Tile]:
    """Image, true labels and labels found, side by side; where the truth is void, so is what is shown as found."""
    name = path.rpartition("/")[2]
    shown = np.where(truth == VOID, VOID, found)
    return [(image, name), (colours(truth), "annotation"), (colours(shown), f"found, mIoU {100 * iou:.1f}")]


def class_table(classes: list[str], total: np.ndarray) -> bytes:
    """CSV with a line a class: its IoU and its share of the annotated pixels; empty for a class without pixels."""
    union = total.sum(0) + total.sum(1) - total.diagonal()
    share = total.sum(1) / max(total.sum(), 1)
    lines = [
        f"{safe_cell(name)},{total[c, c] / union[c]:.6f},{share[c]:.6f}"
        if union[c]
        else f"{safe_cell(name)},,{share[c]:.6f}"
        for c, name in enumerate(classes)
    ]
    return "\n".join(["class,iou,share", *lines, ""]).encode()
