"""Linear segmentation heads, which mmseg lacks: its FCNHead without convolutions has no batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn


@MODELS.register_module()
class LinearHeads(BaseDecodeHead):
    """Batch norm and a 1 x 1 convolution, `heads` of them side by side on the same map, each with a loss of its own.

    The linear protocol of DINOv2 (arXiv 2304.07193); with several heads each is trained with another learning rate.
    Logits of all heads lie one after the other: (N, heads * C, h, w).
    """

    def __init__(self, in_channels: int, num_classes: int, heads: int = 1, **options: Any):
        super().__init__(in_channels, in_channels, num_classes=num_classes, dropout_ratio=0, **options)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, num_classes, 1)) for _ in range(heads)
        )
        del self.conv_seg
        self.out_channels = heads * num_classes

    def init_weights(self) -> None:
        """Weights of std 0.01 as in the other heads of mmseg, the same in all heads."""
        drawn = 0.01 * torch.randn_like(self.heads[0][1].weight)  # type: ignore[index]
        for head in self.heads:
            head[1].weight.data.copy_(drawn)  # type: ignore[index]
            nn.init.zeros_(head[1].bias)  # type: ignore[index]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (N, heads * C, h, w) of the last map."""
        features = self._transform_inputs(inputs)
        return torch.cat([head(features) for head in self.heads], dim=1)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """The loss of each head; heads share no parameter, so their sum trains each alone."""
        parts = seg_logits.chunk(len(self.heads), dim=1)
        if len(parts) == 1:
            return super().loss_by_feat(seg_logits, batch_data_samples)
        found = [super(LinearHeads, self).loss_by_feat(part, batch_data_samples) for part in parts]
        return {f"head{i}.{name}": value for i, losses in enumerate(found) for name, value in losses.items()}
