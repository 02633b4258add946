"""The network that weights belong to: what tensors show (width, depth, patch, registers, ...), then what files say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from evaluate.layouts.options import Options
from pretrain.backbones import SETTINGS
from pretrain.checkpoint import CheckpointError

BASE = "vit_base_patch16_224"  # every number of it is given, so which timm name it is matters not
HEADS = {1280: 16, 1408: 16, 1664: 16}  # ViT-H, -g and -G; everything else has 64 channels a head
# JSON settings of a timm vision transformer. Others would reach `timm.create_model`, which can download and open files.
TIMM_IGNORED = {"img_size", "num_classes", "global_pool", "dynamic_img_size", "dynamic_img_pad", "weight_init",
                "fix_init", "fc_norm", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
                "attn_drop_rate", "drop_path_rate", "in_chans"}  # fmt: skip
TIMM_SETTINGS = SETTINGS - TIMM_IGNORED | {"patch_size"}


def from_tensors(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    """Arguments of `Backbone` that timm-named tensors show.

    Raises CheckpointError naming the tensor that is missing or of an impossible shape.
    """
    patch = tensors["patch_embed.proj.weight"]
    if patch.ndim != 4 or patch.shape[1] != 3 or patch.shape[2] != patch.shape[3]:
        raise CheckpointError(f"patch projection of {tuple(patch.shape)} in {origin}; expected (D, 3, patch, patch)")
    width, size = int(patch.shape[0]), int(patch.shape[2])
    blocks = {int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", name) for name in tensors) if match}
    if not blocks or max(blocks) >= len(tensors):
        raise CheckpointError(f"{origin} holds a patch projection but no blocks that belong to it")
    found: dict[str, Any] = {"embed_dim": width, "depth": max(blocks) + 1, "patch_size": size}
    found |= mlp(tensors, width)
    found["qkv_bias"] = any(name.endswith("attn.qkv.bias") for name in tensors)
    if any(".attn.q_norm." in name for name in tensors):
        found["qk_norm"] = True
    if any(".ls1." in name for name in tensors):
        found["init_values"] = 1e-5
    if "norm_pre.weight" in tensors:
        found["pre_norm"] = True
    return found | tokens(tensors, size, origin)


def mlp(tensors: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    """Width of the MLPs and whether they are gated."""
    first = next((value for name, value in tensors.items() if name.endswith("mlp.fc1.weight")), None)
    second = next((value for name, value in tensors.items() if name.endswith("mlp.fc2.weight")), None)
    if first is None or second is None:
        return {}
    gated = {"swiglu": True} if first.shape[0] == 2 * second.shape[-1] else {}
    return {
        "mlp_ratio": (int(first.shape[0]) + 0.5) / width if first.shape[0] % width else first.shape[0] // width
    } | gated


def tokens(tensors: Mapping[str, Tensor], patch: int, origin: str) -> dict[str, Any]:
    """Class token, registers, and the image side that the positions belong to."""
    positions, registers = tensors.get("pos_embed"), tensors.get("reg_token")
    if positions is None or positions.ndim != 3:
        raise CheckpointError(
            f"{origin} holds no learned or fixed position embeddings (pos_embed); such a ViT is unknown"
        )
    extra = int(registers.shape[1]) if registers is not None and registers.ndim == 3 else 0
    found: dict[str, Any] = {"reg_tokens": extra} if extra else {}
    prefix = extra + ("cls_token" in tensors)
    without = {0: "no_embed_class"} if prefix else {}
    for count in (0, prefix) if extra else (prefix, 0):
        grid = math.isqrt(max(0, positions.shape[1] - count))
        if grid and grid * grid == positions.shape[1] - count:
            found |= {without[count]: True} if count in without else {}
            return found | {"native_size": grid * patch, "pool": "token" if "cls_token" in tensors else "avg"}
    raise CheckpointError(f"{positions.shape[1]} positions in {origin} are no square grid; only square ones are known")


def heads(width: int, options: Options, said: int | None, prefix: str) -> tuple[int, str]:
    """Number of attention heads and, where nobody says it, the assumption; the weights do not show it.

    Raises CheckpointError when the width is no multiple of it.
    """
    number, why = options.heads or said, ""
    if number is None and width == 384 and re.search(r"(base|momentum)_encoder", prefix):
        number, why = 12, "12 heads, as MoCo v3's ViT-S has (assumed; ?heads=N for another number)"
    if number is None and width not in HEADS and width % 64:
        raise CheckpointError(f"the number of heads of a width of {width} is not in the file; add ?heads=N to the name")
    if number is None:
        number = HEADS.get(width, width // 64)
        why = f"{number} heads, {width // number} channels each (assumed; ?heads=N for another number)"
    if width % number:
        raise CheckpointError(f"heads={number} does not divide the width {width}")
    return number, why


def from_timm(config: Mapping[str, Any], depth: int, has_class_token: bool) -> dict[str, Any]:
    """Arguments of `Backbone` from the config.json of a timm folder.

    Raises CheckpointError for a setting that no checkpoint may make, or more blocks than the file has.
    """
    given = dict(config.get("model_args") or {})
    unknown = sorted(set(given) - TIMM_SETTINGS - TIMM_IGNORED)
    if unknown:
        raise CheckpointError(f"config.json sets {unknown[0]!r} in model_args, which is unknown here")
    found = {key: value for key, value in given.items() if key in TIMM_SETTINGS}
    if found.get("depth", depth) != depth:
        raise CheckpointError(f"config.json speaks of {found['depth']} blocks, the file holds {depth}")
    return {"name": str(config["architecture"]), **found, "pool": "token" if has_class_token else "avg"}


def timm_view(config: Mapping[str, Any]) -> dict[str, Any]:
    """image_size, resize, mean and std as a timm folder gives them."""
    about = config.get("pretrained_cfg") or config  # one dictionary in folders of older versions
    size = (about.get("input_size") or [3, None])[-1]
    found = {"image_size": size, "mean": about.get("mean"), "std": about.get("std")}
    if size and about.get("crop_pct"):
        found["resize"] = round(size / about["crop_pct"])
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in found.items() if value is not None
    }


def common_view(native: int, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], str]:
    """The view where no file describes one: ImageNet's normalisation, and the size that positions were learned at."""
    size = native
    if native == 518 and "blocks.0.ls1.gamma" in tensors:  # DINOv2: learned at 518, evaluated at 224 in its paper
        size = 224
    return {"image_size": size}, f"view of {size} pixels, ImageNet's mean and deviation (assumed; ?size= &mean= &std=)"
