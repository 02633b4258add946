"""Settings -> a detector of mmdet on a backbone of this suite: simple feature pyramid and the usual heads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine import ConfigDict
from torch import nn

from evaluate.features import PRECISIONS
from evaluate.metrics.coco import encode_mask
from evaluate.openmmlab.library import building, quiet
from evaluate.openmmlab.sizes import base_stride
from evaluate.openmmlab.training import as_lists, pixels

HEADS = ("mask_rcnn", "cascade", "retinanet")
RATIOS = [0.5, 1.0, 2.0]
CASCADE = (0.5, 0.6, 0.7)  # IoU with an object above which a proposal of each stage is positive
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


def build_detector(
    network: Any,
    head: str,
    classes: int,
    *,
    strides: Sequence[int],
    frozen: bool,
    channels: int = 256,
    hidden: int = 1024,
    anchor: int = 8,
    convs: int = 4,
    standardise: bool = False,
    regions: int = 512,
    proposals: int = 1000,
    detections: int = 100,
    checkpointing: bool = False,
) -> nn.Module:
    """A detector with drawn heads; seed torch before.

    head: mask_rcnn or cascade (boxes and masks), or retinanet (boxes); strides: of the pyramid, in pixels; channels:
    its width; hidden: width of the layers that classify a region; anchor: side of an anchor in strides (in
    RetinaNet half of it, in three octaves); convs: layers of RetinaNet's head, or of that for masks, before the
    outputs; standardise: batch norm before the pyramid; regions: of an image that the second stage is trained on;
    proposals, detections: kept of an image, at most.
    """
    stride = base_stride(network.patch_size)
    backbone = {"type": "SuiteBackbone", "network": network, "blocks": 1, "frozen": frozen, "stride": stride}
    neck = {"type": "SimplePyramid", "in_channels": network.dim, "out_channels": channels}
    config: dict[str, Any] = {
        "backbone": backbone | {"checkpointing": checkpointing},
        "neck": neck | {"stride": stride, "strides": list(strides), "standardise": standardise},
        "data_preprocessor": {
            "type": "DetDataPreprocessor", "pad_mask": True, "pad_size_divisor": max(stride, *strides),
            **pixels(network.mean, network.std),
        },
    }  # fmt: skip
    if head == "retinanet":
        config |= _retina(classes, strides, channels, anchor, convs)
    else:
        config |= _two_stages(classes, strides, channels, hidden, anchor, convs, regions, head == "cascade")
    few(config, proposals, detections)
    config["train_cfg"], config["test_cfg"] = ConfigDict(config["train_cfg"]), ConfigDict(config["test_cfg"])
    with building("mmdet"):
        model = MODELS.build(config)
        model.init_weights()
    return model


@torch.no_grad()
def detect(
    model: Any, sample: dict[str, Any], precision: str, categories: Sequence[int], image: int
) -> list[dict[str, Any]]:
    """COCO results of a test image at its own size, best first; model in evaluation mode.

    categories: the id of each class; image: the id of the image.
    """
    data = model.data_preprocessor(as_lists([sample]), False)
    kind = PRECISIONS[precision]
    cast = torch.autocast(data["inputs"].device.type, kind) if kind else nullcontext()
    with cast, quiet():
        [result] = model.predict(data["inputs"], data["data_samples"], rescale=True)
    found = result.pred_instances.cpu()
    order = torch.argsort(found.scores, descending=True, stable=True).tolist()
    results: list[dict[str, Any]] = []
    for i in order:
        left, top, right, bottom = (float(side) for side in found.bboxes[i])
        box = [left, top, max(0.0, right - left), max(0.0, bottom - top)]
        one = {"image_id": image, "category_id": categories[int(found.labels[i])], "bbox": box}
        one |= {"score": float(found.scores[i])}
        if "masks" in found:
            one["segmentation"] = encode_mask(found.masks[i].numpy())
        results.append(one)
    return results


def few(config: dict[str, Any], proposals: int, detections: int) -> None:
    """Put in how much is kept of an image: twice as many boxes before suppression in training, as mmdet has it."""
    train, test = config["train_cfg"], config["test_cfg"]
    if "rpn" in test:
        train["rpn_proposal"] |= {"max_per_img": proposals, "nms_pre": 2 * proposals}
        test["rpn"] |= {"max_per_img": proposals, "nms_pre": proposals}
        test["rcnn"]["max_per_img"] = detections
    else:
        test |= {"max_per_img": detections, "nms_pre": proposals}


def _coder(stds: Sequence[float]) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def _assigner(positive: float, negative: float, least: float, low_quality: bool) -> dict[str, Any]:
    return {
        "type": "MaxIoUAssigner", "pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": least,
        "match_low_quality": low_quality, "ignore_iof_thr": -1,
    }  # fmt: skip


def _drawn(channels: int) -> dict[str, Any]:
    """Initial convolutions of a head: the usual deviation of 0.01 at 256 channels, the same gain at any other width.

    With 0.01 at 32 channels four layers would pass on a five-thousandth of what tells one place from another.
    """
    return {"type": "Normal", "layer": "Conv2d", "std": 0.01 * (256 / channels) ** 0.5}


def _retina(classes: int, strides: Sequence[int], channels: int, anchor: int, convs: int) -> dict[str, Any]:
    """RetinaNet, arXiv 1708.02002, as mmdet sets it."""
    anchors = {"type": "AnchorGenerator", "octave_base_scale": anchor / 2, "scales_per_octave": 3, "ratios": RATIOS}
    focal = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
    rare = {"type": "Normal", "name": "retina_cls", "std": 0.01, "bias_prob": 0.01}  # objects are, at first
    head = {
        "type": "RetinaHead", "num_classes": classes, "in_channels": channels, "feat_channels": channels,
        "stacked_convs": convs, "anchor_generator": anchors | {"strides": list(strides)},
        "bbox_coder": _coder([1.0] * 4), "loss_cls": focal, "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        "init_cfg": _drawn(channels) | {"override": rare},
    }  # fmt: skip
    train: dict[str, Any] = {"assigner": _assigner(0.5, 0.4, 0, True), "sampler": {"type": "PseudoSampler"}}
    test: dict[str, Any] = {
        "min_bbox_size": 0,
        "score_thr": 0.05,
        "nms": {"type": "nms", "iou_threshold": 0.5},
    }
    train |= {"allowed_border": -1, "pos_weight": -1, "debug": False}
    return {"type": "RetinaNet", "bbox_head": head, "train_cfg": train, "test_cfg": test}


def _two_stages(
    classes: int,
    strides: Sequence[int],
    channels: int,
    hidden: int,
    anchor: int,
    convs: int,
    regions: int,
    cascade: bool,
) -> dict[str, Any]:
    """Mask R-CNN, arXiv 1703.06870, or its cascade, arXiv 1906.09756, as mmdet sets them."""
    cross: dict[str, Any] = {"type": "CrossEntropyLoss", "loss_weight": 1.0}
    anchors: dict[str, Any] = {
        "type": "AnchorGenerator",
        "scales": [anchor],
        "ratios": RATIOS,
        "strides": list(strides),
    }
    smooth = {"type": "SmoothL1Loss", "beta": 1.0 / 9.0, "loss_weight": 1.0}
    rpn = {
        "type": "RPNHead", "in_channels": channels, "feat_channels": channels, "anchor_generator": anchors,
        "bbox_coder": _coder([1.0] * 4), "loss_cls": cross | {"use_sigmoid": True},
        "loss_bbox": smooth if cascade else {"type": "L1Loss", "loss_weight": 1.0}, "init_cfg": _drawn(channels),
    }  # fmt: skip
    box: dict[str, Any] = {
        "type": "Shared2FCBBoxHead", "in_channels": channels, "fc_out_channels": hidden, "roi_feat_size": 7,
        "num_classes": classes, "loss_cls": cross | {"use_sigmoid": False},
    }  # fmt: skip
    mask = {
        "type": "FCNMaskHead", "num_convs": convs, "in_channels": channels, "conv_out_channels": channels,
        "num_classes": classes, "loss_mask": cross | {"use_mask": True},
    }  # fmt: skip
    roi: dict[str, Any] = {
        "bbox_roi_extractor": _extractor(7, channels, strides), "mask_roi_extractor": _extractor(14, channels, strides),
        "mask_head": mask,
    }  # fmt: skip
    sampler: dict[str, Any] = {"type": "RandomSampler", "neg_pos_ub": -1, "num": regions, "pos_fraction": 0.25}
    stage: dict[str, Any] = {
        "sampler": sampler | {"add_gt_as_proposals": True},
        "mask_size": 28,
        "pos_weight": -1,
        "debug": False,
    }
    if cascade:
        heads = [
            box | {"reg_class_agnostic": True, "bbox_coder": _coder(stds), "loss_bbox": smooth | {"beta": 1.0}}
            for stds in STDS
        ]
        roi |= {"type": "CascadeRoIHead", "num_stages": len(CASCADE), "stage_loss_weights": [1, 0.5, 0.25]}
        rcnn: Any = [stage | {"assigner": _assigner(iou, iou, iou, False)} for iou in CASCADE]
    else:
        heads = box | {"bbox_coder": _coder(STDS[0]), "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0}}  # type: ignore[assignment]
        roi |= {"type": "StandardRoIHead"}
        rcnn = stage | {"assigner": _assigner(0.5, 0.5, 0.5, True)}
    few = sampler | {"num": 256, "pos_fraction": 0.5, "add_gt_as_proposals": False}
    first: dict[str, Any] = {"assigner": _assigner(0.7, 0.3, 0.3, True), "sampler": few}
    kept: dict[str, Any] = {"nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
    train = {
        "rpn": first | {"allowed_border": -1, "pos_weight": -1, "debug": False},
        "rpn_proposal": dict(kept), "rcnn": rcnn,
    }  # fmt: skip
    final: dict[str, Any] = {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}}
    test = {"rpn": dict(kept), "rcnn": final | {"mask_thr_binary": 0.5}}
    name = "CascadeRCNN" if cascade else "MaskRCNN"
    return {"type": name, "rpn_head": rpn, "roi_head": roi | {"bbox_head": heads}, "train_cfg": train, "test_cfg": test}


def _extractor(size: int, channels: int, strides: Sequence[int]) -> dict[str, Any]:
    layer = {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0}
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": layer,
        "out_channels": channels,
        "featmap_strides": list(strides),
    }
