"""Projection heads against reference outputs, their initial scale, and synchronised batch norm."""

from __future__ import annotations

import math

import pytest
import torch
from golden_values import close, load
from processes import run_processes
from torch import Tensor, nn

from pretrain.heads import MLPHead, PrototypeHead, SyncBatchNorm, build_head
from pretrain.objectives.bits import binary_agreement

GOLDEN = load("heads.npz")


def reference_head(normalize: bool) -> MLPHead:
    head = MLPHead(
        GOLDEN["in_dim"], hidden=GOLDEN["hidden_dim"], out=GOLDEN["bottleneck_dim"], normalize=normalize
    ).double()
    layers = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            layer.weight.copy_(GOLDEN[f"w{i}"])
            layer.bias.copy_(GOLDEN[f"b{i}"])
    return head


def test_bits_and_simdino_heads_equal_the_reference() -> None:
    close(reference_head(False)(GOLDEN["x"]), GOLDEN["out_mlp"])
    close(reference_head(True)(GOLDEN["x"]), GOLDEN["out_simdino"])


def test_dino_head_equals_the_reference() -> None:
    head = PrototypeHead(
        GOLDEN["in_dim"], hidden=GOLDEN["hidden_dim"], bottleneck=GOLDEN["bottleneck_dim"], prototypes=GOLDEN["out_dim"]
    ).double()
    head.bottleneck = reference_head(True)
    with torch.no_grad():
        head.last_direction.copy_(GOLDEN["last_v"])
        head.last_scale.copy_(GOLDEN["last_g"])
    close(head(GOLDEN["x"]), GOLDEN["out_dino"])


def test_the_paper_head_starts_at_its_published_size_and_scale() -> None:
    torch.manual_seed(0)
    head = MLPHead(768)
    assert sum(p.numel() for p in head.parameters()) == 6_295_808
    logits = head(torch.randn(64, 768))
    assert logits.std().item() == pytest.approx(0.14, abs=0.03)
    targets = torch.randn(2, 32, 256)
    assert binary_agreement(logits.view(2, 32, 256), targets).item() == pytest.approx(math.log(2), abs=0.02)


def test_fan_in_weights_give_narrow_heads_logits_of_order_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    assert MLPHead(64, hidden=512, out=128)(x).std() < 0.02
    assert 0.1 < MLPHead(64, hidden=512, out=128, init="fan_in")(x).std() < 1.0


@pytest.mark.parametrize("kind", ["mlp", "prototypes"])
def test_a_redraw_changes_all_weights_and_repeats_with_its_seed(kind: str) -> None:
    small = {"prototypes": 32} if kind == "prototypes" else {}
    head = build_head({"kind": kind, "dim": 8, "hidden": 16, "bn": True, **small})
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.redraw(torch.Generator().manual_seed(1))
    first = {name: value.clone() for name, value in head.state_dict().items()}
    assert all(
        not torch.equal(before[name], first[name]) for name in before if before[name].ndim == 2 and "scale" not in name
    )
    head.redraw(torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name], value) for name, value in head.state_dict().items())


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match="known: mlp, prototypes"):
        build_head({"kind": "transformer", "dim": 8})


def normalise_half(rank: int, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    layer = SyncBatchNorm(x.shape[1]).double()
    mine = x.chunk(2)[rank].clone().requires_grad_()
    out = layer(mine)
    (out * weights.chunk(2)[rank]).sum().backward()
    return {"out": out.detach(), "grad": mine.grad, "mean": layer.running_mean, "var": layer.running_var}


def test_batch_norm_over_two_processes_equals_one_with_all_rows() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    parts = run_processes(2, normalise_half, x, weights)
    whole, layer = x.clone().requires_grad_(), nn.BatchNorm1d(5).double()
    (layer(whole) * weights).sum().backward()
    close(torch.cat([part["out"] for part in parts]), layer(whole), 1e-9)
    close(torch.cat([part["grad"] for part in parts]), whole.grad, 1e-9)
    fresh = nn.BatchNorm1d(5).double()
    fresh(x)
    close(parts[0]["mean"], fresh.running_mean, 1e-9)
    close(parts[1]["var"], fresh.running_var, 1e-9)
