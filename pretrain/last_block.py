"""The last block of a vision transformer where its class token alone is read.

A network pooled by its class token drops all other tokens that come out of the last block, and their gradient is zero:
only one query is asked there. With one query, keys and values of all tokens need not be computed either: for the
weights W_k and W_v of a head, q (x W_k)^T = (q W_k^T) x^T and a (x W_v) = (a x) W_v. The keys' bias adds the same to
every score, which the softmax takes away; the values' bias is added once, as attention sums to 1.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class LastBlock(Block):
    """A timm `Block`, in its own layers, that also gives its first token alone."""

    def __init__(self, block: Block):
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)
        self.train(block.training)

    def forward(self, x: Tensor, *args: object, first_only: bool = False, **options: object) -> Tensor:
        """Tokens (B, N, D) -> (B, N, D), as the block that it was; `first_only` gives the first of them, (B, 1, D)."""
        if not first_only:
            return super().forward(x, *args, **options)  # type: ignore[arg-type]
        attn = cast(Attention, self.attn)
        first = x[:, :1] + self.drop_path1(self.ls1(attend_first(attn, self.norm1(x))))
        return first + self.drop_path2(self.ls2(self.mlp(self.norm2(first))))


def can_be_last(block: nn.Module) -> bool:
    """Whether a block is timm's usual one, with attention whose keys and values are products of the tokens alone."""
    attn = getattr(block, "attn", None)
    if type(block) is not Block or type(attn) is not Attention:
        return False
    normed = not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity)
    return not normed and attn.gate is None and attn.attn_drop.p == 0


def attend_first(attn: Attention, x: Tensor) -> Tensor:
    """What attention gives the first of the tokens (B, N, D): (B, 1, D)."""
    heads = (attn.num_heads, attn.head_dim)
    w_q, w_k, w_v = attn.qkv.weight.unflatten(0, (3, *heads))  # (H, d, D) each
    query = torch.einsum("bc,hdc->bhd", x[:, 0], w_q)
    if attn.qkv.bias is not None:
        b_q, _, b_v = attn.qkv.bias.unflatten(0, (3, *heads))
        query = query + b_q
    asked = torch.einsum("bhd,hdc->bhc", query * attn.scale, w_k)
    weights = (asked @ x.transpose(1, 2)).softmax(-1)  # (B, H, N)
    mixed = torch.einsum("bhc,hdc->bhd", weights @ x, w_v)
    if attn.qkv.bias is not None:
        mixed = mixed + b_v
    return attn.proj_drop(attn.proj(attn.norm(mixed.flatten(1)))).unsqueeze(1)
