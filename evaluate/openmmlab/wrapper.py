"""A backbone of this suite as a module that mmseg and mmdet build: registered once, found by both."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from evaluate.dense import snapped


@MODELS.register_module()
class SuiteBackbone(BaseModule):
    """Patch maps of the last blocks, oldest first: images (B, 3, H, W) normalised -> tuple of (B, D, h, w).

    network: any backbone of the importer; blocks: how many (the earliest is repeated where it has fewer); frozen: no
    gradient, and evaluation mode whatever the model's; otherwise a copy is fine-tuned. checkpointing: trade time for
    memory in the backward pass. stride: pixels of the image between two cells of the maps, None for the patch size.
    Images whose sides are no whole number of patches are resized to the nearest one, never cut.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: int = 1,
        frozen: bool = True,
        checkpointing: bool = False,
        stride: int | None = None,
    ):
        super().__init__()
        self.network: Any = network if frozen else copy.deepcopy(network).requires_grad_(True)
        self.count, self.frozen, self.stride = blocks, frozen, stride
        if checkpointing and not frozen:
            vit: Any = self.network.vit
            vit.set_grad_checkpointing(True)

    def init_weights(self) -> None:
        """Nothing: the weights are those of the checkpoint, not to be drawn anew by the framework."""

    def train(self, mode: bool = True) -> SuiteBackbone:
        """Training mode for what is trained; a frozen network stays in evaluation mode."""
        super().train(mode)
        self.network.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps, contiguous: mmcv's compiled region pooling takes no notice of strides."""
        height, width = images.shape[-2:]
        patch = self.network.patch_size
        sides = snapped(height, patch), snapped(width, patch)
        if sides != (height, width):
            images = F.interpolate(images, sides, mode="bilinear", antialias=True)
        available = min(self.count, self.network.depth)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = [block.patches.permute(0, 3, 1, 2) for block in self.network.blocks(images, available)]
        if self.stride:
            grid = -(-height // self.stride), -(-width // self.stride)
            maps = [m if m.shape[-2:] == grid else F.interpolate(m, grid, mode="bilinear") for m in maps]
        maps = [maps[0]] * (self.count - available) + maps
        return tuple(m.contiguous() for m in maps)


def layer_scales(network: Any, decay: float) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Name, parameter and share of the learning rate of every parameter of a backbone: decay ** layers above it.

    The last block and the final norm get `decay`, the embedding decay ** (depth + 1). Source: BEiT, arXiv 2106.08254.
    """
    depth = network.depth
    for name, parameter in network.named_parameters():
        block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
        above = depth if re.search(r"(?:^|\.)(fc_)?norm\.", name) else 0
        layer = int(block[1]) + 1 if block else above
        yield name, parameter, decay ** (depth + 1 - layer)


def parameter_groups(
    model: Any, lr: float | Sequence[float], weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for AdamW: the heads of a model, and a backbone that is fine-tuned with rates that fall by layer.

    Several rates are those of linear heads side by side (`LinearHeads`). In the backbone biases, norms, tokens and
    position embeddings are not decayed.
    """
    rates = [float(rate) for rate in ([lr] if isinstance(lr, int | float) else lr)]
    groups: list[dict[str, Any]] = []
    if len(rates) > 1:
        for head, rate in zip(model.decode_head.heads, rates, strict=True):
            groups.append({"params": list(head.parameters()), "lr": rate, "weight_decay": weight_decay})
    else:
        own = [p for name, p in model.named_parameters() if not name.startswith("backbone.") and p.requires_grad]
        groups.append({"params": own, "lr": rates[0], "weight_decay": weight_decay})
    if not model.backbone.frozen:
        tuned: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter, share in layer_scales(model.backbone.network, layer_decay):
            plain = parameter.ndim < 2 or "pos_embed" in name or "token" in name
            tuned.setdefault((rates[0] * share, 0.0 if plain else weight_decay), []).append(parameter)
        groups += [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in tuned.items()]
    return groups
