"""Sizes in pixels that follow from the patch size; no OpenMMLab is needed to know them."""

from __future__ import annotations


def base_stride(patch: int) -> int:
    """The power of two nearest to a patch size, in pixels: of the map that the pyramid starts from."""
    return min((2**k for k in range(2, 6)), key=lambda stride: abs(stride - patch))
