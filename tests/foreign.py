"""A tiny vision transformer under the names that other projects give its tensors, written from their public code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

Named = dict[str, Tensor]


def network(seed: int = 1, **options: Any) -> VisionTransformer:
    """A ViT of 16 channels, two heads and two blocks on images of 16 pixels, every weight of it random."""
    settings: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    vit = VisionTransformer(**settings | {"mlp_ratio": 2, "num_classes": 0, "dynamic_img_size": True} | options)
    random = torch.Generator().manual_seed(seed)
    for value in vit.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=random) * 0.3 + (value.ndim == 1))
    return vit.eval()


def gated(seed: int = 1) -> VisionTransformer:
    """The same with layer scale, registers and gated MLPs, as DINOv2 giant with registers."""
    extra: dict[str, Any] = {"init_values": 1.0, "reg_tokens": 3, "no_embed_class": True}
    return network(seed, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=3, **extra)


def under(prefix: str, tensors: Named) -> Named:
    """The same tensors below a prefix."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def renamed(tensors: Named, *rules: tuple[str, str]) -> Named:
    """The same tensors with every rule applied to their names in turn."""
    found = {}
    for name, value in tensors.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found


def head(prefix: str) -> Named:
    """A projection head."""
    return under(prefix, {"mlp.0.weight": torch.ones(4, 16), "mlp.0.bias": torch.ones(4)})


def dino(net: Named, decoy: Named) -> Any:
    """facebookresearch/dino, main_dino.py: what a training writes."""
    both = {"student": under("module.backbone.", decoy) | head("module.head.")}
    both["teacher"] = under("backbone.", net) | head("head.")
    return both | {"epoch": 3, "args": argparse.Namespace(arch="vit_small", patch_size=8), "optimizer": {"state": {}}}


def dino_hub(net: Named, _: Named) -> Any:
    """facebookresearch/dino, hubconf.py: the backbone alone."""
    return net


def ibot(net: Named, decoy: Named) -> Any:
    """bytedance/ibot: `masked_embed`, and heads beside the backbone."""
    return {
        "state_dict": under("teacher.", net | {"masked_embed": torch.ones(1, 16)})
        | under("student.", decoy)
        | {"centre": torch.ones(1)}
    }


def mae(net: Named, _: Named) -> Any:
    """facebookresearch/mae, models_mae.py."""
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 5, 8)}
    decoder |= {"decoder_embed.weight": torch.ones(8, 16), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    return {"model": net | decoder, "epoch": 1}


def moco(net: Named, decoy: Named) -> Any:
    """facebookresearch/moco-v3, main_moco.py: the network that is trained is the base encoder."""
    tensors = under("module.base_encoder.", net | {"head.0.weight": torch.ones(4, 16)})
    return {"epoch": 1, "arch": "vit_small", "state_dict": tensors | under("module.momentum_encoder.", decoy)}


def solo(net: Named, decoy: Named) -> Any:
    """vturrisi/solo-learn: a Lightning checkpoint."""
    tensors = under("backbone.", net) | under("momentum_backbone.", decoy) | under("projector.", head(""))
    tensors |= {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)}
    return {"pytorch-lightning_version": "2.1.0", "state_dict": tensors, "hyper_parameters": {"lr": 0.1}}


def lightly(net: Named, decoy: Named) -> Any:
    """lightly-ai/lightly, the Lightning example of DINO with its wrapper of a timm ViT."""
    tensors = under("teacher_backbone.vit.", net) | under("student_backbone.vit.", decoy)
    return {"pytorch-lightning_version": "2.1.0", "state_dict": tensors | head("student_head.") | head("teacher_head.")}


def lightning(net: Named, _: Named) -> Any:
    """Any LightningModule with a timm ViT as `self.model`."""
    return {"pytorch-lightning_version": "2.1.0", "state_dict": under("model.", net), "loops": {"fit": {"done": 1}}}


MMPRETRAIN = (
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"^blocks\.(\d+)\.norm", r"layers.\1.ln"),
    (r"^blocks\.", "layers."),
    (r"mlp\.fc1", "ffn.layers.0.0"),
    (r"mlp\.fc2", "ffn.layers.1"),
    (r"ls1\.gamma", "attn.gamma1.weight"),
    (r"ls2\.gamma", "ffn.gamma2.weight"),
    (r"^norm\.", "ln1."),
)


def mmpretrain(net: Named, _: Named) -> Any:
    """open-mmlab/mmpretrain, models/backbones/vision_transformer.py."""
    tensors = under("backbone.", renamed(net, *MMPRETRAIN)) | {"head.layers.head.weight": torch.ones(3, 16)}
    return {"meta": {"epoch": 1}, "state_dict": tensors}


def mmseg(net: Named, _: Named) -> Any:
    """open-mmlab/mmsegmentation, models/backbones/vit.py."""
    attention = ((r"attn\.qkv\.", "attn.attn.in_proj_"), (r"attn\.proj", "attn.attn.out_proj"))
    tensors = under("backbone.", renamed(net, *MMPRETRAIN, *attention))
    return {"state_dict": tensors | {"decode_head.conv_seg.weight": torch.ones(3, 16, 1, 1)}}


def dinov2(net: Named, _: Named) -> Any:
    """facebookresearch/dinov2, hub weights: registers without positions, SwiGLU as w12 and w3."""
    position = torch.full((1, 1, 16), 0.2)
    tensors = renamed(net, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"), ("reg_token", "register_tokens"))
    tensors |= {"cls_token": net["cls_token"] - position, "pos_embed": torch.cat([position, net["pos_embed"]], 1)}
    return tensors | {"mask_token": torch.ones(1, 16)}


def dinov2_training(net: Named, decoy: Named) -> Any:
    """facebookresearch/dinov2, ssl_meta_arch.py: blocks in chunks for FSDP, heads beside the backbone."""
    chunks = ((r"^blocks\.(\d+)", r"blocks.\1.\1"),)
    tensors = under("backbone.", renamed(dinov2(net, decoy), *chunks)) | head("dino_head.") | head("ibot_head.")
    return {"teacher": tensors}


PLAIN: dict[str, Callable[[Named, Named], Any]] = {
    function.__name__: function
    for function in (dino, dino_hub, ibot, mae, moco, solo, lightly, lightning, mmpretrain, mmseg)
}
GATED: dict[str, Callable[[Named, Named], Any]] = {f.__name__: f for f in (dinov2, dinov2_training)}


def write(folder: Path, content: Any, name: str = "weights.pth") -> Path:
    """What torch.save makes of a content."""
    torch.save(content, folder / name)
    return folder / name
