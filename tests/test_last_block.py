"""The last block asked for the class token alone: the values and gradients of the whole block, or the whole block."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pretrain.backbones import Backbone
from pretrain.depth import follow_images
from pretrain.last_block import LastBlock

SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def small(**options) -> Backbone:
    """A backbone in float64 whose biases, layer scales and norms are drawn, so that a dropped one shows."""
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", **{**SMALL, **options}).double()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def value_and_gradients(backbone: Backbone, whole: bool) -> tuple[Tensor, list[Tensor]]:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    backbone.zero_grad()
    rows = backbone.vit(x) if whole else backbone(x)
    (rows * torch.linspace(-1, 1, rows.numel()).view_as(rows)).sum().backward()
    return rows.detach(), [parameter.grad.clone() for parameter in backbone.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 1},
        {"qkv_bias": False},
        {"reg_tokens": 4, "init_values": 0.1},
        {"scale_attn_norm": True, "scale_mlp_norm": True},
        {"stem": "conv", "num_heads": 1, "proj_bias": False},
        {"swiglu": True},
    ],
)
def test_value_and_gradients_are_those_of_the_whole_block(options: dict) -> None:
    backbone = small(**options)
    assert isinstance(backbone.vit.blocks[-1], LastBlock)
    rows, gradients = value_and_gradients(backbone, whole=False)
    wanted, wanted_gradients = value_and_gradients(backbone, whole=True)
    torch.testing.assert_close(rows, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"attn_drop_rate": 0.1}, {"pool": "avg"}, {"depth": 0}])
def test_what_needs_all_keys_or_tokens_keeps_the_whole_block(options: dict) -> None:
    backbone = small(**options).eval()
    assert not any(isinstance(block, LastBlock) for block in backbone.vit.blocks)
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    assert torch.equal(backbone(x), backbone.vit(x))


def test_the_last_block_alone_is_replaced_and_its_weights_keep_their_names() -> None:
    backbone = small()
    assert [isinstance(block, LastBlock) for block in backbone.vit.blocks] == [False, False, True]
    first, last = ([name for name, _ in backbone.vit.blocks[i].named_parameters()] for i in (0, -1))
    assert first == last
    twin = copy.deepcopy(backbone)  # as a teacher is made: of weights of its own
    torch.nn.init.zeros_(twin.vit.blocks[-1].attn.qkv.weight)
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    assert not torch.allclose(backbone(x), twin(x))


def test_half_precision_is_no_further_off_than_the_whole_block() -> None:
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", **SMALL, init="fan_in")
    x = torch.randn(8, 3, 32, 32)
    wanted = backbone.vit(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, whole = (forward(x).float() - wanted for forward in (backbone, backbone.vit))
    assert 0 < ours.abs().max() < 2 * whole.abs().max()


def test_stochastic_depth_drops_the_same_images() -> None:
    backbone = small(drop_path=0.5)
    rows = follow_images(backbone)
    backbone.train()
    x, found = torch.randn(6, 3, 32, 32, dtype=torch.double), []
    for forward in (backbone, backbone.vit):
        rows.begin(5, 0, 6, 6)
        found.append(forward(x))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found[0], backbone.eval()(x))
