"""An exported run loads where this package is absent, gives the same features, and comes back byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from frozen import SPEC, save_tiny_run

from evaluate import importer
from pretrain import export
from pretrain.backbones import Backbone
from pretrain.checkpoint import load_backbone, network_digest, save_run
from pretrain.heads import build_head

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


def run_of(tmp_path: Path, **changes: Any) -> Path:
    """A run of a backbone with changes to the tiny one, all its weights random."""
    directory = save_tiny_run(tmp_path / "runs")
    info = json.loads((directory / "run.json").read_text())
    backbone = Backbone(**SPEC | changes)
    random = torch.Generator().manual_seed(4)
    for value in backbone.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=random) * 0.3 + (value.ndim == 1))
    info |= {"backbone": backbone.spec}
    save_run(directory, (backbone, build_head(info["head"])), None, info)
    return directory


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 0.1},
    "registers": {"reg_tokens": 2},
    "registers, layer scale": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
    "no qkv bias": {"qkv_bias": False},
    "average": {"pool": "avg"},
}


@pytest.mark.parametrize("form", ["timm", "hf"])
@pytest.mark.parametrize("name", VARIANTS)
def test_export_and_import_give_byte_identical_features(name, form, tmp_path):
    run = run_of(tmp_path, **VARIANTS[name])
    if form == "hf" and name == "average":
        with pytest.raises(ValueError, match="no class for a backbone with no class token; export it with --to torch"):
            export.export(run, form, tmp_path / "out")
        assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == [tmp_path / "runs"]
        return
    before, after = load_backbone(run), importer.load(export.export(run, form, tmp_path / "out"))
    wide = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))
    for images in (IMAGES, wide) if form == "timm" else (IMAGES,):
        for mine, theirs in zip(before.blocks(images, 2), after.blocks(images, 2), strict=True):
            assert torch.equal(mine.cls, theirs.cls) and torch.equal(mine.patches, theirs.patches)
    assert torch.equal(before(IMAGES), after(IMAGES)) and torch.equal(before.keys(IMAGES), after.keys(IMAGES))
    view = [(b.image_size, b.resize, b.mean, b.std) for b in (before, after)]
    assert view[0] == view[1] == (16, 18, before.mean, before.std)


ALONE = """
import sys, json
sys.modules["pretrain"] = sys.modules["evaluate"] = None  # absent
import torch, timm
images = torch.load(sys.argv[2], weights_only=True)
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
with torch.inference_mode():
    torch.save([model(images), model.forward_features(images)], sys.argv[3])
print(json.dumps([config["input_size"], config["mean"], config["crop_pct"], config["interpolation"]]))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["plain", "average"])
def test_the_folder_loads_in_plain_timm_without_this_package(name, tmp_path):
    run = run_of(tmp_path, **VARIANTS[name])
    folder = export.export(run, "timm", tmp_path / "out")
    torch.save(IMAGES, tmp_path / "images.pt")
    command = [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "images.pt"), str(tmp_path / "found.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    feature, tokens = torch.load(tmp_path / "found.pt", weights_only=True)
    ours = load_backbone(run)
    torch.testing.assert_close(feature, ours(IMAGES), **NEAR)
    torch.testing.assert_close(tokens, ours.vit.forward_features(IMAGES), **NEAR)
    assert json.loads(done.stdout.splitlines()[-1]) == [[3, 16, 16], list(ours.mean), 16 / 18, "bicubic"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["plain", "layer scale", "registers", "no qkv bias"])
def test_the_folder_loads_in_plain_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    run = run_of(tmp_path, **VARIANTS[name])
    folder = export.export(run, "hf", tmp_path / "out")
    options = {"add_pooling_layer": False} if name in ("plain", "no qkv bias") else {}
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if key in info)
    with torch.inference_mode():
        found = model.eval()(IMAGES).last_hidden_state
    ours = load_backbone(run).features(IMAGES)
    torch.testing.assert_close(found[:, 0], ours.cls, **NEAR)
    torch.testing.assert_close(found[:, -4:], ours.patches.flatten(1, 2), **NEAR)


