"""A naming scheme of vision transformers, and where in a file networks named by it begin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.checkpoint import CheckpointError

# Which of several networks in a file is meant where nobody says: the teacher, as all evaluation code of the DINO family
# does; else the network that is trained, as MoCo v3, solo-learn and lightly do; a moving average only when asked for.
RANKS = (("teacher", 0), ("student", 2), ("momentum", 3), ("ema", 3), ("target", 3), ("key", 3))
PLAIN = 1


@dataclass(frozen=True)
class Layout:
    """A naming scheme.

    anchor: name of the weight of the patch projection; rules: (pattern, replacement) to timm's names, the first that
    matches a whole name holds; aside: names within the network that its features do not depend on; eps: of layer norms;
    positions: rule for other image sizes (`pretrain.positions`); bare: networks without final norm are usual.
    """

    name: str
    anchor: str
    rules: tuple[tuple[str, str], ...]
    aside: str = r"(?!)"
    eps: float = 1e-6
    positions: str = "bicubic"
    bare: bool = False


@dataclass(frozen=True)
class Root:
    """A network in a file: its naming scheme and what all its names begin with."""

    layout: Layout
    prefix: str

    @property
    def rank(self) -> int:
        """Smaller is preferred."""
        return next((rank for word, rank in RANKS if re.search(rf"(^|[._]){word}([._]|$)", self.prefix)), PLAIN)


@dataclass(frozen=True)
class Renamed:
    """The tensors of a network under timm's names; names set aside; names that no rule knows."""

    tensors: dict[str, Tensor]
    aside: list[str]
    left_over: list[str]


def find_roots(names: Iterable[str], layouts: Iterable[Layout]) -> list[Root]:
    """Every vision transformer in a file, by the weight of its patch projection."""
    layouts = list(layouts)
    return [
        Root(layout, name[: -len(layout.anchor)])
        for name in names
        for layout in layouts
        if name == layout.anchor or name.endswith(f".{layout.anchor}")
    ]


def choose(roots: list[Root], branch: str, what: str) -> Root:
    """The network that `branch` names, else the preferred one; raises CheckpointError when that is not one."""
    fitting = [root for root in roots if branch in root.prefix] if branch else roots
    best = [root for root in fitting if branch or root.rank == min(other.rank for other in fitting)]
    if len(best) != 1:
        known = ", ".join(f"@{root.prefix.rstrip('.')}" for root in roots if root.prefix)
        asked = f"@{branch} is none" if not best else f"@{branch} is several" if branch else "it holds several"
        raise CheckpointError(f"{what}: {asked} of its networks; add one of {known or 'none: it holds one'}")
    return best[0]


def rename(root: Root, tensors: Mapping[str, Tensor]) -> Renamed:
    """The network at `root` under timm's names, with q, k and v in one tensor."""
    found: dict[str, Tensor] = {}
    aside: list[str] = []
    left_over: list[str] = []
    for name, value in tensors.items():
        if not name.startswith(root.prefix):
            continue
        own = name[len(root.prefix) :]
        new = rename_one(root.layout, own)
        if new and new not in found:
            found[new] = value
        else:
            (aside if re.fullmatch(root.layout.aside, own) else left_over).append(own)
    return Renamed(join_registers(fuse(found)), aside, left_over)


def rename_one(layout: Layout, name: str) -> str:
    """timm's name for one tensor, or nothing when no rule knows it."""
    for pattern, replacement in layout.rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return ""


PARTS = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.gate", "mlp.up")}


def fuse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v, and the halves of a gated MLP, in one tensor each; incomplete ones stay, and will be left over."""
    for whole, parts in PARTS.items():
        for name in [name for name in tensors if f".{parts[0]}." in name]:
            names = [name.replace(parts[0], part) for part in parts]
            if len({tensors[part].shape if part in tensors else None for part in names}) == 1:
                tensors[name.replace(parts[0], whole)] = torch.cat([tensors.pop(part) for part in names])
    return tensors


def join_registers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Registers that stand between class token and patches without a position, as in DINOv2: timm keeps positions for
    patches alone then, and the one of the class token within the class token."""
    positions, token = tensors.get("pos_embed"), tensors.get("cls_token")
    if "register_tokens" in tensors and positions is not None and token is not None and positions.ndim == 3:
        tensors["reg_token"] = tensors.pop("register_tokens")
        tensors["cls_token"] = token.float() + positions[:, :1].float()
        tensors["pos_embed"] = positions[:, 1:]
    return tensors
