"""Label-free health of a run: is the channel in use, and does the representation keep its rank?"""

from __future__ import annotations

from collections.abc import Mapping

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


def warnings(
    figures: Mapping[str, float],
    *,
    highest_rank: float = 0.0,
    chance: float | None = None,
    floor: float = 0.0,
    done: float = 1.0,
    binary: bool = True,
) -> dict[str, str]:
    """What looks wrong after an epoch, in words by kind; empty when nothing does.

    figures: `health`, and agreement and rate_over_bound where the objective has them; highest_rank: effective rank at
    its best so far; chance: agreement of a student that says the same of every image; floor: rate_over_bound when all
    rows point one way; done: share of the run, because agreement starts at chance; binary: whether signs are bits.
    """
    found = {}
    rank, agreement = figures["effective_rank"], figures.get("agreement")
    if rank < 2:
        found["rank"] = f"the features have an effective rank of {rank:.1f}: they have collapsed"
    elif rank < highest_rank / 2:
        found["falling"] = f"the effective rank of the features fell from {highest_rank:.1f} to {rank:.1f}: a collapse"
    dead, imbalance = figures["dead_bits"], figures.get("bit_imbalance", 0.0)
    if binary and dead > 0.5:
        found["dead"] = f"{dead:.0%} of the bits are equal for all images: the channel has collapsed"
    elif binary and imbalance > 0.4:
        found["constant"] = (
            f"the bits are nearly constant (mean |p - 1/2| is {imbalance:.2f} of at most 0.5): the channel is "
            "collapsing; try a larger weight of the rate"
        )
    if floor and figures.get("rate_over_bound", 1.0) < 1.5 * floor:
        share = figures["rate_over_bound"]
        found["floor"] = f"the rate is at its floor ({share:.1%} of its bound): all outputs point one way"
    if chance is not None and agreement is not None and done >= 0.25:
        if agreement > 0.995 * chance:
            found["chance"] = (
                f"the agreement is {agreement:.4f}, no better than a guess ({chance:.4f}): the student learns "
                "nothing from the teacher; try another rate weight, learning rate or initial scale of the head"
            )
        elif agreement < 0.02 * chance:
            found["saturated"] = (
                f"the agreement is {agreement:.4f}, a guess has {chance:.4f}: it is saturated and has no gradient left"
            )
    return found
