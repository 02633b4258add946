"""Backbones: timm's own features, any input size, the keys of the last attention, clear refusals."""

from __future__ import annotations

import pytest
import timm
import torch

from pretrain.backbones import Backbone, preprocess

SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def small(**options) -> Backbone:
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", **{**SMALL, **options}).eval()


def test_features_equal_those_of_timm() -> None:
    ours = small()
    plain = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2
    ).eval()
    plain.load_state_dict(ours.vit.state_dict())
    x = torch.randn(2, 3, 32, 32)
    tokens = plain.forward_features(x)
    found = ours.features(x)
    assert torch.allclose(found.cls, tokens[:, 0], atol=1e-6) and torch.allclose(ours(x), plain(x), atol=1e-6)
    assert torch.allclose(found.patches.flatten(1, 2), tokens[:, 1:], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"stem": "conv"}, {"pool": "avg"}, {"reg_tokens": 4}])
def test_every_form_takes_any_size_and_gives_blocks_and_keys(options: dict) -> None:
    backbone = small(**options)
    for height, width in ((32, 32), (48, 24), (50, 41)):  # a remainder that fills no patch is left out
        x = torch.randn(2, 3, height, width)
        blocks = backbone.blocks(x, 3)
        grid = (height // 8, width // 8)
        assert [tuple(b.patches.shape) for b in blocks] == [(2, *grid, 32)] * 3 and blocks[0].cls.shape == (2, 32)
        assert backbone.keys(x).shape == (2, 32, *grid)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(backbone.features(x).cls, backbone(x), atol=1e-5)


def test_keys_are_the_middle_third_of_the_last_projection() -> None:
    backbone, x = small(), torch.randn(2, 3, 32, 32)
    tokens = backbone.vit.patch_embed(x)
    tokens = backbone.vit.norm_pre(backbone.vit.patch_drop(backbone.vit._pos_embed(tokens)))
    for block in backbone.vit.blocks[:-1]:
        tokens = block(tokens)
    last = backbone.vit.blocks[-1]
    weight, bias = last.attn.qkv.weight[32:64], last.attn.qkv.bias[32:64]
    keys = torch.nn.functional.linear(last.norm1(tokens), weight, bias)[:, 1:]
    assert torch.allclose(backbone.keys(x), keys.transpose(1, 2).reshape(2, 32, 4, 4), atol=1e-5)


def test_an_image_has_the_same_features_in_any_batch() -> None:
    backbone, x = small(stem="conv"), torch.randn(3, 3, 32, 32)
    backbone.train()
    assert torch.allclose(backbone(x)[1], backbone(x[1:2])[0], atol=1e-5), "group norm must not mix images"


def test_a_spec_rebuilds_the_architecture() -> None:
    first = small(stem="conv", pool="avg", init="fan_in")
    second = Backbone(**first.spec)
    assert {n: v.shape for n, v in first.state_dict().items()} == {n: v.shape for n, v in second.state_dict().items()}
    assert (second.patch_size, second.dim, second.depth, second.resize) == (8, 32, 3, 37)


def test_class_token_and_fan_in_follow_their_switches() -> None:
    assert small(cls_init="timm").vit.cls_token.std() < 1e-4 < 0.01 < small().vit.cls_token.std() < 0.03
    assert small(init="fan_in").vit.blocks[0].attn.qkv.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert small().vit.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "vit_tiny_patch16_22"}, "nearest timm names: vit_tiny_patch16_224"),
        ({"name": "resnet50"}, "unknown backbone 'resnet50'"),
        ({"image_size": 30}, "patch size 8 does not divide the image size 30; use an image size of 24 or 32"),
        ({"stem": "convolution"}, "unknown stem 'convolution'; use 'patch' or 'conv'"),
        ({"stem": "conv", "patch_size": 6, "image_size": 36}, "a power of two, got 6"),
        ({"init": "xavier"}, "use 'timm' or 'fan_in'"),
        ({"cls_init": "zero"}, "use 'reference' or 'timm'"),
        ({"colour": 3}, "colour"),
    ],
)
def test_what_cannot_be_built_is_said(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        Backbone(**{"name": "vit_tiny_patch16_224", **SMALL, **options})


def test_images_smaller_than_a_patch_and_too_many_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller than one patch"):
        small().features(torch.randn(1, 3, 7, 32))
    with pytest.raises(ValueError, match="last 4 blocks of a backbone of 3"):
        small().blocks(torch.randn(1, 3, 32, 32), 4)


def test_preprocessing_scales_and_normalises() -> None:
    x = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert torch.allclose(preprocess(x, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))
