"""Schedules, clipping and LARS against reference values; parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_values import close, load
from torch import nn

from pretrain.backbones import Backbone
from pretrain.optim import LARS, clip_gradients, make_optimizer, parameter_groups
from pretrain.schedules import cosine_schedule, lars_schedule, linear_then_constant

SCHEDULES, OPTIM = load("schedules.npz"), load("optim.npz")


@pytest.mark.parametrize(
    ("key", "base", "final", "warmup"),
    [("lr", 5e-4, 1e-6, 3), ("lr_bits", 5e-4, 5e-5, 3), ("wd", 0.04, 0.4, 0), ("mom", 0.996, 1.0, 0)],
)
def test_cosine_schedules_equal_the_reference(key: str, base: float, final: float, warmup: int) -> None:
    ours = cosine_schedule(base, final, SCHEDULES["epochs"], SCHEDULES["niter_per_ep"], warmup)
    close(torch.from_numpy(ours), SCHEDULES[key], 1e-12)


def test_lars_schedule_and_teacher_temperature_equal_the_reference() -> None:
    n = SCHEDULES["niter_per_ep"]
    close(
        torch.from_numpy(lars_schedule(0.6 * 2048 / 256, SCHEDULES["epochs"] + 10, n, 10)), SCHEDULES["lars_lr"], 1e-12
    )
    close(torch.from_numpy(linear_then_constant(0.04, 0.07, 4, SCHEDULES["epochs"])), SCHEDULES["ttemp"], 1e-12)


def test_a_warmup_starts_at_zero_and_the_cosine_never_reaches_its_end() -> None:
    schedule = cosine_schedule(1.0, 0.1, 4, 10, 1)
    assert schedule[0] == 0 and schedule[9] == schedule[10] == 1.0 and schedule[-1] > 0.1


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    for schedule in (lambda: cosine_schedule(1, 0, 5, 10, 6), lambda: lars_schedule(1, 5, 10, 6)):
        with pytest.raises(ValueError, match="warmup_epochs=6"):
            schedule()


@pytest.mark.parametrize("limit", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("mode", ["per_param", "global"])
def test_clipping_equals_the_reference(limit: float, mode: str) -> None:
    tensors = [nn.Parameter(torch.zeros_like(OPTIM[f"clip_in_g{i}"])) for i in range(3)]
    for i, tensor in enumerate(tensors):
        tensor.grad = OPTIM[f"clip_in_g{i}"].clone()
    close(clip_gradients(tensors, limit, mode), OPTIM["clip_total_norm"])
    for i, tensor in enumerate(tensors):
        close(tensor.grad, OPTIM[f"clip{limit}_{mode.replace('_', '')}_g{i}"])


def test_clipping_with_limit_zero_only_measures() -> None:
    tensor = nn.Parameter(torch.zeros(3))
    tensor.grad = torch.tensor([3.0, 4.0, 0.0])
    assert clip_gradients([tensor], 0.0) == 5.0 and tensor.grad.tolist() == [3.0, 4.0, 0.0]


def test_lars_equals_the_reference_over_three_steps() -> None:
    w, b = nn.Parameter(OPTIM["lars_w0"].clone()), nn.Parameter(OPTIM["lars_b0"].clone())
    lars = LARS(
        [w, b], OPTIM["lars_lr"], weight_decay=OPTIM["lars_wd"], momentum=OPTIM["lars_momentum"], eta=OPTIM["lars_eta"]
    )
    for step in range(3):
        w.grad, b.grad = OPTIM[f"lars_gw{step}"], OPTIM[f"lars_gb{step}"]
        lars.step()
        close(w, OPTIM[f"lars_w{step + 1}"])
        close(b, OPTIM[f"lars_b{step + 1}"])


def test_lars_leaves_zero_tensors_finite() -> None:
    w = nn.Parameter(torch.zeros(3, 3))
    w.grad = torch.zeros(3, 3)
    LARS([w], lr=1.0).step()
    assert torch.equal(w, torch.zeros(3, 3))


@pytest.mark.parametrize("tokens", [True, False])
def test_biases_and_norms_are_not_decayed_and_tokens_by_switch(tokens: bool) -> None:
    backbone = Backbone("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    decayed, plain = parameter_groups(backbone, decay_tokens=tokens)
    names = {id(p): name for name, p in backbone.named_parameters()}
    assert all(p.ndim > 1 for p in decayed["params"])
    kept = {names[id(p)] for p in plain["params"] if p.ndim > 1}
    assert kept == (set() if tokens else {"vit.cls_token", "vit.pos_embed"})
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_adamw_has_the_published_constants_and_other_names_are_refused() -> None:
    optimizer = make_optimizer("adamw", parameter_groups(nn.Linear(2, 2)))
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8
    with pytest.raises(ValueError, match="use adamw or lars"):
        make_optimizer("sgd", [])


def test_schedules_have_one_value_a_step() -> None:
    assert cosine_schedule(1, 0, 7, 3, 2).shape == (21,) and lars_schedule(1, 12, 3).dtype == np.float64
