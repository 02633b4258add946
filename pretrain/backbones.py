"""Backbones: a timm vision transformer by name, with the features every part of the suite asks for.

images -> Backbone -> Features(cls [B, D], patches [B, h, w, D])
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.lean import lean_imports
from pretrain.positions import follow

with lean_imports():
    import timm
    from timm.layers import HybridEmbed, SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    from pretrain.last_block import LastBlock, can_be_last

#: what a name's definition may be changed by; a file cannot make timm fetch weights or open another file
SETTINGS = {
    "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm",
    "proj_bias", "init_values", "class_token", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "act_layer",
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
}  # fmt: skip
OWN_SETTINGS = {"native_size", "positions", "norm_eps", "swiglu"}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """Features of a batch: `cls` (B, D), the class token or the mean of patches; `patches` (B, h, w, D)."""

    cls: Tensor
    patches: Tensor


class ConvStem(nn.Sequential):
    """Patch embedding in steps: 3 x 3 convolutions of stride 2, group norm, GELU; (B, 3, H, W) -> (B, C, H/p, W/p).

    Group norm rather than batch norm: the map of an image depends on no other image, so the number of processes and
    the crops that share a call change nothing, and the teacher needs no running statistics.
    """

    def __init__(self, patch_size: int, channels: int):
        steps = patch_size.bit_length() - 1
        if 2**steps != patch_size or patch_size < 2:
            raise ValueError(f"the convolutional stem needs a patch size that is a power of two, got {patch_size}")
        widths = [max(8, channels // 2 ** (steps - 1 - i)) for i in range(steps)]
        layers: list[nn.Module] = []
        for before, after in zip([3, *widths[:-1]], widths, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
        super().__init__(*layers)


class Backbone(nn.Module):
    """A timm vision transformer that returns class token and patch tokens.

    name: a timm `vit_*` name; `image_size`, `patch_size` and any further keyword (embed_dim, depth, num_heads, ...)
    override its definition. `stem="conv"` replaces the linear patch projection by `ConvStem`. `cls_init="reference"`
    draws the class token from a truncated normal of std 0.02 as the DINO family does ("timm": std 1e-6);
    `init="fan_in"` draws all linear weights with std 1/sqrt(fan-in), which narrow networks need. `pool="avg"` makes the
    mean of the patch tokens the global feature. `mean`, `std` and `resize` (shorter side before the centre crop)
    describe the preprocessing that belongs to the weights. For weights of other projects: `native_size`, the image side
    that the position embeddings are of where it is not `image_size`; `positions`, the rule that resamples them
    (`pretrain.positions`); `norm_eps` of all layer norms; `swiglu=True`, gated MLPs as in DINOv2 giant.
    Raises ValueError on an unknown name, or an image size that the patch size does not divide.
    Source: ViT, arXiv 2010.11929; DINO, arXiv 2104.14294, public code.
    """

    def __init__(
        self,
        name: str = "vit_small_patch16_224",
        *,
        image_size: int = 224,
        patch_size: int | None = None,
        stem: str = "patch",
        pool: str = "token",
        init: str = "timm",
        cls_init: str = "reference",
        drop_path: float = 0.0,
        resize: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        **overrides: Any,
    ):
        super().__init__()
        overrides = {key: value for key, value in overrides.items() if value is not None}
        self.spec = {
            "name": name, "image_size": image_size, "patch_size": patch_size, "stem": stem, "pool": pool, "init": init,
            "cls_init": cls_init, "resize": resize, "mean": list(mean), "std": list(std), **overrides,
        }  # fmt: skip
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self.resize = resize or round(image_size * 256 / 224)
        self.vit = build_vit(name, image_size, patch_size, stem, pool, drop_path, overrides)
        self.patch_size = int(self.vit.patch_embed.feat_ratio())
        if image_size % self.patch_size:
            near = image_size // self.patch_size * self.patch_size or self.patch_size
            raise ValueError(
                f"patch size {self.patch_size} does not divide the image size {image_size}; "
                f"use an image size of {near} or {near + self.patch_size}, or another patch size"
            )
        self.dim, self.depth = int(self.vit.embed_dim), len(self.vit.blocks)
        initialise(self.vit, init, cls_init)

    def forward(self, images: Tensor) -> Tensor:
        """Global feature of each image: (B, 3, H, W) normalised -> (B, D)."""
        vit: Any = self.vit
        if not (self.depth and isinstance(vit.blocks[-1], LastBlock)):
            return vit(images)
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        for block in vit.blocks[:-1]:
            tokens = block(tokens)
        return vit.forward_head(vit.norm(vit.blocks[-1](tokens, first_only=True)))

    def features(self, images: Tensor) -> Features:
        """Class token and patch tokens of the last block, after the final norm."""
        return self.blocks(images, 1)[-1]

    def blocks(self, images: Tensor, n: int = 1) -> list[Features]:
        """Features of the last n blocks, oldest first, each through the same final norm.

        Raises ValueError when n exceeds the depth or an image is smaller than one patch.
        """
        if not 1 <= n <= self.depth:
            raise ValueError(f"asked for the last {n} blocks of a backbone of {self.depth}; use 1 to {self.depth}")
        images = self.whole_patches(images)
        pairs: Any = self.vit.forward_intermediates(
            images, indices=n, norm=True, return_prefix_tokens=True, intermediates_only=True
        )
        if self.vit.num_prefix_tokens == 0:
            pairs = [(grid, None) for grid in pairs]
        return [self._as_features(grid, prefix) for grid, prefix in pairs]

    def keys(self, images: Tensor) -> Tensor:
        """Keys of the last attention layer before scaling, heads concatenated, no prefix tokens: (B, D, h, w)."""
        images = self.whole_patches(images)
        caught: list[Tensor] = []
        last: Any = self.vit.blocks[-1]
        handle = last.attn.qkv.register_forward_hook(lambda _m, _i, out: caught.append(out))
        try:
            self.vit.forward_features(images)
        finally:
            handle.remove()
        keys = caught[0].chunk(3, dim=-1)[1][:, self.vit.num_prefix_tokens :]  # (B, h w, D)
        h, w = (side // self.patch_size for side in images.shape[-2:])
        return keys.transpose(1, 2).reshape(len(images), -1, h, w)

    def whole_patches(self, images: Tensor) -> Tensor:
        """The images without the remainder that fills no patch; raises ValueError when there is not one patch."""
        height, width = (side // self.patch_size * self.patch_size for side in images.shape[-2:])
        if min(height, width) == 0:
            raise ValueError(
                f"image of {tuple(images.shape[-2:])} pixels is smaller than one patch ({self.patch_size})"
            )
        return images[..., :height, :width]

    def _as_features(self, grid: Tensor, prefix: Tensor | None) -> Features:
        pooled = prefix is None or self.vit.global_pool == "avg"
        return Features(grid.mean((2, 3)) if pooled else prefix[:, 0], grid.permute(0, 2, 3, 1))  # type: ignore[index]


def build_vit(
    name: str,
    image_size: int,
    patch_size: int | None,
    stem: str,
    pool: str,
    drop_path: float,
    overrides: dict[str, Any],
) -> VisionTransformer:
    """A timm vision transformer without classifier that accepts any input size.

    Raises ValueError naming the nearest known name, or the option that the architecture does not take.
    """
    if not timm.is_model(name) or not name.startswith("vit_"):
        close = difflib.get_close_matches(name, timm.list_models("vit_*"), n=3)
        raise ValueError(f"unknown backbone {name!r}; nearest timm names: {', '.join(close) or 'none'}")
    options: dict[str, Any] = {**overrides, "drop_path_rate": drop_path, "global_pool": pool}
    unknown = sorted(set(overrides) - SETTINGS - OWN_SETTINGS)
    if unknown:
        close = difflib.get_close_matches(unknown[0], SETTINGS | OWN_SETTINGS, n=1)
        nearest = f"did you mean {close[0]!r}?" if close else f"use {', '.join(sorted(SETTINGS))}"
        raise ValueError(f"backbone {name} takes no {unknown[0]!r}; {nearest}")
    rule, eps = options.pop("positions", "timm"), options.pop("norm_eps", None)
    options["img_size"] = options.pop("native_size", image_size)
    if options.pop("swiglu", False):
        options |= {"mlp_layer": SwiGLUPacked, "act_layer": "silu"}
    if pool == "avg":
        options |= {"class_token": False, "fc_norm": False}
    if stem == "conv":
        plain: Any = timm.create_model(name, num_classes=0, depth=0)
        size = patch_size or int(plain.patch_embed.patch_size[0])
        width = int(overrides.get("embed_dim", plain.embed_dim))
        options |= {"embed_layer": partial(HybridEmbed, backbone=ConvStem(size, width)), "patch_size": 1}
    elif stem == "patch":
        options |= {"patch_size": patch_size} if patch_size else {}
    else:
        raise ValueError(f"unknown stem {stem!r}; use 'patch' or 'conv'")
    try:
        vit: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
    except TypeError as error:
        raise ValueError(f"backbone {name}: {error}") from error
    if pool == "token" and len(vit.blocks) and can_be_last(vit.blocks[-1]):
        vit.blocks[-1] = LastBlock(vit.blocks[-1])
    follow(vit, rule)
    for module in vit.modules() if eps is not None else ():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    return vit


def initialise(vit: VisionTransformer, init: str, cls_init: str) -> None:
    """Redraw the class token, and with init="fan_in" all linear and convolution weights, in place."""
    if cls_init == "reference":
        for token in (vit.cls_token, vit.reg_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
    elif cls_init != "timm":
        raise ValueError(f"unknown cls_init {cls_init!r}; use 'reference' or 'timm'")
    if init == "fan_in":
        for module in vit.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    elif init != "timm":
        raise ValueError(f"unknown init {init!r}; use 'timm' or 'fan_in'")


@torch.no_grad()
def preprocess(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale uint8 images (B, 3, H, W) to [0, 1] and normalise each channel; float32."""
    shape = (1, 3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(shape)
    return images.float().div_(255).sub_(centre).div_(torch.tensor(std, device=images.device).view(shape))
