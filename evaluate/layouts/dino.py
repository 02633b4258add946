"""timm's own names, which DINO, iBOT, SimDINO, MAE, MoCo v3, MSN and DeiT share, and what DINOv2 changed of them.

DINOv2: register_tokens, blocks in chunks (blocks.CHUNK.BLOCK), SwiGLU as w12 and w3. iBOT: layer scale as gamma_1 and
gamma_2.
"""

from evaluate.layouts.base import Layout

BLOCK = r"blocks\.(?:\d+\.)?(\d+)\."
DINO = Layout(
    name="timm, DINO, iBOT, SimDINO, MAE or DINOv2",
    anchor="patch_embed.proj.weight",
    rules=(
        (r"(cls_token|pos_embed|reg_token|register_tokens)", r"\1"),
        (r"(patch_embed\.proj|norm|norm_pre)\.(weight|bias)", r"\1.\2"),
        (
            BLOCK + r"((?:norm[12]|attn\.(?:qkv|proj|q_norm|k_norm|norm)|mlp\.(?:fc[12]|norm))\.(?:weight|bias))",
            r"blocks.\1.\2",
        ),
        (BLOCK + r"(ls[12]\.gamma)", r"blocks.\1.\2"),
        (BLOCK + r"gamma_([12])", r"blocks.\1.ls\2.gamma"),
        (BLOCK + r"mlp\.w12\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
        (BLOCK + r"mlp\.w3\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    ),
    # Projection and prediction heads, classifiers, MAE's decoder, what masked patches are replaced by.
    aside=r"((head|heads|fc|classifier|projector|predictor|prototypes|\w+_head|decoder\w*)\.|head_dist\.).*"
    r"|mask_token|masked_embed|decoder_\w+(\..*)?|last_layer\..*",
    positions="dino",
)
