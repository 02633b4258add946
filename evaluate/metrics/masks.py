"""Mask geometry that the dense tasks share: nearest-neighbour resizing, hole filling and tight boxes."""

import cv2
import numpy as np
import torch


def nearest_resize(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize label maps by nearest neighbour, taking the source pixel under each target pixel's centre.

    labels (..., h, w) of any dtype; size (H, W) in pixels; returns (..., H, W) of the same dtype. Target pixel i
    reads source pixel floor((i + 1/2) h / H), in whole numbers, so that no rounding of a float scale can move a
    border.
    """
    rows, columns = (
        (2 * torch.arange(out, device=labels.device) + 1) * source // (2 * out)
        for out, source in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill the background regions of a mask that no 4-connected path joins to the image border.

    mask (H, W) boolean; returns (H, W) boolean.
    """
    outside = np.pad(mask.astype(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), (2,), flags=4)
    return outside[1:-1, 1:-1] != 2


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box around a mask, as (x, y, width, height) in pixels; all zero for an empty mask.

    mask (H, W) boolean.
    """
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return int(x), int(y), int(width), int(height)
