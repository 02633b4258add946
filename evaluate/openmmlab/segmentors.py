"""Settings -> a segmentation model of mmseg on a backbone of this suite."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from mmengine import ConfigDict
from mmseg.registry import MODELS
from torch import nn

from evaluate.features import PRECISIONS
from evaluate.openmmlab.library import building, quiet
from evaluate.openmmlab.training import as_lists, pixels

HEADS = ("linear", "fcn", "uper")
LEVELS = (4, 2, 1, 0.5)  # of the pyramid, times the grid of the patches


def build_segmentor(
    network: Any,
    head: str,
    classes: int,
    *,
    window: tuple[int, int],
    frozen: bool,
    channels: int = 256,
    heads: int = 1,
    checkpointing: bool = False,
) -> nn.Module:
    """A segmentor with a drawn head; seed torch before.

    head: linear (last map), fcn (last map, two 3 x 3 convolutions) or uper (last four blocks in a pyramid, UPerNet,
    with an FCN beside it in training); window: height and width of crops and of the sliding window at test, in
    pixels; channels: width of the head; heads: linear heads side by side.
    """
    blocks = len(LEVELS) if head == "uper" else 1
    backbone = {"type": "SuiteBackbone", "network": network, "blocks": blocks, "frozen": frozen}
    width, norm = network.dim, {"type": "BN"}
    shared = {"num_classes": classes, "align_corners": False}
    config: dict[str, Any] = {"backbone": backbone | {"checkpointing": checkpointing}, "train_cfg": ConfigDict()}
    if head == "linear":
        config["decode_head"] = {"type": "LinearHeads", "in_channels": width, "heads": heads, **shared}
    else:
        body = {"channels": channels, "norm_cfg": norm, "dropout_ratio": 0.1, **shared}
        fcn = {"type": "FCNHead", "in_channels": width, "num_convs": 2, "concat_input": False, **body}
        config["decode_head"] = fcn
    if head == "uper":
        config["neck"] = {"type": "Feature2Pyramid", "embed_dim": width, "rescales": list(LEVELS), "norm_cfg": norm}
        level = {"in_channels": [width] * blocks, "in_index": list(range(blocks)), "pool_scales": (1, 2, 3, 6)}
        config["decode_head"] = {"type": "UPerHead", **level, **body}
        aside = {
            "in_index": blocks - 2,
            "num_convs": 1,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
        }
        config["auxiliary_head"] = fcn | aside
    config["data_preprocessor"] = {"type": "SegDataPreProcessor", "size": window, "seg_pad_val": 255, "pad_val": 0}
    config["data_preprocessor"] |= pixels(network.mean, network.std)
    stride = tuple(max(1, 2 * side // 3) for side in window)
    config["test_cfg"] = ConfigDict(mode="slide", crop_size=window, stride=stride)
    with building("mmseg"):
        model = MODELS.build({"type": "EncoderDecoder", **config})
        model.init_weights()
    return model


@torch.no_grad()
def segment(model: Any, sample: dict[str, Any], precision: str, heads: int = 1) -> list[np.ndarray]:
    """Label maps (H, W) uint8 of a test image at its own size, one from each linear head; model in evaluation mode."""
    data = model.data_preprocessor(as_lists([sample]), False)
    kind = PRECISIONS[precision]
    cast = torch.autocast(data["inputs"].device.type, kind) if kind else nullcontext()
    with cast, quiet():
        logits = model.inference(data["inputs"], [sample.metainfo for sample in data["data_samples"]])
        found = []
        for part in logits.float().chunk(heads, 1):  # the result is put into the sample, so one after the other
            [one] = model.postprocess_result(part, data["data_samples"])
            found.append(one.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8))
    return found
