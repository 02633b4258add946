"""torchvision's vision transformers, which lightly wraps too."""

from evaluate.layouts.base import Layout

BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION = Layout(
    name="torchvision",
    anchor="conv_proj.weight",
    rules=(
        (r"class_token", "cls_token"),
        (r"conv_proj\.(weight|bias)", r"patch_embed.proj.\1"),
        (r"encoder\.pos_embedding", "pos_embed"),
        (BLOCK + r"ln_([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
        (BLOCK + r"self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        (BLOCK + r"self_attention\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
        (BLOCK + r"mlp\.(?:0|linear_1)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
        (BLOCK + r"mlp\.(?:3|linear_2)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        (r"encoder\.ln\.(weight|bias)", r"norm.\1"),
    ),
    aside=r"heads\..*|mask_token",
)
