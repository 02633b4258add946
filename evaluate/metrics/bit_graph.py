"""Products with the 0/1 adjacency of a graph: one bit a pair on the CPU, floats on a GPU."""

import numpy as np
import torch
from numba import njit
from torch import Tensor


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
def _bit_product(bits, x, out):
    """out = A @ x for A (n, g) packed by rows: sums of all subsets of 8 entries of x, then a look-up a byte."""
    n, groups = bits.shape
    table = np.empty((groups, 256))
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
