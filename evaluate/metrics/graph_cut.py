"""Objects without supervision: normalised cuts of the graph of similar patches (MaskCut, TokenCut), and COCO results.

Wang et al. 2023, "Cut and Learn for Unsupervised Object Detection and Instance Segmentation" (CutLER): cut the graph
of similar patches in two, keep the side that looks like an object, remove its patches, repeat. Eigenvectors have no
sign and binary graphs give runs of equal entries, so both are settled by rule instead of by the solver.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numba
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluate.metrics.bit_graph import adjacency, neighbour_sums, second_vector
from evaluate.metrics.coco import encode_mask
from evaluate.metrics.cosine import full_precision_product, unit_rows
from evaluate.metrics.dense_crf import DenseCRF
from evaluate.metrics.eigen import MOST_STEPS, TOLERANCE, second_smallest_eigenvectors
from evaluate.metrics.masks import fill_holes, nearest_resize, tight_box

TIE = 1e-6  # entries this close to the largest one, relative to it, count as equal
SAME_MASK_IOU = 0.5  # a later stage that overlaps its predecessor more than this found the same object again
SMALLEST_AREA = 0.01  # share of the grid up to which a later stage's mask is dropped


def maskcut(features: Tensor, *, tau: float, eps: float = 1e-5, stages: int = 3) -> Tensor:
    """Object masks of one image, at most one a stage, on the patch grid.

    features (d, h, w): keys of the last attention layer; two patches are joined when their cosine exceeds `tau`, in
    [0, 1), and by `eps` otherwise. Returns (stages, h, w) boolean on the CPU; masks do not overlap, and one may be
    empty. A graph in which all pairs or no pair of patches are joined has no second eigenvector: no mask. Raises
    ValueError for NaN or infinity, naming the first such patch, and for a `tau` out of range. CutLER, section 3.2.
    """
    return maskcut_batch(features[None], tau=tau, eps=eps, stages=stages)[0]


def tokencut(features: Tensor, *, tau: float, eps: float = 1e-5) -> Tensor:
    """Mask of one image's most salient object on the patch grid, (h, w) boolean on the CPU; arguments as `maskcut`.

    One cut; the object is the side of the largest absolute entry wherever it lies, so that unlike in MaskCut it may
    hold the corners of the image. Wang et al. 2022, "Self-Supervised Transformers for Unsupervised Object Discovery
    using Normalized Cut", section 3.
    """
    return maskcut_batch(features[None], tau=tau, eps=eps, stages=1, corners=False)[0, 0]


def maskcut_batch(features: Tensor, *, tau: float, eps: float = 1e-5, stages: int = 3, corners: bool = True) -> Tensor:
    """`maskcut` for images of one size: features (N, d, h, w), returns (N, stages, h, w) boolean on the CPU.

    `corners` false drops the rule that a side with three corners of the image or more is background. On an accelerator
    the graphs are solved together; on the CPU one by one, where that is faster.
    """
    if not 0 <= tau < 1:
        raise ValueError(
            f"tau must be in [0, 1), got {tau}: patches that were cut out have cosine 0 and must stay unjoined"
        )
    if features.device.type != "cpu":
        return _cut(features, tau, eps, stages, corners)
    with one_thread():
        return torch.cat([_cut(part, tau, eps, stages, corners) for part in features.split(1)])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Products with vectors this short lose more to the pool of threads than they gain."""
    before, kernels = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        numba.set_num_threads(kernels)


