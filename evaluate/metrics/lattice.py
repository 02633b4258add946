"""Gaussian filtering of points in a few dimensions on the permutohedral lattice.

Adams, Baek and Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral Lattice": every point spreads its
value over the corners of the simplex that it lies in, the corners are blurred along the axes of the lattice, and the
points read back. The cost grows with the number of points where the sum over all pairs grows with its square; the
result is that sum up to a factor and a few per cent.
"""

import numpy as np
from scipy.sparse import csr_matrix


class Lattice:
    """The corners around some points, for `filter`.

    points (n, d) finite coordinates in units of the standard deviation of the Gaussian. Raises ValueError where they
    spread too far for their corners to be numbered.
    """

    def __init__(self, points: np.ndarray):
        n, d = points.shape
        corners, weights = _simplex(np.asarray(points, np.float64))
        low, high = corners.min(axis=(0, 1)) - d - 1, corners.max(axis=(0, 1)) + d + 1  # room for neighbours
        spans = high - low + 1
        if np.log2(spans.astype(float)).sum() >= 63:
            raise ValueError(f"points spread over {spans.tolist()} cells, too many; use a larger standard deviation")
        strides = np.cumprod([1, *spans[:-1]]).astype(np.int64)
        numbers, place = np.unique(((corners - low) @ strides).reshape(-1), return_inverse=True)
        index = np.arange(0, n * (d + 1) + 1, d + 1)
        self._slice = csr_matrix((weights.reshape(-1), place.reshape(-1), index), shape=(n, len(numbers)))
        self._splat = self._slice.T.tocsr()
        # A step along axis j is d in coordinate j and -1 in all others; the last coordinate follows from the rest.
        steps = [(d + 1) * stride - strides.sum() for stride in [*strides, 0]]
        self._neighbours = [(_find(numbers, numbers + step), _find(numbers, numbers - step)) for step in steps]
        self._factor = 1 / (1 + 2.0**-d)

    def filter(self, values: np.ndarray) -> np.ndarray:
        """Sum over all points, itself included, of values (n,) weighted by exp(-|distance|^2 / 2): (n,) float64.

        Up to one factor for all points, which depends on d alone.
        """
        found = self._splat @ np.asarray(values, np.float64)
        for before, behind in self._neighbours:
            padded = np.append(found, 0.0)  # what a corner without neighbour reads
            found = found + 0.5 * (padded[before] + padded[behind])
        return self._slice @ (self._factor * found)


def _simplex(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, d + 1, d) int64 around every point, without their last coordinate, and its weights (n, d + 1)."""
    n, d = points.shape
    axes = np.arange(1, d + 1)
    # The blur below has variance 2/3 of a cell a side, hence the scale; the rest makes the axes orthogonal.
    scaled = points * (np.sqrt(2 / 3) * (d + 1) / np.sqrt(axes * (axes + 1)))
    # Coordinate j of the plane x_0 + ... + x_d = 0 is the sum of the axes above it minus j times its own.
    above = np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]  # (n, d): sums from j on
    plane = np.concatenate([above, np.zeros((n, 1))], axis=1)
    plane[:, 1:] -= axes * scaled
    nearest = np.round(plane / (d + 1)).astype(np.int64)
    rest = plane - nearest * (d + 1)
    order = np.argsort(-rest, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(d + 1)[None], axis=1)
    rank += nearest.sum(axis=1, keepdims=True)  # brings the nearest multiple back into the plane
    shift = np.where(rank < 0, 1, np.where(rank > d, -1, 0))
    rank, base = rank + shift * (d + 1), (nearest + shift) * (d + 1)
    sorted_rest = np.empty_like(rest)
    np.put_along_axis(sorted_rest, rank, (plane - base) / (d + 1), axis=1)
    weights = np.empty((n, d + 1))
    weights[:, 1:] = (sorted_rest[:, :-1] - sorted_rest[:, 1:])[:, ::-1]
    weights[:, 0] = 1 - weights[:, 1:].sum(axis=1)
    colours = np.arange(d + 1)[:, None]
    corners = base[:, None] + colours - np.where(rank[:, None] > d - colours, d + 1, 0)  # (n, d + 1, d + 1)
    return corners[..., :d], weights


def _find(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of `wanted` in the ascending `numbers`, one past their end for those that are not there."""
    place = np.searchsorted(numbers, wanted)
    place[place == len(numbers)] = 0
    return np.where(numbers[place] == wanted, place, len(numbers))
