"""Optimisers and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.distributed import local, norms


def parameter_groups(
    module: nn.Module, *, decay_tokens: bool = True, plain_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Two groups: decayed (two or more dimensions, no bias) and not decayed (biases and norms).

    `decay_tokens` decays class token and position embedding too, as the DINO family does; timm's lists exclude them.
    `plain_factor` multiplies the second group's learning rate (Barlow Twins gives biases and norms their own rate).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        token = name.rsplit(".", 1)[-1] in ("cls_token", "pos_embed", "reg_token")
        is_plain = parameter.ndim < 2 or name.endswith(".bias") or (token and not decay_tokens)
        (plain if is_plain else decayed).append(parameter)
    return [
        {"params": decayed, "decayed": True},
        {"params": plain, "decayed": False, "weight_decay": 0.0, "lr_factor": plain_factor},
    ]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum; one-dimensional tensors skip weight decay and adaptation.

    u = g + wd p;  u <- u eta ||p||/||u|| (factor 1 when a norm is 0);  mu <- momentum mu + u;  p <- p - lr mu.
    Source: arXiv 1708.03888; Barlow Twins, arXiv 2103.03230, public code.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; parameters without a gradient are left alone."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim != 1:
                    update = update.add(p, alpha=group["weight_decay"])
                    p_norm, u_norm = norms([p, update])
                    ratio = group["eta"] * p_norm / u_norm
                    factor = torch.where((p_norm > 0) & (u_norm > 0), ratio, torch.ones_like(ratio))
                    local(update).mul_(factor)
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(update)
                p.add_(state["momentum"], alpha=-group["lr"])


def make_optimizer(name: str, groups: list[dict[str, Any]], *, fused: bool | None = None) -> torch.optim.Optimizer:
    """AdamW (betas 0.9/0.999, eps 1e-8) or LARS over parameter groups; schedules write the rates.

    Raises ValueError on another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=fused)
    if name == "lars":
        return LARS(groups)
    raise ValueError(f"unknown optimiser {name!r}; use adamw or lars")


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, mode: str = "per_param") -> Tensor:
    """Scale gradients in place by min(1, limit/(norm + 1e-6)) and return the total norm before clipping.

    mode "per_param" uses each tensor's own norm (the DINO family), "global" one norm over all; limit 0 only measures.
    Raises ValueError on another mode. Source: DINO, arXiv 2104.14294, public code.
    """
    if mode not in ("per_param", "global"):
        raise ValueError(f"unknown clip_mode {mode!r}; use per_param or global")
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    each = norms(grads)
    total = torch.linalg.vector_norm(each)
    if limit > 0:
        factors = (limit / ((each if mode == "per_param" else total.expand(len(grads))) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(grad) for grad in grads], list(factors.unbind()))
    return total