def masks_to_detections(
    masks: Tensor | np.ndarray, size: tuple[int, int], *, image_id: int, input_size: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """COCO results of one image's masks, box and run lengths, with score 1/t for stage t = 1, 2, ...

    masks (stages, h, w) boolean on the patch grid; size (H, W) of the original image and `input_size` of the
    network's input, in pixels. Masks grow by nearest neighbour, first to the input, then to the original; holes are
    filled; an empty mask gives no result.
    """
    grown = torch.as_tensor(masks)
    for target in (input_size, size):
        grown = grown if target is None else nearest_resize(grown, target)
    return _detections([fill_holes(mask) for mask in grown.cpu().numpy()], image_id)


def refined_detections(masks: Tensor, image: np.ndarray, size: tuple[int, int], *, image_id: int) -> list[dict]:
    """COCO results as of `masks_to_detections`, of masks that a dense CRF has drawn to the edges of the input.

    masks (stages, h, w) boolean on the patch grid; image (S, S, 3) uint8, the network's input; size (H, W) of the
    original. A mask of which less than half stays gives no result. Refined masks grow as pictures do, bicubic and cut
    at half, so that their borders stay smooth. CutLER, section 4.1, with the settings of its code.
    """
    grown = nearest_resize(masks, image.shape[:2]).cpu().numpy()
    field = DenseCRF(image) if grown.any() else None
    refined = [field.refine(mask) for mask in grown] if field else []
    return _detections([_resized(mask, size) for mask in refined], image_id)


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(picture) > 127


def _detections(masks: Sequence[np.ndarray], image_id: int) -> list[dict[str, Any]]:
    found = []
    for stage, mask in enumerate(masks, start=1):
        if mask.any():
            result = {"image_id": image_id, "category_id": 1, "score": 1 / stage}
            box = [float(side) for side in tight_box(mask)]
            found.append(result | {"bbox": box, "segmentation": encode_mask(mask)})
    return found


def _cut(features: Tensor, tau: float, eps: float, stages: int, corners: bool = True) -> Tensor:
    images, _, height, width = features.shape
    graphs = torch.stack([_graph(image.T, tau) for image in features.flatten(2)])
    masks = np.zeros((images, stages, height, width), dtype=bool)
    # A patch without features is joined to nothing, not even to itself, just as one that has been cut out.
    live = (features.flatten(2) != 0).any(dim=1).double()  # (N, n)
    previous = np.zeros((images, height, width), dtype=bool)
    for stage in range(stages):
        active = _has_second_eigenvector(graphs, live).nonzero()[:, 0]
        if len(active) == 0:
            break
        vectors = _second_vectors(graphs, live, active, eps)
        for image, vector in zip(active.tolist(), vectors.cpu().numpy(), strict=True):
            mask = _object_side(vector.reshape(height, width), corners)
            if stage > 0 and (_iou(mask, previous[image]) > SAME_MASK_IOU or mask.mean() <= SMALLEST_AREA):
                mask = np.zeros_like(mask)
            masks[image, stage] = mask & ~masks[image].any(axis=0)
            live[image, torch.from_numpy(mask.reshape(-1)).to(live.device)] = 0
            previous[image] = mask
    return torch.from_numpy(masks)


def _graph(rows: Tensor, tau: float) -> Tensor:
    """Adjacency of the patches (n, d) whose cosine exceeds tau."""
    unit = unit_rows(rows, "features")
    if unit.device.type == "cpu":
        # numpy sees a product with the own transpose and computes one half of it, which also makes it symmetric.
        return adjacency(torch.from_numpy(unit.numpy() @ unit.numpy().T), tau)
    cosine = full_precision_product(unit, unit)
    return adjacency(torch.maximum(cosine, cosine.T), tau)


def _has_second_eigenvector(graphs: Tensor, live: Tensor) -> Tensor:
    """Whether a second vector stands out: some live pair is joined, but not every pair of patches.

    A single live patch also splits the graph uniquely. Returns (N,) boolean.
    """
    n, count = live.shape[1], live.sum(dim=1)
    pairs = (live * neighbour_sums(graphs, live[..., None])[..., 0]).sum(dim=1) - count
    return ((pairs > 0) | (count == 1)) & (pairs < n * (n - 1))


def _second_vectors(graphs: Tensor, live: Tensor, active: Tensor, eps: float) -> Tensor:
    """Second eigenvectors (len(active), n) of the graphs whose patches out of `live` are joined by eps alone."""
    if len(active) < len(graphs):
        graphs, live = graphs[active], live[active]
    if graphs.dtype == torch.uint8:  # packed bits, on the CPU
        found = [
            second_vector(g, v, eps, TOLERANCE, MOST_STEPS) for g, v in zip(graphs.numpy(), live.numpy(), strict=True)
        ]
        if all(done for _, done in found):
            return torch.from_numpy(np.stack([vector for vector, _ in found]))
    kept = live[..., None]

    def product(x: Tensor) -> Tensor:  # A = eps everywhere, 1 where two live patches are joined
        return eps * x.sum(dim=1, keepdim=True) + (1 - eps) * kept * neighbour_sums(graphs, kept * x)

    degrees = product(torch.ones_like(kept))[..., 0]
    return second_smallest_eigenvectors(product, degrees)[0]


def _object_side(vector: np.ndarray, corners: bool = True) -> np.ndarray:
    """The connected mask that an eigenvector (h, w) of either sign proposes.

    The largest entry is made positive; the side above the mean is the object unless it holds three corners of the
    image or more (which `corners` false admits), and of that side only the 4-connected part around the most extreme
    entry is kept. Returns (h, w) boolean.
    """
    if vector.flat[_first_largest(np.abs(vector))] < 0:
        vector = -vector
    side = vector > vector.mean()
    if corners and side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        vector, side = -vector, ~side
    parts = cv2.connectedComponents(side.astype(np.uint8), connectivity=4)[1]
    return parts == parts.flat[_first_largest(vector)]


def _first_largest(values: np.ndarray) -> int:
    """Lowest flat index among the entries that equal the maximum up to the tie tolerance."""
    return int(np.argmax(values >= values.max() - TIE * np.abs(values).max()))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0
