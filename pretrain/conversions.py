"""A trained backbone under the names and configurations of timm and of transformers, for export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.backbones import Backbone

ABOUT_US = ("name", "image_size", "stem", "pool", "init", "cls_init", "resize", "mean", "std")  # no arguments of timm
OURS = ("positions", "native_size", "norm_eps", "swiglu")  # what timm has no argument for
ACTIVATIONS = {
    None: "gelu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
ELSEWHERE = "export it with --to torchscript or --to onnx"


def timm_config(backbone: Backbone, tag: str, licence: str) -> dict[str, Any]:
    """config.json of a timm folder; raises ValueError for a backbone that plain timm cannot build."""
    spec = backbone.spec
    odd = [key for key in OURS if spec.get(key) is not None]
    if spec["stem"] != "patch" or odd:
        what = odd[0] if odd else f"stem {spec['stem']!r}"
        raise ValueError(f"plain timm cannot build a backbone with {what}; {ELSEWHERE}")
    arguments = {key: value for key, value in spec.items() if key not in ABOUT_US and value is not None}
    arguments |= {"img_size": spec["image_size"], "dynamic_img_size": True}
    if spec["pool"] == "avg":
        arguments |= {"class_token": False, "fc_norm": False, "global_pool": "avg"}
    size = backbone.image_size
    about = {"tag": tag, "custom_load": False, "input_size": [3, size, size], "fixed_input_size": False}
    about |= {"interpolation": "bicubic", "crop_pct": size / backbone.resize, "crop_mode": "center"}
    about |= {"mean": list(backbone.mean), "std": list(backbone.std), "num_classes": 0, "pool_size": None}
    about |= {"first_conv": "patch_embed.proj", "classifier": "head", "license": licence}
    shape = {"num_classes": 0, "num_features": backbone.dim, "global_pool": spec["pool"]}
    return {"architecture": spec["name"], **shape, "model_args": arguments, "pretrained_cfg": about}


def transformers_config(backbone: Backbone) -> dict[str, Any]:
    """config.json of transformers: ViT, or DINOv2 where there is layer scale, or registers.

    Raises ValueError for a backbone that these classes cannot build.
    """
    vit: Any = backbone.vit
    block, spec = vit.blocks[0], backbone.spec
    activation = spec.get("act_layer")
    hidden = block.mlp.fc1.out_features
    obstacles = {
        "a convolutional stem": spec["stem"] != "patch",
        "no class token": vit.cls_token is None,
        "normalised queries and keys": hasattr(block.attn.q_norm, "weight"),
        "gated MLPs": bool(spec.get("swiglu")),
        "a norm before the blocks": hasattr(vit.norm_pre, "weight"),
        "no final norm": not hasattr(vit.norm, "weight"),
        f"activation {activation!r}": activation not in ACTIVATIONS,
        f"{hidden} hidden units": bool(is_dinov2(backbone) and hidden % backbone.dim),
        f"{spec.get('positions')!r} positions": spec.get("positions") is not None,
    }
    for obstacle, is_there in obstacles.items():
        if is_there:
            raise ValueError(f"transformers has no class for a backbone with {obstacle}; {ELSEWHERE}")
    registers = vit.num_reg_tokens
    config: dict[str, Any] = {
        "hidden_size": backbone.dim, "num_hidden_layers": backbone.depth, "num_attention_heads": block.attn.num_heads,
        "hidden_act": ACTIVATIONS[activation], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": vit.norm.eps, "patch_size": backbone.patch_size, "num_channels": 3,
        "image_size": spec.get("native_size") or backbone.image_size, "qkv_bias": block.attn.qkv.bias is not None,
        "dtype": "float32",
    }  # fmt: skip
    if not is_dinov2(backbone):
        return config | {"model_type": "vit", "architectures": ["ViTModel"], "intermediate_size": hidden}
    config |= {"mlp_ratio": hidden // backbone.dim, "use_swiglu_ffn": False, "layerscale_value": 1.0}
    if registers:
        more = {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
        return config | more | {"num_register_tokens": registers}
    return config | {"model_type": "dinov2", "architectures": ["Dinov2Model"], "use_mask_token": False}


def is_dinov2(backbone: Backbone) -> bool:
    """Whether a backbone has what transformers' ViT lacks and its DINOv2 has."""
    vit: Any = backbone.vit
    return bool(vit.num_reg_tokens) or hasattr(vit.blocks[0].ls1, "gamma")


def transformers_preprocessor(backbone: Backbone) -> dict[str, Any]:
    """preprocessor_config.json: shorter side, centre crop, normalisation."""
    size = backbone.image_size
    return {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": backbone.resize}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(backbone.mean), "image_std": list(backbone.std),
    }  # fmt: skip


def transformers_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """The weights under transformers' names: q, k and v apart, positions of registers within them."""
    vit: Any = backbone.vit
    state, dinov2 = vit.state_dict(), is_dinov2(backbone)
    found = embeddings(vit)
    found |= {f"layernorm.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    names = {"attn.proj": "attention.output.dense"}
    if dinov2:
        names |= {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    else:
        names |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for i in range(backbone.depth):
        old, new = f"blocks.{i}", f"encoder.layer.{i}"
        for part in ("weight", "bias"):
            found |= {f"{new}.{theirs}.{part}": state[f"{old}.{ours}.{part}"] for ours, theirs in names.items()}
            if f"{old}.attn.qkv.{part}" in state:
                three = zip(("query", "key", "value"), state[f"{old}.attn.qkv.{part}"].chunk(3), strict=True)
                found |= {f"{new}.attention.attention.{name}.{part}": value for name, value in three}
        for k in (1, 2) if dinov2 else ():
            scale = state.get(f"{old}.ls{k}.gamma", torch.ones(backbone.dim))
            found[f"{new}.layer_scale{k}.lambda1"] = scale
    return found


def embeddings(vit: Any) -> dict[str, Tensor]:
    """Patch projection, prefix tokens and positions under transformers' names.

    There, positions are of class token and patches; one of a register can be part of the register.
    """
    projection = vit.patch_embed.proj.state_dict()
    found = {f"embeddings.patch_embeddings.projection.{part}": projection[part] for part in ("weight", "bias")}
    positions, registers = vit.pos_embed.detach(), vit.num_reg_tokens
    if vit.no_embed_class:
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if registers:
        token = vit.reg_token.detach()
        if not vit.no_embed_class:
            token = token + positions[:, 1 : 1 + registers]
            positions = torch.cat([positions[:, :1], positions[:, 1 + registers :]], dim=1)
        found["embeddings.register_tokens"] = token
        found["embeddings.mask_token"] = torch.zeros_like(token[0, :1])  # the class insists on one
    return found | {"embeddings.cls_token": vit.cls_token.detach(), "embeddings.position_embeddings": positions}
