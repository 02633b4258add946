"""Position embeddings of other image sizes than the one they were learned at: each family of models has its own rule.

At the size that the embeddings were learned at, all rules leave them as they are.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

# antialias, and what is added to each side of the new grid before it is divided by the old one.
# bicubic: transformers' ViT and DINOv2, mmpretrain. dino: DINO, iBOT, DINOv2 without registers, whose public code adds
# 0.1 against rounding. timm: timm, and DINOv2 with registers.
RULES: dict[str, tuple[bool, float]] = {"timm": (True, 0.0), "bicubic": (False, 0.0), "dino": (False, 0.1)}


def resample(positions: Tensor, old: tuple[int, int], new: tuple[int, int], rule: str, prefix: int) -> Tensor:
    """Positions (1, prefix + h w, D) of an `old` grid (h, w) for a `new` one; the first `prefix` tokens are kept.

    Raises ValueError on an unknown rule. Source: DINO and DINOv2, public code of `interpolate_pos_encoding`.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule for positions {rule!r}; use {', '.join(RULES)}")
    if old == new:
        return positions
    antialias, offset = RULES[rule]
    grid = positions[:, prefix:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    options: dict[str, Any] = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    if offset:
        options["scale_factor"] = tuple((side + offset) / before for side, before in zip(new, old, strict=True))
    else:
        options["size"] = new
    grid = nn.functional.interpolate(grid, **options).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :prefix], grid.to(positions.dtype)], dim=1)


def follow(vit: Any, rule: str) -> None:
    """Make a timm vision transformer with learned positions and `dynamic_img_size` resample them by a rule.

    Raises ValueError on an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule for positions {rule!r}; use {', '.join(RULES)}")
    if rule == "timm":
        return
    original = type(vit)._pos_embed

    def with_positions(self: Any, tokens: Tensor) -> Tensor:
        """What timm does with the tokens (B, h, w, D), given positions that fit them."""
        grid, own = (tokens.shape[1], tokens.shape[2]), self.patch_embed.grid_size
        if grid == own:
            return original(self, tokens)
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        positions = resample(self.pos_embed, own, grid, rule, prefix)
        prefix_tokens = [self.cls_token, self.reg_token]
        return self.pos_drop(join(tokens.flatten(1, 2), prefix_tokens, positions, self.no_embed_class))

    vit._pos_embed = MethodType(with_positions, vit)


def join(patches: Tensor, prefix: list[Tensor | None], positions: Tensor, patches_only: bool) -> Tensor:
    """Prefix tokens before patch tokens (B, n, D), with positions for all of them or for the patches alone."""
    if patches_only:
        patches = patches + positions
    tokens = [token.expand(len(patches), -1, -1) for token in prefix if token is not None]
    joined = torch.cat([*tokens, patches], dim=1)
    return joined if patches_only else joined + positions
