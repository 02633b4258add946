"""Files are data: nothing in a checkpoint is run, and what cannot be fully loaded is refused in one line."""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import foreign
import pytest
import timm
import torch
from frozen import save_tiny_run
from omegaconf import OmegaConf
from safetensors.torch import save_file

from evaluate import importer
from evaluate.layouts import files, hub
from pretrain.checkpoint import CheckpointError

NET = foreign.network().state_dict()
OLD = {"_use_new_zipfile_serialization": False}


def refused(name: object) -> str:
    """The one line that a checkpoint is refused with."""
    with pytest.raises(CheckpointError) as caught:
        importer.load(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["archive", "legacy", "plain pickle", "protocol 4", "tar"])
def test_a_pickle_that_would_create_a_file_does_not(how, tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"state_dict": NET, "callback": Touch(trace)}
    if how in ("archive", "legacy"):
        torch.save(content, path, **(OLD if how == "legacy" else {}))
    elif how == "tar":
        path = tmp_path / "weights.tar"
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=4 if how == "protocol 4" else 2))
    says = refused(path)
    assert "wants to run code when it is opened (" in says and "open" in says and "was not opened" in says
    assert not trace.exists()
    torch.load(path, weights_only=False) if how == "archive" else pickle.loads(pickle.dumps(content))
    assert trace.exists(), "the pickle would not have created the file anyway: the test proves nothing"


def test_what_training_programs_keep_beside_the_weights_is_no_code(tmp_path):
    import numpy as np

    settings = OmegaConf.create({"backbone": {"name": "vit", "sizes": [1, 2]}})
    content = {"state_dict": NET, "args": argparse.Namespace(lr=0.1), "hyper_parameters": {"cfg": settings}}
    content |= {"loss": np.float64(0.5), "history": np.ones(3), "epoch": 3, "order": OrderedDict(a=1)}
    for options in ({}, OLD):
        path = tmp_path / "weights.ckpt"
        torch.save(content, path, **options)
        contents = files.read(path)
        assert contents.facts["args.lr"] == 0.1 and contents.facts["epoch"] == 3
        assert torch.equal(contents.tensors["state_dict.cls_token"], NET["cls_token"])
        importer.load(f"{path}?heads=2")


