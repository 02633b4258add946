"""transformers' ViT, ViT-MSN, ViTMAE, DINOv2 and DINOv2 with registers, and what their configuration files say.

Names as files on the hub have them, and as the modules of transformers 5 have them (q_proj, gate_proj, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluate.layouts.base import Layout
from pretrain.checkpoint import CheckpointError

MODEL_TYPES = ("vit", "vit_msn", "vit_mae", "dinov2", "dinov2_with_registers")
ACTIVATIONS = {
    "gelu": None,
    "gelu_python": None,
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
BLOCK = r"(?:encoder\.layer|layers)\.(\d+)\."
HUGGINGFACE = Layout(
    name="transformers",
    anchor="embeddings.patch_embeddings.projection.weight",
    rules=(
        (r"embeddings\.(cls_token|register_tokens)", r"\1"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"layernorm\.(weight|bias)", r"norm.\1"),
        (BLOCK + r"(?:layernorm_before|norm1)\.(weight|bias)", r"blocks.\1.norm1.\2"),
        (BLOCK + r"(?:layernorm_after|norm2)\.(weight|bias)", r"blocks.\1.norm2.\2"),
        (BLOCK + r"attention\.(?:attention\.)?(q)(?:uery|_proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
        (BLOCK + r"attention\.(?:attention\.)?(k)(?:ey|_proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
        (BLOCK + r"attention\.(?:attention\.)?(v)(?:alue|_proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
        (BLOCK + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
        (BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        (BLOCK + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
        (BLOCK + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        (BLOCK + r"mlp\.(gate|up)_proj\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    ),
    aside=r"embeddings\.mask_token|pooler\..*|classifier\..*|decoder\..*",
)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json of transformers says that the weights do not show.

    Raises CheckpointError for an architecture or activation that is none of those known here.
    """
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind not in MODEL_TYPES:
        raise CheckpointError(f"config.json describes a {kind!r} model; known here: {', '.join(MODEL_TYPES)}")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"config.json asks for hidden_act {activation!r}; known: {', '.join(ACTIVATIONS)}")
    eps = config.get("layer_norm_eps", 1e-6 if kind.startswith("dinov2") else 1e-12)
    found = {"num_heads": config.get("num_attention_heads"), "norm_eps": eps, "act_layer": ACTIVATIONS[activation]}
    found["positions"] = "timm" if kind == "dinov2_with_registers" else "bicubic"
    return {key: value for key, value in found.items() if value is not None}


def view(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """image_size, resize, mean and std as preprocessor_config.json gives them; what it leaves open is absent."""
    size, crop = side(preprocessor.get("size")), side(preprocessor.get("crop_size"))
    crops = crop is not None and preprocessor.get("do_center_crop", True)
    found: dict[str, Any] = {"image_size": crop if crops else size, "resize": size or crop}
    if preprocessor.get("do_normalize", True):
        found |= {"mean": preprocessor.get("image_mean"), "std": preprocessor.get("image_std")}
    else:
        found |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    return {key: value for key, value in found.items() if value is not None}


def side(size: Any) -> int | None:
    """The side of a square view that transformers writes as a number or as {"height": ..} or {"shortest_edge": ..}."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return int(size) if isinstance(size, int | float) and size > 0 else None
