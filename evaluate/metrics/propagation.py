"""Label propagation through a video: the labels of the first frame follow similar patches.

Jabri et al. 2020 ("Space-Time Correspondence as a Contrastive Random Walk") in the form that Caron et al. 2021 (DINO)
evaluate on DAVIS 2017: each patch of a frame averages the labels of its most similar patches in the first and the
preceding frames.
"""

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.metrics.cosine import full_precision_product, unit_rows
from evaluate.metrics.largest import largest
from evaluate.metrics.masks import nearest_resize

TILE = 16  # target patches a side that share one context window


def propagate(
    features: Tensor,
    first_labels: Tensor,
    *,
    n_last_frames: int = 7,
    radius: int = 12,
    topk: int = 5,
    temperature: float = 0.1,
) -> Tensor:
    """Soft labels of all frames but the first, from the labels of the first.

    features (T, h, w, d) patch tokens, L2-normalised inside; first_labels (h, w) integers, 0 background. The context
    of a frame is the first frame and the `n_last_frames` before it, with the soft labels found there. A patch keeps
    the context patches at most `radius` rows and columns away (0: no limit) whose cosine is at least the `topk`-th
    largest, and averages their labels with weights exp(cosine / temperature). Returns (T-1, C, h, w) float32, C =
    largest label + 1, on the device of the features. Raises ValueError for fewer context patches than `topk`, unequal
    grids, negative labels or a value that is not finite.
    """
    grid = (features.shape[1], features.shape[2])
    _check(first_labels, grid, radius, topk, temperature, n_last_frames)
    unit = unit_rows(features.flatten(0, 2), "features").view(features.shape)
    one_hot = F.one_hot(first_labels.to(unit.device).long()).float()  # (h, w, C)
    video = Propagation(unit[0], one_hot, n_last_frames, radius, topk, temperature)
    found = [video.step(frame) for frame in unit[1:]]
    return torch.stack(found or [one_hot])[: len(found)].permute(0, 3, 1, 2)


class Propagation:
    """The state of `propagate` between two frames: the first frame and the last few, whatever the video's length.

    Features (h, w, d) are unit vectors, or zero; labels (h, w, C) float32 shares.
    """

    def __init__(self, first: Tensor, labels: Tensor, n_last_frames: int, radius: int, topk: int, temperature: float):
        self.first, self.recent = (first, labels), deque[tuple[Tensor, Tensor]](maxlen=n_last_frames)
        self.radius, self.topk, self.temperature = radius, topk, temperature

    def step(self, frame: Tensor) -> Tensor:
        """Soft labels (h, w, C) of the next frame (h, w, d)."""
        context = [self.first, *self.recent]
        labels = torch.empty_like(self.first[1])
        for target, window in _tiles(frame.shape[0], frame.shape[1], self.radius):
            keys, values = (torch.stack([part[window] for part in parts]) for parts in zip(*context, strict=True))
            near = _near(target, window, self.radius, frame.device).repeat(1, len(context))
            labels[target] = _average(frame[target], keys, values, near, self.topk, self.temperature)
        self.recent.append((frame, labels))
        return labels


def start(
    features: Tensor, first_labels: Tensor, *, n_last_frames: int, radius: int, topk: int, temperature: float
) -> Propagation:
    """A video to follow frame by frame, from its first one (h, w, d); arguments and errors as `propagate`."""
    _check(first_labels, (features.shape[0], features.shape[1]), radius, topk, temperature, n_last_frames)
    one_hot = F.one_hot(first_labels.to(features.device).long()).float()
    return Propagation(unit_frame(features), one_hot, n_last_frames, radius, topk, temperature)


def unit_frame(features: Tensor) -> Tensor:
    """Features (h, w, d) of one frame divided by their lengths; raises ValueError for NaN or infinity."""
    return unit_rows(features.flatten(0, 1), "features").view(features.shape)


