"""Stochastic depth whose draws follow from (seed, step, image), whoever works on the image and in how many parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from timm.layers import DropPath
from torch import Tensor, nn


@dataclass
class Rows:
    """Which images of the step's batch the next forward pass sees: `count` from `first` on, of `total`."""

    first: int = 0
    count: int = 0
    total: int = 0
    seed: int = 0
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def begin(self, seed: int, first: int, count: int, total: int) -> None:
        """Before a forward pass: the same seed for all parts of a step, on all processes."""
        self.seed, self.first, self.count, self.total = seed, first, count, total
        self.generators.clear()

    def draw(self, views: int, device: torch.device) -> Tensor:
        """The next uniform numbers of these images, (views * count,), cut from those of the whole batch."""
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        numbers = torch.rand(views, self.total, generator=self.generators[device], device=device)
        return numbers[:, self.first : self.first + self.count].reshape(-1)


class Depth(nn.Module):
    """A residual branch dropped by image and view, kept ones scaled by 1/(1 - drop_prob); x (V n, ...), view-major.

    Source: Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """

    def __init__(self, drop_prob: float, rows: Rows):
        super().__init__()
        self.drop_prob, self.rows = drop_prob, rows

    def forward(self, x: Tensor) -> Tensor:
        """The branch, zero where it is dropped; unchanged in evaluation mode."""
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        kept = (self.rows.draw(len(x) // self.rows.count, x.device) < keep).to(x.dtype) / keep
        return x * kept.view(-1, *[1] * (x.ndim - 1))


def follow_images(network: nn.Module) -> Rows:
    """Replace timm's stochastic depth, which draws from the state of a process, in place; returns what to tell it."""
    rows = Rows()
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, DropPath):
                setattr(module, name, Depth(float(child.drop_prob), rows))
    return rows
