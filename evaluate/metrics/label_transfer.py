"""Labels of patches by their nearest annotated patches, and the memory that they are looked up in.

Balazevic et al. 2023, "Towards In-Context Scene Understanding" (Hummingbird).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate.metrics.knn import knn_search
from evaluate.metrics.segmentation import VOID

QUERIES_AT_ONCE = 1024  # the labels of their neighbours are gathered together


def transfer_labels(
    memory: Tensor, memory_labels: Tensor, queries: Tensor, *, k: int = 30, beta: float = 0.02
) -> Tensor:
    """Soft labels of query patches: the mean label of the k nearest memory patches, weighted by softmax(cosine / beta).

    memory (M, d) and queries (..., d) features, L2-normalised inside; memory_labels (M, C) class shares. Equal
    cosines go to the lower memory row. Returns (..., C) float32 on the device of the queries. Raises ValueError for
    unequal widths or lengths, empty or non-finite features, k outside 1..M and beta <= 0. Hummingbird, section 3.1.
    """
    if len(memory) != len(memory_labels):
        raise ValueError(f"memory has {len(memory)} patches but {len(memory_labels)} rows of labels")
    if memory.shape[-1] != queries.shape[-1]:
        raise ValueError(f"queries have width {queries.shape[-1]}, the memory {memory.shape[-1]}; they must agree")
    if not 1 <= k <= len(memory):
        raise ValueError(f"k must be in 1..{len(memory)}, the size of the memory, got {k}")
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    found = map(torch.from_numpy, knn_search(memory, queries.reshape(-1, queries.shape[-1]), k))
    parts = []
    for similar, rows in zip(*(part.split(QUERIES_AT_ONCE) for part in found), strict=True):
        shares = memory_labels[rows.to(memory_labels.device)].to(queries.device, torch.float32)  # (block, k, C)
        weights = torch.softmax(similar.to(queries.device) / beta, dim=1)
        parts.append((weights[..., None] * shares).sum(dim=1))
    return torch.cat(parts).view(*queries.shape[:-1], -1)


def patch_label_histogram(mask: Tensor, patch: int, classes: int, *, void: int = VOID) -> Tensor:
    """Share of every class among the pixels of each patch; void pixels count as class 0.

    mask (..., H, W) integer labels, H and W multiples of `patch` in pixels. Returns (..., H/patch, W/patch, classes)
    float32. Raises ValueError for other sizes and for labels outside 0..classes-1.
    """
    height, width = mask.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"mask of {height} x {width} pixels does not divide into patches of {patch}")
    labels = torch.where(mask == void, 0, mask.long())
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"mask holds labels {int(labels.min())}..{int(labels.max())}; allowed are 0..{classes - 1}")
    pixels = (
        labels.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).transpose(-3, -2).flatten(-2)
    )  # (..., h, w, p * p)
    counts = torch.zeros(*pixels.shape[:-1], classes, device=mask.device)
    return counts.scatter_add_(-1, pixels, torch.ones_like(pixels, dtype=torch.float32)) / patch**2


def patches_per_image(memory_size: int, images: int, epochs: int = 1) -> int:
    """How many patches each image may put into a memory of bounded size; ValueError when that is none."""
    count = memory_size // (images * epochs)
    if count < 1:
        raise ValueError(f"a memory of {memory_size} patches is too small for {images} images in {epochs} epochs")
    return count


def sample_patches(histograms: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `count` patches of one image for the memory, favouring patches with rare classes.

    histograms (P, C) class shares of the image's patches. A patch's score is the number of patches of the image that
    hold one of its classes, summed over its classes, times a uniform random number; the lowest scores win. Returns
    indices (min(count, P),) in ascending order.
    """
    present = (histograms > 0).double()
    scores = present @ present.sum(dim=0)
    uniform = torch.rand(len(scores), dtype=torch.float64, generator=generator).to(scores.device)
    return (scores * uniform).argsort(stable=True)[:count].sort().values


def enlarge_labels(soft: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps from soft labels on the patch grid: bilinear, then the largest class, the lower one on ties.

    soft (N, C, h, w); size (H, W) in pixels, the network's input. Returns (N, H, W) int64.
    """
    return F.interpolate(soft, size=size, mode="bilinear", align_corners=False).argmax(dim=1)