def labels_to_masks(soft: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Label maps at the original frame size from soft labels on the patch grid.

    soft (T, C, h, w); size (H, W) of the frame and `patch` in pixels. Each channel is enlarged bilinearly, then
    stretched to [0, 1] by its own range when it is not all zero; the largest channel wins, the lower label on ties;
    nearest neighbour brings the map to `size`. Returns (T, H, W) uint8 on the device of `soft`. Raises ValueError for
    more than 256 labels.
    """
    if soft.shape[1] > 256:
        raise ValueError(f"{soft.shape[1]} labels do not fit into 8-bit label maps; at most 256 do")
    masks = soft.new_empty(len(soft), *size, dtype=torch.uint8)
    for frame, mask in zip(soft, masks, strict=True):  # a frame at a time: enlarged channels are 256 times the grid
        large = F.interpolate(frame[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
        low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
        span = torch.where(high > low, high - low, 1.0)  # a constant channel becomes 0 instead of 0/0
        stretched = torch.where(high > 0, (large - low) / span, large)
        mask.copy_(nearest_resize(stretched.argmax(dim=0).to(torch.uint8), size))
    return masks


def _average(query: Tensor, keys: Tensor, values: Tensor, near: Tensor, topk: int, temperature: float) -> Tensor:
    """Labels (rows, columns, C) of a tile (rows, columns, d) from its context (frames, rows', columns', d or C)."""
    cosine = full_precision_product(query.flatten(0, 1), keys.flatten(0, 2))  # (targets, context)
    cosine.masked_fill_(~near, -torch.inf)
    best, index, tied = largest(cosine, topk)
    # The common factor exp(-max) of softmax cancels and keeps low temperatures finite.
    labels = values.flatten(0, 2)
    out = (torch.softmax(best / temperature, dim=1)[..., None] * labels[index]).sum(dim=1)
    if tied.any():  # every patch as similar as the last one kept counts as well
        kept = cosine[tied].masked_fill_(cosine[tied] < best[tied, -1:], -torch.inf)
        out[tied] = torch.softmax(kept / temperature, dim=1) @ labels
    return out.view(*query.shape[:2], -1)


def _tiles(height: int, width: int, radius: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Tiles of target patches and, for each, the window of context patches that any of them may use."""
    for rows, row_window in _intervals(height, radius):
        for columns, column_window in _intervals(width, radius):
            yield (rows, columns), (row_window, column_window)


def _intervals(length: int, radius: int) -> Iterator[tuple[slice, slice]]:
    for start in range(0, length, TILE):
        stop = min(start + TILE, length)
        whole = radius == 0
        yield (
            slice(start, stop),
            slice(0, length) if whole else slice(max(start - radius, 0), min(stop + radius, length)),
        )


def _near(target: tuple[slice, slice], window: tuple[slice, slice], radius: int, device: torch.device) -> Tensor:
    """Which context patches of one frame each target patch may use, (targets, context) boolean."""
    rows, columns = (
        (_positions(a, device)[:, None] - _positions(b, device)).abs() <= radius if radius else None
        for a, b in zip(target, window, strict=True)
    )
    if rows is None or columns is None:
        sizes = [part.stop - part.start for part in (*target, *window)]
        return torch.ones(sizes[0] * sizes[1], sizes[2] * sizes[3], dtype=torch.bool, device=device)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2, 3).flatten(0, 1)


def _positions(part: slice, device: torch.device) -> Tensor:
    return torch.arange(part.start, part.stop, device=device)


def _check(
    labels: Tensor, grid: tuple[int, int], radius: int, topk: int, temperature: float, n_last_frames: int
) -> None:
    if tuple(labels.shape) != grid:
        raise ValueError(f"first_labels have shape {tuple(labels.shape)}, the features a grid of {grid}")
    if labels.min() < 0:
        raise ValueError(f"first_labels hold {int(labels.min())}; labels start at 0, the background")
    if min(topk, temperature) <= 0 or min(radius, n_last_frames) < 0:
        raise ValueError(
            f"topk {topk} and temperature {temperature} must be positive, "
            f"radius {radius} and n_last_frames {n_last_frames} not negative"
        )
    # A corner of the second frame sees least: one quarter of the window, in the first frame alone.
    fewest = (min(radius + 1, grid[0]) * min(radius + 1, grid[1])) if radius else grid[0] * grid[1]
    if topk > fewest:
        raise ValueError(
            f"topk {topk} exceeds the {fewest} context patches of a corner patch (radius {radius}, grid {grid})"
        )
