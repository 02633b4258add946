"""Counts behind J and F of every object of a frame, in numba: integers alone, so that nothing is rounded.

Boundaries are thin, so they are kept as lists of pixels. A dilated boundary is a map of bits: a row of the disk around
a boundary pixel is a run of bits, set a word at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def overlaps(truth, prediction, objects):
    """Pixels of every label 0..objects in truth, in prediction and in both, (3, objects + 1) int64.

    truth, prediction (n,) uint8 or int32 labels. Eight bytes at a time where they are alike; those that are 0 in both
    are not counted.
    """
    counts = np.zeros((3, objects + 1), np.int64)
    size = 8 // truth.itemsize  # labels in a word
    whole = len(truth) // size * size
    ours, theirs = truth[:whole].view(np.uint64), prediction[:whole].view(np.uint64)
    width = np.uint64(64 // size)
    for word in range(len(ours)):
        one = ours[word]
        if not one | theirs[word]:
            continue
        if one == theirs[word] and one >> width == one & (np.uint64(0xFFFFFFFFFFFFFFFF) >> width):  # all labels equal
            counts[:, truth[word * size]] += size
            continue
        for i in range(word * size, word * size + size):
            counts[0, truth[i]] += 1
            counts[1, prediction[i]] += 1
            counts[2, truth[i]] += truth[i] == prediction[i]
    for i in range(whole, len(truth)):
        counts[0, truth[i]] += 1
        counts[1, prediction[i]] += 1
        counts[2, truth[i]] += truth[i] == prediction[i]
    return counts


def boundaries(labels: np.ndarray, objects: int) -> np.ndarray:
    """Boundary pixels of every label 1..objects, (n, 3) int64 rows of label, y, x.

    labels (H, W) contiguous. A pixel is on the boundary of a label when it has it and its right, lower or lower-right
    neighbour inside the image has not, or the other way round: the last row looks right only, the last column down.
    """
    flat, width = labels.ravel(), labels.shape[1]
    inner = max(0, flat.size - width - 1)  # whose neighbours all follow in memory, be it in the next row
    own = flat[:inner]
    differs = own != flat[1 : inner + 1]
    differs |= own != flat[width : inner + width]
    differs |= own != flat[width + 1 : inner + width + 1]
    return boundary_pixels(labels, np.append(np.flatnonzero(differs), np.arange(inner, flat.size)), objects)


@njit(cache=True)
def boundary_pixels(labels, candidates, objects):
    """The boundary pixels among `candidates`, flat positions; see `boundaries`."""
    height, width = labels.shape
    found = np.empty((4 * len(candidates), 3), np.int64)
    n = 0
    around = np.empty(4, np.int64)
    for candidate in candidates:
        y, x = candidate // width, candidate % width
        right, below = min(x + 1, width - 1), min(y + 1, height - 1)
        around[0], around[1] = labels[y, x], labels[y, right]
        around[2], around[3] = labels[below, x], labels[below, right]
        for place in range(4):
            label = around[place]
            if label == 0 or label > objects:
                continue
            new, others = True, False
            for i in range(4):
                new = new and not (i < place and around[i] == label)
                others = others or around[i] != label
            if new and others:
                found[n, 0], found[n, 1], found[n, 2] = label, y, x
                n += 1
    return found[:n]


@njit(cache=True)
def confirmed(pixels, near, objects, height, width, radius):
    """How many of the `pixels` of every label lie within `radius` of one of the `near` of that label, (objects + 1,).

    pixels, near (n, 3) as from `boundaries`.
    """
    words = (width + 63) // 64
    reached = np.zeros((objects + 1, height, words), np.uint64)
    half = np.zeros(radius + 1, np.int64)
    for dy in range(radius + 1):
        while (half[dy] + 1) ** 2 + dy * dy <= radius * radius:
            half[dy] += 1
    full = np.uint64(0xFFFFFFFFFFFFFFFF)
    for i in range(len(near)):
        label, y, x = near[i]
        for row in range(max(0, y - radius), min(height, y + radius + 1)):
            reach = half[abs(row - y)]
            left, right = max(0, x - reach), min(width - 1, x + reach)
            first, last = left >> 6, right >> 6
            head, tail = full << np.uint64(left & 63), full >> np.uint64(63 - (right & 63))
            if first == last:
                reached[label, row, first] |= head & tail
            else:
                reached[label, row, first] |= head
                for word in range(first + 1, last):
                    reached[label, row, word] = full
                reached[label, row, last] |= tail
    counts = np.zeros(objects + 1, np.int64)
    for i in range(len(pixels)):
        label, y, x = pixels[i]
        counts[label] += np.int64((reached[label, y, x >> 6] >> np.uint64(x & 63)) & np.uint64(1))
    return counts
