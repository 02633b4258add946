"""The simple feature pyramid of ViTDet, which mmdet lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from torch import Tensor, nn


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """Maps at several strides from one map of a plain transformer: (N, D, h, w) at `stride` -> (N, C, ., .) each.

    Transposed convolutions upwards, maximum pooling downwards, then a 1 x 1 and a 3 x 3 convolution, each with layer
    norm. Strides are powers of two, in pixels. Source: ViTDet, arXiv 2203.16527. `standardise` puts a batch norm
    without parameters first, as probes of frozen features have it (MAE, arXiv 2111.06377): what all patches share
    would otherwise hide what tells them apart.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, strides: Sequence[int], standardise: bool = False
    ):
        super().__init__()
        self.first = nn.BatchNorm2d(in_channels, affine=False) if standardise else nn.Identity()
        self.levels = nn.ModuleList(
            nn.Sequential(
                *_rescale(in_channels, stride / target), *_project(in_channels, out_channels, stride / target)
            )
            for target in strides
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The pyramid, finest first, contiguous: layer norm leaves channels last, which mmcv's RoIAlign misreads."""
        maps = self.first(inputs[-1])
        return tuple(level(maps).contiguous() for level in self.levels)


class _Pool(nn.Module):
    """Maximum over squares of `size` cells; what does not fill a square at the border counts too."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, self.size, ceil_mode=True)


def _rescale(channels: int, factor: float) -> list[nn.Module]:
    """Layers that enlarge a map by a power of two, halving its channels each time, or shrink it."""
    steps = round(math.log2(factor))
    if steps < 0:
        return [_Pool(2**-steps)]
    layers: list[nn.Module] = []
    for i in range(steps):
        before, after = _width(channels, i), _width(channels, i + 1)
        layers += [LayerNorm2d(before), nn.GELU()] if i else []
        layers.append(nn.ConvTranspose2d(before, after, 2, stride=2))
    return layers


def _project(channels: int, out: int, factor: float) -> list[nn.Module]:
    """The convolutions that give every level the same width."""
    width = _width(channels, max(0, round(math.log2(factor))))
    one, three = nn.Conv2d(width, out, 1, bias=False), nn.Conv2d(out, out, 3, padding=1, bias=False)
    return [one, LayerNorm2d(out), three, LayerNorm2d(out)]


def _width(channels: int, halvings: int) -> int:
    return max(8, channels >> halvings)
