"""mmcv's compiled operators by means of torchvision, so that no compiler is needed.

`install` puts a module `mmcv._ext` in place where mmcv was built without one. It holds the operators that our models
call, on CPU and GPU; any other raises NotImplementedError naming it. `make mmcv-ops` builds the compiled ones.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mmcv
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

NAME = "mmcv._ext"


def compiled() -> bool:
    """Whether mmcv has its own operators."""
    return not isinstance(sys.modules.get(NAME), _Operators) and importlib.util.find_spec(NAME) is not None


def install() -> None:
    """Provide the operators, before anything imports `mmcv.ops`; does nothing where mmcv has its own."""
    if NAME not in sys.modules and not compiled():
        mmcv._ext = sys.modules[NAME] = _Operators(NAME, __doc__)


class _Operators(ModuleType):
    """The module: known operators, and for every other name a function that says what is missing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return OPERATORS.get(name) or _absent(name)


def _absent(name: str) -> Callable[..., Any]:
    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"the operator {name} of mmcv is not built here; `make mmcv-ops` builds it")

    return missing


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Rows of the boxes (n, 4) x1, y1, x2, y2 that survive, best first; `offset` 1 counts both ends as inside."""
    far = torch.tensor([0, 0, offset, offset], device=boxes.device, dtype=torch.float32)
    return torchvision.ops.nms(boxes.float() + far, scores.float(), iou_threshold)


def roi_align_forward(
    maps: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Region features into `output` (n, C, h, w); maps (N, C, H, W), rois (n, 5) image, x1, y1, x2, y2.

    Raises NotImplementedError for maximum pooling, which torchvision lacks.
    """
    if pool_mode != 1:
        _absent("roi_align with pool_mode='max'")()
    # Strides are honoured (mmcv's own kernel ignores them on the CPU) and half precision is computed in full.
    found = torch.ops.torchvision.roi_align(
        maps.float().contiguous(), rois.float().contiguous(), spatial_scale, aligned_height, aligned_width,
        sampling_ratio, aligned,
    )  # fmt: skip
    output.copy_(found)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_maps: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to the maps, added to `grad_maps` (N, C, H, W)."""
    n, c, h, w = grad_maps.shape
    grad_maps += torch.ops.torchvision._roi_align_backward(
        grad_output.float().contiguous(), rois.float().contiguous(), spatial_scale, aligned_height, aligned_width,
        n, c, h, w, sampling_ratio, aligned,
    )  # fmt: skip


def _focal(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Focal loss of each logit (n, C), arXiv 1708.02002; target (n,) class, C for background; weight (C,) or empty."""
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    probability = logits.sigmoid()
    wrong = torch.where(positive, 1 - probability, probability)
    balance = torch.where(positive, alpha, 1 - alpha)
    loss = balance * wrong**gamma * F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    return loss * weight if weight.numel() else loss


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Focal loss of every logit into `output` (n, C)."""
    output.copy_(_focal(logits.float(), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad: Tensor, *, gamma: float, alpha: float
) -> None:
    """Gradient of the sum of the focal loss with respect to the logits into `grad` (n, C)."""
    with torch.enable_grad():
        leaf = logits.detach().float().requires_grad_()
        grad.copy_(torch.autograd.grad(_focal(leaf, target, weight, gamma, alpha).sum(), leaf)[0])


OPERATORS: dict[str, Callable[..., Any]] = {
    "nms": nms,
    "roi_align_forward": roi_align_forward,
    "roi_align_backward": roi_align_backward,
    "sigmoid_focal_loss_forward": sigmoid_focal_loss_forward,
    "sigmoid_focal_loss_backward": sigmoid_focal_loss_backward,
}