def test_torchscript_gives_the_same_features_of_any_stem_and_batch(tmp_path):
    run = run_of(tmp_path, stem="conv")
    for form, word in (("timm", "stem 'conv'"), ("hf", "a convolutional stem")):
        with pytest.raises(ValueError, match=f"with {word}; export it with --to torchscript or --to onnx"):
            export.export(run, form, tmp_path / "out")
    model = torch.jit.load(export.export(run, "torchscript", tmp_path / "out") / "model.pt")
    ours = load_backbone(run).features(IMAGES)
    for found, expected in zip(model(IMAGES), (ours.cls, ours.patches), strict=True):
        torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"stem": "conv"}], ids=["patch", "conv"])
def test_onnx_gives_the_same_features_in_another_runtime(changes, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = run_of(tmp_path, **changes)
    folder = export.export(run, "onnx", tmp_path / "out")
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["feature", "patches"]
    ours = load_backbone(run).features(IMAGES)
    for count in (1, 3):
        found = session.run(None, {"images": IMAGES[:count].numpy()})
        for array, expected in zip(found, (ours.cls, ours.patches), strict=True):
            torch.testing.assert_close(torch.from_numpy(array), expected[:count], rtol=0, atol=1e-4)


# ---- the card, and what leaves the machine


def test_the_card_says_data_recipe_measured_table_and_licence(tmp_path):
    run = save_tiny_run(tmp_path / "runs", config={"optim": {"lr": 0.1}}, label="a | label")
    digest = network_digest(load_backbone(run))
    row = {"weights_digest": digest, "task": "knn", "dataset": "folder", "metric": "top1", "main": True}
    row |= {"value": 0.5, "low": 0.4, "high": 0.6, "scale": "fraction", "fingerprint": "abc"}
    others = [row | {"weights_digest": "another", "value": 0.9}, row | {"main": False, "value": 0.8}]
    (tmp_path / "leaderboard.json").write_text(json.dumps({"scores": [row, *others]}))
    folder = export.export(run, "timm", tmp_path / "out", licence="cc-by-4.0", results=tmp_path)
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "timm"
    assert front["tags"][2] == json.loads((run / "run.json").read_text())["objective"] == "bits_fixed"
    for words in ("| knn | folder | top1 | 50.00 (40.00–60.00) | abc |", "| name | folder |", "| images | 36 |",
                  "| images\\_seen | 108 |", '| optim | {"lr": 0.1} |', "(a \\| label)", "local-dir:out"):  # fmt: skip
        assert words in card
    assert "90.00" not in card and "80.00" not in card
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-4.0"
    bare = export.export(run, "timm", tmp_path / "bare", results=tmp_path / "nowhere")
    assert "have no record" in (bare / "README.md").read_text() and "Not stated" in (bare / "README.md").read_text()


def test_the_command_writes_once_and_pushes_only_when_asked(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    pushed: list[Any] = []

    class Hub:
        def create_repo(self, name: str, exist_ok: bool) -> None:
            pushed.append(name)

        def upload_folder(self, folder_path: Path, repo_id: str) -> None:
            pushed.append(sorted(os.listdir(folder_path)))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.chdir(tmp_path)
    save_tiny_run(Path("runs"), name="mine")
    command = ["export", "runs/mine", "--to", "timm"]
    monkeypatch.setattr(sys, "argv", command)
    export.main()
    assert "wrote exports/mine-timm: README.md, config.json, model.safetensors" in capsys.readouterr().out
    assert pushed == []
    with pytest.raises(SystemExit) as stop:
        export.main()
    assert stop.value.code == 1 and "exports/mine-timm exists; remove it or" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--output", "again", "--push-to-hub", "me/mine"])
    export.main()
    assert pushed == ["me/mine", ["README.md", "config.json", "model.safetensors"]]
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no route")))
    monkeypatch.setattr(sys, "argv", [*command, "--output", "third", "--push-to-hub", "me/mine"])
    with pytest.raises(SystemExit):
        export.main()
    assert "cannot push to me/mine (no route); the folder third is complete" in capsys.readouterr().err
