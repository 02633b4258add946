"""Vision transformers of mmpretrain (mmcls, mmselfsup) and mmsegmentation; no OpenMMLab is needed to read them."""

from evaluate.layouts.base import Layout

BLOCK = r"layers\.(\d+)\."
OPENMMLAB = Layout(
    name="OpenMMLab",
    anchor="patch_embed.projection.weight",
    rules=(
        (r"(cls_token|pos_embed)", r"\1"),
        (r"patch_embed\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"(?:pre_norm|ln_pre)\.(weight|bias)", r"norm_pre.\1"),
        (r"(?:ln1|norm1)\.(weight|bias)", r"norm.\1"),
        (BLOCK + r"(?:ln|norm)([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
        (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
        (BLOCK + r"attn\.attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        (BLOCK + r"attn\.attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
        (BLOCK + r"ffn\.(?:layers\.0\.0|w12)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
        (BLOCK + r"ffn\.(?:layers\.1|w3)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        (BLOCK + r"(?:attn|ffn)\.gamma([12])\.(?:weight|scale)", r"blocks.\1.ls\2.gamma"),
    ),
    bare=True,
)
