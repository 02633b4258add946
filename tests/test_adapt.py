"""Adaptation: a run goes on elsewhere, is itself only read, and the adapted run says where it comes from."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny import NETWORK, compose, overrides, write_images

from evaluate import importer
from pretrain import adapt
from pretrain.checkpoint import CheckpointError, load_backbone, load_head, read_run, write_json
from pretrain.datasets import ImageError, ImageFolder
from pretrain.datasets.overlap import overlap
from pretrain.state import differences
from pretrain.train import train

FAST = ("trainer.batch_size=12", "trainer.workers=0", "trainer.curves=false", "quiet=true")
FILES = ("backbone.safetensors", "head.safetensors", "student.safetensors")


@pytest.fixture(scope="module")
def parents(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of each of four objectives."""
    runs = tmp_path_factory.mktemp("parents")
    for objective in ("bits_fixed", "bits_reset", "dino", "simdino"):
        train(compose(*overrides(images, objective, runs, f"name={objective}", "trainer.epochs=2")))
    return runs


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of another domain, smaller than the crops of the parents would like."""
    return write_images(tmp_path_factory.mktemp("target"), train=8, val=4, side=12, classes=2)


def words(parents: Path, target: Path, runs: Path, objective: str, *more: str) -> list[str]:
    own = [f"checkpoint={parents / objective}", "data=folder", f"data_root={target}", f"runs={runs}"]
    return [*own, *FAST, *more]


def go(*arguments: Any) -> Path:
    """Adapt and return the folder."""
    return train(adapt.configure(words(*arguments)))


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        f"{f.relative_to(folder)}": f"{hashlib.sha256(f.read_bytes()).hexdigest()} {f.stat().st_mtime_ns}"
        for f in files
    }


@pytest.mark.parametrize(
    "objective",
    ["bits_reset", "dino", *(pytest.param(o, marks=pytest.mark.slow) for o in ("bits_fixed", "simdino"))],
)
def test_zero_epochs_change_no_byte_and_the_parent_is_only_read(
    objective: str, parents: Path, target: Path, tmp_path: Path
) -> None:
    before = tree(parents / objective)
    same = go(parents, target, tmp_path, objective, "epochs=0")
    assert [(same / f).read_bytes() for f in FILES] == [(parents / objective / f).read_bytes() for f in FILES]
    moved = go(parents, target, tmp_path, objective, "epochs=2", "name=moved")
    assert [(moved / f).read_bytes() for f in FILES] != [(parents / objective / f).read_bytes() for f in FILES]
    assert tree(parents / objective) == before
    assert read_run(same)["finished"] and read_run(same)["images_seen"] == 0


def test_the_defaults_are_those_of_the_protocol(parents: Path, target: Path, tmp_path: Path) -> None:
    fixed, reset, dino = (
        adapt.configure(words(parents, target, tmp_path, name)) for name in ("bits_fixed", "bits_reset", "dino")
    )
    stored = read_run(parents / "bits_fixed")["config"]
    assert fixed.trainer.epochs == 10 and fixed.optim.warmup_epochs == 1 and fixed.trainer.keep_every == 1
    assert fixed.optim.lr == pytest.approx(stored["optim"]["lr"] / 10)
    assert fixed.optim.min_lr == pytest.approx(min(stored["optim"]["min_lr"], fixed.optim.lr * 12 / 256))
    assert not fixed.head_reset.at_start and fixed.init.head == "keep"
    assert reset.head_reset.at_start and reset.head_reset.every_epochs == 0
    assert dino.objective.loss.freeze_last_layer == 0
    same = ("views", "objective", "ema", "seed")
    now = OmegaConf.to_container(fixed, resolve=True)
    assert differences({key: stored[key] for key in same}, {key: now[key] for key in same}) == []  # type: ignore[index]
    assert now["backbone"]["drop_path"] == 0.1 and now["backbone"]["embed_dim"] == 16  # type: ignore[index,call-overload]
    other = adapt.configure(
        words(parents, target, tmp_path, "bits_reset", "head=keep", "epochs=3", "lr_factor=1", "optim.clip_grad=7")
    )
    assert not other.head_reset.at_start and other.trainer.epochs == 3 and other.optim.clip_grad == 7
    assert other.optim.lr == stored["optim"]["lr"]


def test_heads_are_kept_or_redrawn_once_before_the_first_step(parents: Path, target: Path, tmp_path: Path) -> None:
    still = ("epochs=1", "lr_factor=0", "ema={base: 1.0, final: 1.0}")
    kept = go(parents, target, tmp_path, "bits_fixed", *still)
    assert (kept / "head.safetensors").read_bytes() == (parents / "bits_fixed" / "head.safetensors").read_bytes()
    redrawn = go(parents, target, tmp_path, "bits_reset", *still)
    old, new = load_head(parents / "bits_reset"), load_head(redrawn)
    pairs = zip(old.parameters(), new.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    assert (redrawn / FILES[0]).read_bytes() == (parents / "bits_reset" / FILES[0]).read_bytes()


@pytest.mark.thorough
def test_an_adaptation_that_was_stopped_goes_on_byte_for_byte(parents: Path, target: Path, tmp_path: Path) -> None:
    whole = go(parents, target, tmp_path / "a", "bits_reset", "epochs=3")
    go(parents, target, tmp_path / "b", "bits_reset", "epochs=3", "trainer.stop_after_epoch=1")
    parts = go(parents, target, tmp_path / "b", "bits_reset", "epochs=3")
    assert [(whole / f).read_bytes() for f in FILES] == [(parts / f).read_bytes() for f in FILES]
    assert read_run(whole)["parent"] == read_run(parts)["parent"]
    assert sorted(path.name for path in (parts / "epochs").iterdir()) == ["001", "002", "003"]
    config = adapt.configure(words(parents, target, tmp_path / "b", "bits_reset", "epochs=3"))
    config.init.weights = "0" * 16  # as when the parent was trained anew
    with pytest.raises(CheckpointError, match=r"init.weights is '\w+' there, '0+' now"):
        train(config)


def test_the_adapted_run_and_its_record_name_the_parent(parents: Path, target: Path, tmp_path: Path) -> None:
    once = go(parents, target, tmp_path, "bits_fixed", "epochs=1")
    twice = train(
        adapt.configure([f"checkpoint={once}", *words(parents, target, tmp_path, "bits_fixed", "epochs=2")[1:]])
    )
    parent = read_run(twice)["parent"]
    weights = importer.describe(parents / "bits_fixed")["weights_digest"]
    assert parent["weights"] == importer.describe(once)["weights_digest"]
    assert (parent["name"], parent["data"], parent["epoch"]) == (once.name, "folder", 1)
    assert parent["parent"]["weights"] == weights and parent["parent"]["epoch"] == 2
    record = importer.describe(twice)
    assert record["parent"] == once.name and record["adapted_from"] == parent["weights"]
    assert record["data"] == record["source"] == "folder"
    rates = [read_run(run)["config"]["optim"]["lr"] for run in (parents / "bits_fixed", once, twice)]
    assert rates[1] == rates[2] == pytest.approx(rates[0] / 10)  # a second adaptation does not slow down again
    assert "adapted from bits_fixed-to-" in record["label"] and "2 epochs" in record["label"]
    kept = importer.describe(twice / "epochs" / "001")
    assert kept["parent"] == twice.name and kept["adapted_from"] == parent["weights"] and kept["epoch"] == 1


def test_a_backbone_without_a_head_begins_with_a_fresh_one(target: Path, tmp_path: Path) -> None:
    from evaluate.adapt import as_start

    config = compose("data=folder", NETWORK, "backbone.drop_path=0").backbone
    backbone = adapt.Backbone(**config)
    start = as_start(backbone, "foreign:x", tmp_path / "start")
    more = [f"objective.head={{hidden: 16, out: 8}}", "epochs=0"]  # noqa: F541
    run = train(
        adapt.configure(
            [f"checkpoint={start}", "data=folder", f"data_root={target}", f"runs={tmp_path}", "name=x", *FAST, *more]
        )
    )
    assert (run / FILES[0]).read_bytes() == (start / FILES[0]).read_bytes()
    assert read_run(run)["parent"]["name"] == "foreign:x" and read_run(run)["objective"] == "bits_reset"
    assert load_backbone(run).image_size == 16
    with pytest.raises(CheckpointError, match="holds no head: give head=fresh"):
        adapt.configure([f"checkpoint={start}", "data=folder", "head=keep"])


@pytest.mark.thorough
def test_another_objective_keeps_a_head_of_its_kind_and_refuses_one_of_another(
    parents: Path, target: Path, tmp_path: Path
) -> None:
    run = go(parents, target, tmp_path, "bits_fixed", "objective=simdino", "epochs=0")
    info = read_run(run)
    assert info["objective"] == "simdino" and info["head"]["normalize"] and info["head"]["out"] == 8
    assert (run / "head.safetensors").read_bytes() == (parents / "bits_fixed" / "head.safetensors").read_bytes()
    says = "objective 'dino' has a head of kind prototypes, .* holds a head of kind mlp: give head=fresh"
    with pytest.raises(CheckpointError, match=says):
        adapt.configure(words(parents, target, tmp_path, "bits_fixed", "objective=dino"))
    fresh = adapt.configure(words(parents, target, tmp_path, "bits_fixed", "objective=dino", "head=fresh"))
    assert fresh.init.head == "fresh" and fresh.objective.head.kind == "prototypes"


def test_a_trained_dino_goes_on_with_a_centre(parents: Path, target: Path, tmp_path: Path) -> None:
    from pretrain.checkpoint import resume_run

    run = go(parents, target, tmp_path, "dino", "epochs=0")
    found = resume_run(run)
    assert found is not None and found[0]["objective/center"].abs().sum() > 0


@pytest.mark.parametrize(("more", "says"), [
    (["checkpoint=nowhere"], "no run to adapt at 'nowhere'"),
    (["head=new"], "unknown head='new'; use auto, keep, redraw, fresh"),
    (["epochs=-1"], "epochs=-1 is no number from 0 on"),
    (["epoch=3"], "epoch"),
    (["now"], "'now' is no setting"),
])  # fmt: skip
def test_wrong_settings_are_named(
    more: list[str], says: str, parents: Path, target: Path, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as stopped:
        adapt.main([*words(parents, target, tmp_path, "bits_fixed"), *more])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and says in error and error.count("\n") == 1 and error.startswith("error: ")


def test_the_parent_is_never_the_folder_to_write_to(parents: Path, target: Path) -> None:
    before = tree(parents)
    for name in ("bits_fixed", "."):
        with pytest.raises(ValueError, match="would be written over"):
            go(parents, target, parents, "bits_fixed", f"name={name}", "overwrite=true")
    assert tree(parents) == before


def test_images_smaller_than_a_patch_are_refused_and_smaller_than_the_crop_enlarged(
    parents: Path, tmp_path: Path
) -> None:
    small = write_images(tmp_path / "small", train=8, val=4, side=4)
    with pytest.raises(ImageError, match=r"has a side of 4 pixels, less than one patch \(8\)"):
        go(parents, small, tmp_path, "bits_fixed")


def test_images_shared_with_the_evaluation_split_are_counted_by_content(
    parents: Path, tmp_path: Path, capsys: Any
) -> None:
    root = write_images(tmp_path / "shared", train=8, val=4)
    for i, place in enumerate(("class0/copy.png", "class2/again.png")):  # other names and classes, the same bytes
        shutil.copy(root / "val" / "class1" / f"{i:03d}.png", root / "train" / place)
    with Image.open(root / "val" / "class1" / "002.png") as image:  # the same size and another content
        Image.new("RGB", image.size).save(root / "train" / "class0" / "black.png")
    train_set, test_set = ImageFolder(root, "train"), ImageFolder(root, "val")
    assert [train_set.paths[i] for i in overlap(train_set, test_set)] == [
        "train/class0/copy.png",
        "train/class2/again.png",
    ]
    run = go(parents, root, tmp_path / "runs", "bits_fixed", "epochs=1")
    assert "warning: 2 of the 27 images of folder to train on are in its test split too" in capsys.readouterr().err
    assert read_run(run)["data"]["overlap"] == 2
    assert any("2 of the images trained on" in note for note in importer.open_checkpoint(run).notes)
    go(parents, root, tmp_path / "runs", "bits_fixed", "epochs=1", "check_overlap=false", "overwrite=true")
    assert "test split" not in capsys.readouterr().err


def test_a_damaged_parent_is_named(parents: Path, target: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parents / "bits_fixed", tmp_path / "parents" / "bits_fixed")
    write_json(copy / "run.json", {**read_run(copy), "schema": 99})
    with pytest.raises(CheckpointError, match="schema 99"):
        go(tmp_path / "parents", target, tmp_path, "bits_fixed")
