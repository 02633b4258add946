"""Weights of other projects give here the features that their own code gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import pytest
import timm
import torch
from frozen import folder_data, save_tiny_run
from safetensors.torch import save_file
from torch import Tensor

from evaluate import importer
from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store
from evaluate.leaderboard.__main__ import rebuild
from evaluate.tasks.knn import KNN
from pretrain.checkpoint import CheckpointError

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


def tokens(vit: Any, images: Tensor = IMAGES) -> Tensor:
    """All tokens after the final norm of a timm network."""
    with torch.inference_mode():
        return vit.forward_features(images)


def ours(backbone: Any, images: Tensor = IMAGES) -> Tensor:
    """Class token and patch tokens of an imported one, (B, 1 + N, D)."""
    with torch.inference_mode():
        found = backbone.features(images)
    return torch.cat([found.cls[:, None], found.patches.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("layout", foreign.PLAIN)
def test_weights_named_as_in_other_projects_give_the_same_features(layout, tmp_path):
    net, decoy = foreign.network(1), foreign.network(2)
    path = foreign.write(tmp_path, foreign.PLAIN[layout](net.state_dict(), decoy.state_dict()))
    found = importer.open_checkpoint(f"{path}?heads=2")
    torch.testing.assert_close(ours(found.backbone), tokens(net), **NEAR)
    assert not found.backbone.training and found.record["kind"] == "foreign"
    assert (ours(found.backbone) - tokens(decoy)).abs().max() > 0.1


@pytest.mark.parametrize("layout", foreign.GATED)
def test_registers_layer_scale_and_gated_mlps_of_dinov2_give_the_same_features(layout, tmp_path):
    net = foreign.gated()
    path = foreign.write(tmp_path, foreign.GATED[layout](net.state_dict(), foreign.gated(2).state_dict()))
    found = importer.open_checkpoint(f"{path}?heads=2")
    expected = torch.cat([tokens(net)[:, :1], tokens(net)[:, 4:]], dim=1)
    torch.testing.assert_close(ours(found.backbone), expected, **NEAR)
    assert found.record["objective"] == "dinov2" and found.backbone.keys(IMAGES).shape == (3, 16, 2, 2)


def test_layer_scale_of_mmpretrain_and_ibot_is_found(tmp_path):
    net = foreign.network(init_values=1.0)
    gamma = foreign.renamed(net.state_dict(), (r"ls([12])\.gamma", r"gamma_\1"))
    for content in (foreign.mmpretrain(net.state_dict(), {}), gamma):
        backbone = importer.load(f"{foreign.write(tmp_path, content)}?heads=2")
        torch.testing.assert_close(ours(backbone), tokens(net), **NEAR)


def test_the_other_network_of_a_file_is_had_by_its_name(tmp_path):
    net, decoy = foreign.network(1), foreign.network(2)
    cases = {"dino": "student", "solo": "momentum_backbone", "moco": "momentum_encoder", "lightly": "student"}
    for layout, branch in cases.items():
        path = foreign.write(tmp_path, foreign.PLAIN[layout](net.state_dict(), decoy.state_dict()))
        torch.testing.assert_close(ours(importer.load(f"{path}@{branch}?heads=2")), tokens(decoy), **NEAR)
    with pytest.raises(
        CheckpointError, match="@nobody is none of its networks; add one of @state_dict.teacher_backbone.vit, "
    ):
        importer.load(f"{path}@nobody?heads=2")


# ---- the classes of real libraries


def test_torchvision_gives_the_same_features(tmp_path):
    from torchvision.models import VisionTransformer

    options: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 3}
    net = VisionTransformer(image_size=16, patch_size=8, **options).eval()
    torch.nn.init.normal_(net.class_token)
    backbone = importer.load(f"{foreign.write(tmp_path, net.state_dict())}?heads=2")
    net.heads = torch.nn.Identity()
    torch.testing.assert_close(ours(backbone)[:, 0], net(IMAGES), **NEAR)


def test_a_timm_folder_gives_the_features_and_the_view_of_timm(tmp_path):
    settings: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 8}
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **settings, init_values=0.1, qk_norm=True).eval()
    view = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "input_size": (3, 16, 16), "crop_pct": 0.8}
    timm.models.save_for_hf(net, tmp_path, model_args=settings, safe_serialization=True, data_config=view)
    found = importer.open_checkpoint(tmp_path)
    torch.testing.assert_close(ours(found.backbone), tokens(net), **NEAR)
    assert (found.backbone.image_size, found.backbone.resize) == (16, 20)
    assert found.backbone.mean == (0.5, 0.4, 0.3) and found.backbone.std == (0.2, 0.2, 0.2)


def transformers_models() -> dict[str, Any]:
    """Tiny models of transformers with weights drawn wide enough to show a difference."""
    t = pytest.importorskip("transformers")
    swiglu = TINY | {"use_swiglu_ffn": True}
    decoder = {f"decoder_{k}": v for k, v in TINY.items() if k.startswith(("hid", "num"))}
    mae = TINY | decoder | {"intermediate_size": 32, "mask_ratio": 0.0, "decoder_intermediate_size": 16}
    return {
        "vit": t.ViTModel(t.ViTConfig(**TINY, intermediate_size=32)),
        "classifier": t.ViTForImageClassification(t.ViTConfig(**TINY, intermediate_size=32, hidden_act="gelu_new")),
        "msn": t.ViTMSNModel(t.ViTMSNConfig(**TINY, intermediate_size=32)),
        "mae": t.ViTMAEForPreTraining(t.ViTMAEConfig(**mae)),
        "dinov2": t.Dinov2Model(t.Dinov2Config(**TINY)),
        "swiglu": t.Dinov2ForImageClassification(t.Dinov2Config(**swiglu)),
        "registers": t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**TINY, num_register_tokens=3)),
    }


@pytest.fixture(scope="module")
def hub_folders(tmp_path_factory) -> dict[str, tuple[Any, Path]]:
    """Models of transformers, each as it writes itself."""
    random, found = torch.Generator().manual_seed(5), {}
    for name, model in transformers_models().items():
        for value in model.parameters():
            value.data = torch.randn(value.shape, generator=random) * 0.3 + (value.ndim == 1)
        folder = tmp_path_factory.mktemp(name)
        model.eval().save_pretrained(folder)
        found[name] = (getattr(model, model.base_model_prefix, model), folder)
    return found


NAMES = ("vit", "classifier", "msn", "mae", "dinov2", "swiglu", "registers")


@pytest.mark.parametrize("name", NAMES)
def test_transformers_models_give_the_same_features_from_their_folder(name, hub_folders):
    model, folder = hub_folders[name]
    with torch.inference_mode():
        expected = model(IMAGES).last_hidden_state
    backbone = importer.load(folder)
    prefix = backbone.vit.num_prefix_tokens
    if name == "mae":  # its encoder shuffles the patches
        torch.testing.assert_close(ours(backbone)[:, 0], expected[:, 0], **NEAR)
    else:
        torch.testing.assert_close(ours(backbone), torch.cat([expected[:, :1], expected[:, prefix:]], 1), **NEAR)


@pytest.mark.parametrize("name", ("dinov2", "registers"))
def test_positions_of_other_sizes_are_resampled_as_transformers_does(name, hub_folders):
    model, folder = hub_folders[name]
    images = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model(images).last_hidden_state
    found = ours(importer.load(folder), images)
    torch.testing.assert_close(found[:, 0], expected[:, 0], **NEAR)
    torch.testing.assert_close(found[:, -15:], expected[:, -15:], **NEAR)


def test_names_of_modules_of_transformers_5_and_shards_are_read_too(hub_folders, tmp_path):
    model, folder = hub_folders["swiglu"]
    expected = ours(importer.load(folder))
    path = foreign.write(tmp_path, model.state_dict())
    torch.testing.assert_close(ours(importer.load(f"{path}?heads=2")), expected, **NEAR)
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(ours(importer.load(tmp_path / "parts")), expected, **NEAR)
    next((tmp_path / "parts").glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="lacks model-0000.*, which model.safetensors.index.json names"):
        importer.load(tmp_path / "parts")


def test_the_view_of_a_transformers_folder_comes_along(hub_folders, tmp_path):
    _, folder = hub_folders["vit"]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    about = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}
    about |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    backbone = importer.load(tmp_path)
    assert (backbone.image_size, backbone.resize, backbone.mean, backbone.std) == (16, 20, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.slow
def test_the_class_of_mmsegmentation_gives_the_same_features(tmp_path):
    backbones = pytest.importorskip("mmseg.models.backbones")
    options: dict[str, Any] = {"img_size": (16, 16), "patch_size": 8, "embed_dims": 16, "num_layers": 2, "num_heads": 2}
    net = backbones.VisionTransformer(**options, mlp_ratio=2, final_norm=True, norm_cfg={"type": "LN", "eps": 1e-6})
    torch.nn.init.normal_(net.cls_token)
    backbone = importer.load(f"{foreign.write(tmp_path, net.eval().state_dict())}?heads=2")
    with torch.inference_mode():
        expected = net(IMAGES)[-1]
    torch.testing.assert_close(ours(backbone)[:, 1:].transpose(1, 2).unflatten(2, (2, 2)), expected, **NEAR)


# ---- what the weights do not show


def test_dino_positions_of_other_sizes_follow_dino_and_can_be_told_otherwise(tmp_path):
    net = foreign.network().state_dict()
    path = foreign.write(tmp_path, net)
    grid = net["pos_embed"][:, 1:].reshape(1, 2, 2, 16).permute(0, 3, 1, 2)
    # facebookresearch/dino, vision_transformer.py, interpolate_pos_encoding, for 3 x 5 patches
    scale = ((3 + 0.1) / 2, (5 + 0.1) / 2)
    expected = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
    wide = torch.zeros(1, 3, 24, 40)
    for rule, same in (("dino", True), ("timm", False), ("bicubic", False)):
        vit = importer.load(f"{path}?heads=2&positions={rule}").vit
        patches = vit.patch_embed(wide)
        found = vit._pos_embed(patches)[:, 1:] - patches.flatten(1, 2)
        assert torch.allclose(found, expected, atol=1e-6) == same
    assert importer.load(f"{path}?heads=2").spec["positions"] == "dino"


def test_the_number_of_heads_is_asked_for_or_assumed_aloud(tmp_path):
    path = foreign.write(tmp_path, foreign.network().state_dict())
    with pytest.raises(CheckpointError, match=r"number of heads of a width of 16 is not in the file; add \?heads=N"):
        importer.load(path)
    with pytest.raises(CheckpointError, match="heads=3 does not divide the width 16"):
        importer.load(f"{path}?heads=3")
    wide = foreign.network(embed_dim=128, num_heads=2, depth=1)
    path = foreign.write(tmp_path, wide.state_dict())
    found = importer.open_checkpoint(path)
    torch.testing.assert_close(ours(found.backbone), tokens(wide), **NEAR)
    assert any("2 heads, 64 channels each (assumed" in note for note in found.notes)
    other = importer.open_checkpoint(f"{path}?heads=4")
    assert not any("assumed" in note and "heads" in note for note in other.notes)
    assert other.record["weights_digest"] != found.record["weights_digest"]


def test_size_and_normalisation_can_be_given(tmp_path):
    path = foreign.write(tmp_path, foreign.network().state_dict())
    backbone = importer.load(f"{path}?heads=2&size=32&resize=40&mean=0.5,0.5,0.5&std=1,1,1&eps=1e-5")
    assert (backbone.image_size, backbone.resize, backbone.mean, backbone.std) == (32, 40, (0.5,) * 3, (1.0,) * 3)
    assert backbone.vit.norm.eps == 1e-5 and backbone.vit.pos_embed.shape == (1, 5, 16)
    for query, says in (("head=2", "did you mean 'heads'"), ("heads=two", "give a number"), ("size=-1", "positive")):
        with pytest.raises(CheckpointError, match=says):
            importer.load(f"{path}?{query}")
    with pytest.raises(CheckpointError, match="options are for weights of other projects"):
        importer.load(f"{save_tiny_run(tmp_path)}?heads=2")


def test_safetensors_without_configuration_and_half_precision_are_read(tmp_path):
    net = foreign.network().half().float()
    save_file({name: value.half() for name, value in net.state_dict().items()}, tmp_path / "some.safetensors")
    found = importer.open_checkpoint(f"{tmp_path / 'some.safetensors'}?heads=2")
    torch.testing.assert_close(ours(found.backbone), tokens(net), **NEAR)
    assert "stored as float16, computed in float32" in found.notes
    assert {value.dtype for value in found.backbone.state_dict().values()} == {torch.float32}


# ---- in an evaluation


def test_the_twin_of_foreign_weights_has_their_architecture(tmp_path):
    name = f"{foreign.write(tmp_path, foreign.dinov2(foreign.gated().state_dict(), {}))}?heads=2"
    found = importer.baselines([name])
    assert found == {f"untrained:{name}": [name], f"pixels:{name}": [name]}
    first, twin = importer.load(name), importer.load(f"untrained:{name}")
    assert twin.spec == first.spec and not torch.equal(twin.vit.pos_embed, first.vit.pos_embed)
    assert importer.load(f"pixels:{name}").dim == 3 * 16 * 16
    assert importer.trained_on(importer.resolve(name)) == ""


def test_a_report_says_what_was_found_set_aside_and_assumed(tmp_path):
    net = foreign.network().state_dict()
    path = foreign.write(tmp_path, foreign.dino(net, net))
    report = "\n".join(importer.open_checkpoint(f"{path}?heads=2").report)
    for words in ("teacher.backbone", f"{len(net)} of {len(net)} tensors found", "student (", "ImageNet's mean"):
        assert words in report
    path = foreign.write(tmp_path, foreign.mae(net, net))
    assert "set aside, no part of the features: " in "\n".join(importer.open_checkpoint(f"{path}?heads=2").report)


def test_foreign_weights_are_evaluated_and_keep_a_row_of_their_own(tmp_path, images, capsys):
    names = []
    for seed in (1, 2):
        (tmp_path / f"set{seed}").mkdir()
        content = foreign.dino(foreign.network(seed).state_dict(), foreign.network(3).state_dict())
        names.append(f"{foreign.write(tmp_path / f'set{seed}', content)}?heads=2")
    data, store = folder_data(images), Store(tmp_path / "cache", workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda _: data)
    bench.evaluate({name: [Item(KNN(), "folder")] for name in [*names, *importer.baselines(names)]})
    assert bench.unfit == [] and len(bench.written) == 4
    assert "teacher.backbone" in capsys.readouterr().out, "the report is shown"
    text = rebuild(bench.root, tmp_path / "results", None)
    for name in ("set1/weights.pth?heads=2", "set2/weights.pth?heads=2", "untrained:vit-16x2p8-16px", "pixels:16px"):
        assert name in text
    assert any("ImageNet's mean" in note for note in bench.written[0].notes)
