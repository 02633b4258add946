"""Graphs of similar patches: products with the 0/1 adjacency, one bit a pair on the CPU, floats on a GPU, and on the
CPU the Lanczos iteration of `eigen` for one graph as a single kernel, since its steps are shorter than calls of torch.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

BREAKDOWN = 1e-12  # a Lanczos step shorter than this (the matrix has norm 1) has found an invariant subspace


def adjacency(similarity: Tensor, threshold: float) -> Tensor:
    """The pairs whose similarity exceeds the threshold, for `neighbour_sums`.

    similarity (n, n) symmetric float32. Returns (n, ceil(n / 8)) uint8 bits on the CPU, (n, n) float64 elsewhere.
    """
    if similarity.device.type == "cpu":
        return torch.from_numpy(np.packbits(similarity.numpy() > np.float32(threshold), axis=1))
    return (similarity > threshold).double()


def neighbour_sums(graphs: Tensor, x: Tensor) -> Tensor:
    """Sum of x over the neighbours of every node, the adjacency times x.

    graphs (N, n, .) stacked from `adjacency`; x (N, n, m) float64; returns (N, n, m) float64. Nodes with equal
    neighbours get equal sums, to the last bit on the CPU.
    """
    if graphs.dtype != torch.uint8:
        return graphs @ x
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for bits, columns, sums in zip(graphs.numpy(), x.numpy(), out.numpy(), strict=True):
        _bit_product(bits, np.ascontiguousarray(columns), sums)
    return out


@njit(cache=True)
def second_vector(bits, live, eps, tolerance, max_steps):
    """Second eigenvector (n,) of one graph as `eigen.second_smallest_eigenvectors` finds it, and whether it converged.

    bits (n, ceil(n / 8)) as of `adjacency`; patches whose `live` (n,) is 0 are joined to all others by `eps` alone.
    """
    n = len(live)
    steps = min(max_steps, n - 1)
    table = np.empty((bits.shape[1], 256))
    columns, sums = np.empty((n, 1)), np.empty((n, 1))
    basis = np.empty((steps + 1, n))  # rows: the known vector, then the Lanczos vectors
    diagonal, off_diagonal = np.zeros(steps), np.zeros(steps)

    columns[:, 0] = live
    _bit_sums(bits, columns, sums, table)
    degrees = eps * n + (1 - eps) * live * sums[:, 0]
    scale = 1 / np.sqrt(degrees)
    basis[0] = np.sqrt(degrees)
    basis[0] /= np.sqrt(np.dot(basis[0], basis[0]))

    w = np.empty(n)
    for i in range(n):  # multiples of the golden ratio mod 1, as in eigen
        w[i] = (i + 1) * 0.6180339887498949 % 1.0 - 0.5
    done = False
    vector = np.zeros(n)
    for k in range(-1, steps):  # the first product moves the start into the range of A
        x = scale * w
        columns[:, 0] = live * x
        _bit_sums(bits, columns, sums, table)
        product = scale * (eps * x.sum() + (1 - eps) * live * sums[:, 0])
        if k >= 0:
            diagonal[k] = np.dot(w, product)
        known = basis[: k + 2]
        for _ in range(2):
            product -= np.dot(np.dot(known, product), known)
        length = np.sqrt(np.dot(product, product))
        if k >= 0:
            off_diagonal[k] = length
        if k >= 0 and (k % 2 == 0 or k == steps - 1):
            small = np.diag(diagonal[: k + 1])
            for i in range(k):
                small[i, i + 1] = small[i + 1, i] = off_diagonal[i]
            theta, rotations = np.linalg.eigh(small)
            gap = theta[k] - theta[k - 1] if k else 0.0
            small_enough = length * abs(rotations[k, k]) <= tolerance * gap or length <= BREAKDOWN
            if small_enough and theta[k] > BREAKDOWN:
                vector[:] = scale * np.dot(np.ascontiguousarray(rotations[:, k]), basis[1 : k + 2])
                done = True
                break
        w = product / max(length, BREAKDOWN)
        if k + 2 <= steps:
            basis[k + 2] = w
    return vector, done


@njit(cache=True)
def _bit_product(bits, x, out):
    """out = A @ x for A (n, g) packed by rows."""
    _bit_sums(bits, x, out, np.empty((bits.shape[1], 256)))


@njit(cache=True)
def _bit_sums(bits, x, out, table):
    """out = A @ x by sums of all subsets of 8 entries of x, in `table` (g, 256), then a look-up a byte."""
    n, groups = bits.shape
    for column in range(x.shape[1]):
        for g in range(groups):
            table[g, 0] = 0.0
            for bit in range(8):  # packing puts the first entry into the highest bit
                j = 8 * g + 7 - bit
                value = x[j, column] if j < n else 0.0
                for subset in range(1 << bit):
                    table[g, (1 << bit) + subset] = table[g, subset] + value
        for i in range(n):
            even, odd = 0.0, 0.0  # two chains of additions run side by side
            for g in range(0, groups - 1, 2):
                even += table[g, bits[i, g]]
                odd += table[g + 1, bits[i, g + 1]]
            if groups % 2:
                even += table[groups - 1, bits[i, groups - 1]]
            out[i, column] = even + odd
