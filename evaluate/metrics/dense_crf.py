"""Masks drawn to the edges of an image by a fully connected conditional random field.

Krähenbühl and Koltun 2011, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials": every pixel
votes for its own label at pixels that are near, and at pixels that are near and of like colour. Settings, and what is
done with the result, as in the public code of CutLER (Wang et al. 2023).
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from evaluate.metrics.lattice import Lattice
from evaluate.metrics.masks import fill_holes

ITERATIONS = 10
NEAR, NEAR_WEIGHT = 3.0, 7.0  # standard deviation in pixels
ALIKE, ALIKE_COLOUR, ALIKE_WEIGHT = 50.0, 5.0, 10.0  # standard deviations in pixels and in steps of 0..255
SURE = 1 / (1 + np.exp(-1.0))  # softmax of (0, 1): how far a mask is believed
KEPT_IOU = 0.5  # a mask that changes more than this is dropped

Kernel = Callable[[np.ndarray], np.ndarray]


class DenseCRF:
    """The field of one image (H, W, 3) uint8; raises ValueError for another kind of array."""

    def __init__(self, image: np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        self.size: tuple[int, ...] = image.shape[:2]
        rows, columns = np.indices(self.size)
        place = np.column_stack([columns.ravel(), rows.ravel()]).astype(np.float64)
        colour = image.reshape(-1, 3).astype(np.float64)
        near, alike = place / NEAR, np.concatenate([place / ALIKE, colour / ALIKE_COLOUR], axis=1)
        self.kernels = [(weight, normalised(Lattice(points).filter, len(place)))
                        for weight, points in ((NEAR_WEIGHT, near), (ALIKE_WEIGHT, alike))]  # fmt: skip

    def refine(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) boolean drawn to the edges, its holes filled; empty where little of it is left.

        Raises ValueError for a mask of another size than the image.
        """
        if mask.shape != self.size:
            raise ValueError(f"mask has {mask.shape} pixels, the image {self.size}; enlarge the mask first")
        belief = np.where(mask.reshape(-1), SURE, 1 - SURE)
        refined = fill_holes((mean_field(belief, self.kernels) > 0.5).reshape(self.size))
        both = cv2.countNonZero((mask & refined).view(np.uint8))
        either = cv2.countNonZero((mask | refined).view(np.uint8))
        return refined if either and both / either >= KEPT_IOU else np.zeros_like(refined)


def normalised(kernel: Kernel, n: int) -> Kernel:
    """A kernel K over n points as D^-1/2 K D^-1/2 with D its row sums, so that crowded points weigh as single ones."""
    scale = 1 / np.sqrt(kernel(np.ones(n)) + 1e-20)
    return lambda values: scale * kernel(scale * values)


def mean_field(belief: np.ndarray, kernels: Sequence[tuple[float, Kernel]], iterations: int = ITERATIONS) -> np.ndarray:
    """Probability (n,) that each point is foreground, after some steps of mean-field inference with Potts weights.

    belief (n,): the probability before, inside (0, 1); kernels: weight and kernel, which sum over all points
    including the point itself. Krähenbühl and Koltun 2011, algorithm 1.
    """
    unary = np.log(belief) - np.log1p(-belief)
    # Two labels sum to one, so that the votes for the other follow from those for all: 2 K q - K 1 is their difference.
    everyone = sum(weight * kernel(np.ones_like(belief)) for weight, kernel in kernels)
    found = belief
    for _ in range(iterations):
        votes = sum(weight * kernel(found) for weight, kernel in kernels)
        found = 1 / (1 + np.exp(np.clip(everyone - 2 * votes - unary, -700, 700)))
    return found
