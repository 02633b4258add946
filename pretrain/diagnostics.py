"""Label-free health of a run: is the channel in use, and does the representation keep its rank?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.messages import marginal_entropy, to_bits


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of the centred covariance of (n, d); 0 when constant.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.svdvals(centred).square()
    total = values.sum()
    if total <= 1e-12 * max(1, features.double().square().sum().item()):
        return 0.0
    share = values / total
    return float(torch.exp(-torch.xlogy(share, share).sum()))


@torch.no_grad()
def message_health(logits: Tensor) -> dict[str, float]:
    """Health of a binary channel on logits (n, B).

    bit_entropy: mean entropy in bits; dead_bits: share of bits that never change; bit_imbalance: mean |p - 1/2|;
    logit_scale: root mean square of the logits.
    """
    entropy = marginal_entropy(to_bits(logits))
    return {
        "bit_entropy": float(entropy.mean()),
        "dead_bits": float((entropy == 0).double().mean()),
        "bit_imbalance": float((to_bits(logits).double().mean(0) - 0.5).abs().mean()),
        "logit_scale": float(logits.double().square().mean().sqrt()),
    }


@torch.no_grad()
def health(backbone: nn.Module, head: nn.Module, images: Tensor, chunk: int = 64) -> dict[str, float]:
    """Health of a network in evaluation mode on normalised images (n, 3, S, S): `message_health` and effective rank."""
    modes = backbone.training, head.training
    backbone.eval(), head.eval()
    features = torch.cat([backbone(part) for part in images.split(chunk)])
    figures = {"effective_rank": effective_rank(features), **message_health(head(features))}
    backbone.train(modes[0]), head.train(modes[1])
    return figures


def warnings(figures: dict[str, float]) -> list[str]:
    """What looks wrong, in words; empty when nothing does."""
    found = []
    if figures["effective_rank"] < 2:
        found.append(f"the features have an effective rank of {figures['effective_rank']:.1f}: they have collapsed")
    if figures["dead_bits"] > 0.5:
        found.append(f"{figures['dead_bits']:.0%} of the outputs never change sign: the channel has collapsed")
    return found