@pytest.mark.parametrize("options", [{}, OLD], ids=["archive", "legacy"])
def test_a_truncated_file_is_said_to_be(options, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(NET, path, **options)
    whole = path.read_bytes()
    for length in (len(whole) - 9, len(whole) // 2, 200, 20, 3):
        path.write_bytes(whole[:length])
        assert "truncated" in refused(path), length
    path.write_bytes(b"")
    assert refused(path).endswith("is empty")
    path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    assert "no checkpoint" in refused(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert "Git LFS pointer" in refused(path)


def test_truncated_safetensors_are_said_to_be(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(dict(NET), path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, 100, 4):
        path.write_bytes(whole[:length])
        assert "truncated or no safetensors file" in refused(path)


def test_nothing_larger_than_the_file_is_allocated(tmp_path):
    class Empty:
        def __reduce__(self) -> Any:
            return torch.Tensor, (10**6, 10**6)

    path = tmp_path / "weights.pth"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for options in ({}, OLD):
        torch.save(NET | {"cls_token": torch.ones(1).expand(1, 1, 10**10)}, path, **options)
        assert "claims (1, 1, 10000000000), more than the file holds" in refused(path)
        torch.save(NET | {"cls_token": Empty()}, path, **options)
        assert "torch.Tensor" in refused(path)
    torch.save(NET, path, **OLD)
    path.write_bytes(
        path.read_bytes().replace(b"M\x10\x00Nt", b"J\xff\xff\xff\x7fNt").replace(b"K\x10Nt", b"J\xff\xff\xff\x7fNt")
    )
    assert "more memory than it holds" in refused(path)
    header = json.dumps({"cls_token": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    assert "truncated or no safetensors file" in refused(tmp_path / "a.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"


def test_a_compressed_archive_and_torchscript_are_refused(tmp_path):
    path = foreign.write(tmp_path, NET)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert "compressed archive" in refused(tmp_path / "z.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "s.pt"))
    assert "TorchScript, which is code" in refused(tmp_path / "s.pt")


# ---- what does not fit


def changed(tmp_path: Path, **tensors: Any) -> Path:
    """The weights with some replaced, or left out where None is given."""
    found = {name: value for name, value in (NET | tensors).items() if value is not None}
    return foreign.write(tmp_path, found)


def test_a_renamed_tensor_is_refused_with_both_names_and_the_option_that_takes_it(tmp_path):
    bias = NET["blocks.1.mlp.fc2.bias"]
    path = changed(tmp_path, **{"blocks.1.mlp.fc2.bias": None, "blocks.1.mlp.out.bias": bias})
    says = refused(f"{path}?heads=2")
    for words in (f"{len(NET) - 1} of {len(NET)} tensors found", "missing: blocks.1.mlp.fc2.bias",
                  "left over: blocks.1.mlp.out.bias", "add &accept=missing,left-over to the name"):  # fmt: skip
        assert words in says
    assert "left over" not in refused(f"{path}?heads=2&accept=left-over")
    found = importer.open_checkpoint(f"{path}?heads=2&accept=missing,left-over")
    assert any(note == "accepted with 1 tensors missing: blocks.1.mlp.fc2.bias" for note in found.notes)
    again = importer.open_checkpoint(f"{path}?heads=2&accept=missing,left-over")
    assert found.record["weights_digest"] == again.record["weights_digest"]
    assert torch.equal(found.backbone.vit.cls_token, NET["cls_token"])


@pytest.mark.parametrize(
    "tensors, says",
    [
        ({"blocks.1.mlp.fc2.weight": torch.ones(16, 31)}, r"fc2.weight is \(16, 31\), expected \(16, 32\)"),
        ({"norm.weight": None, "norm.bias": None}, "missing: norm.weight, norm.bias"),
        ({"blocks.0.norm1.weight": torch.full((16,), float("nan"))}, "holds values that are not finite"),
        ({"pos_embed": torch.ones(1, 8, 16)}, "8 positions in .* are no square grid"),
        ({"pos_embed": None}, "no learned or fixed position embeddings"),
        ({"patch_embed.proj.weight": torch.ones(16, 1, 8, 8)}, r"patch projection of \(16, 1, 8, 8\)"),
        ({"norm.weight": torch.ones(16, dtype=torch.int64)}, "norm.weight holds torch.int64"),
        ({"blocks.999999999.norm1.weight": torch.ones(16)}, "no blocks that belong to it"),
        ({"blocks.0.attn.relative_position_bias_table": torch.ones(4, 2)}, "left over: blocks.0.attn.relative_pos"),
        ({"patch_embed.proj.weight": None}, "no vision transformer of a known naming"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_in_one_line(tensors, says, tmp_path):
    import re

    assert re.search(says, refused(f"{changed(tmp_path, **tensors)}?heads=2"))


def test_an_archive_without_a_vision_transformer_is_refused(tmp_path):
    path = foreign.write(tmp_path, {"state_dict": {"conv1.weight": torch.ones(64, 3, 7, 7)}})
    assert "no vision transformer of a known naming" in refused(path) and "state_dict.conv1.weight" in refused(path)
    two = {"a": foreign.under("left.", NET), "b": foreign.under("right.", NET)}
    assert "it holds several of its networks; add one of @a.left, @b.right" in refused(foreign.write(tmp_path, two))


def folder(tmp_path: Path, config: Any) -> Path:
    """A folder with the weights and a configuration."""
    place = tmp_path / "folder"
    place.mkdir(exist_ok=True)
    save_file(dict(NET), place / "model.safetensors")
    (place / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return place


def test_a_configuration_cannot_do_more_than_describe_the_weights(tmp_path):
    timm_says: dict[str, Any] = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 16, 16]}}
    fits = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    importer.load(folder(tmp_path, timm_says | {"model_args": fits}))
    for key in ("checkpoint_path", "pretrained", "cache_dir"):
        says = refused(folder(tmp_path, timm_says | {"model_args": fits | {key: "/etc/passwd"}}))
        assert f"config.json sets '{key}' in model_args, which is unknown here" in says
    says = refused(folder(tmp_path, timm_says | {"model_args": fits | {"depth": 10**12}}))
    assert "speaks of 1000000000000 blocks, the file holds 2" in says
    assert "expected (32," in refused(folder(tmp_path, timm_says | {"model_args": fits | {"embed_dim": 32}}))
    assert "is damaged" in refused(folder(tmp_path, "{"))
    assert "unknown backbone 'resnet50'" in refused(folder(tmp_path, {"architecture": "resnet50"}))


def test_shards_outside_their_folder_are_not_read(tmp_path):
    place = folder(tmp_path, {})
    (place / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {name: "../outside.safetensors" for name in NET}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names a part outside its folder" in refused(place)
    (place / "model.safetensors.index.json").unlink()
    assert "holds no weights" in refused(place)


# ---- the network


def test_no_name_but_those_of_the_hub_uses_the_network(tmp_path, monkeypatch):
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "snapshot_download", forbidden)
    importer.load(save_tiny_run(tmp_path))
    importer.load(f"{foreign.write(tmp_path, NET)}?heads=2")
    refused("timm/vit_base_patch16_224")
    importer.resolve("hf:org/name")


def test_where_the_hub_is_out_of_reach_one_line_says_what_to_do(monkeypatch, tmp_path):
    def unreachable(*_: Any, **options: Any) -> str:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    says = refused("hf:org/name")
    assert "hf:org/name is not in the local cache and the hub cannot be reached (no route)" in says
    assert "hf download org/name --local-dir DIR" in says
    assert "hf download timm/vit_base_patch16_224.dino" in refused("timm:vit_base_patch16_224.dino")
    assert "unknown timm model 'vit_bass_patch16_224'; nearest: vit_base_patch16" in refused(
        "timm:vit_bass_patch16_224"
    )


def test_what_lies_in_the_cache_of_the_hub_needs_no_network(monkeypatch, tmp_path):
    settings: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 8}
    net = timm.create_model("vit_base_patch16_224", num_classes=0, **settings)
    commit = "0" * 40
    for repo in ("models--timm--vit_base_patch16_224.dino", "models--org--name"):
        place = tmp_path / repo / "snapshots" / commit
        timm.models.save_for_hf(net, place, model_args=settings, safe_serialization=True)
        (tmp_path / repo / "refs").mkdir()
        (tmp_path / repo / "refs" / "main").write_text(commit)
    real = hub.snapshot_download
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **options: real(repo, cache_dir=tmp_path, **options))
    found = importer.open_checkpoint("timm:vit_base_patch16_224.dino")
    assert found.record["name"] == "timm:vit_base_patch16_224.dino" and found.record["kind"] == "foreign"
    assert torch.equal(importer.load("hf:org/name").vit.pos_embed, net.pos_embed)
