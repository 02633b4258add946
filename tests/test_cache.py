"""The cache tool: says what is stored for whom, and removes nothing but that, nothing in use, nothing elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from frozen import SPEC

from evaluate import cache
from evaluate.cache import Hold, clear, entries, hold
from evaluate.features import Store
from evaluate.partial import Partial
from pretrain.backbones import Backbone
from pretrain.datasets import ImageFolder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(**SPEC).eval().requires_grad_(False)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cache", *arguments])
    cache.main()


def stored(root: Path, backbone: Backbone, images: Path, label: str, **options) -> Path:
    """Features of the val split of `images`; their folder."""
    store = Store(root, workers=0, quiet=True, **options)
    store.label = label
    return store.get(backbone, ImageFolder(images, "val", name="folder")).shards[0].parent


def plain_folder(root: Path, key: str, **meta) -> Path:
    """A folder as the store leaves it, of 100 bytes beside its description."""
    folder = root / "features" / (key * 24)
    folder.mkdir(parents=True)
    (folder / "000000000.npy").write_bytes(bytes(100))
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_the_list_names_checkpoint_and_dataset_with_the_size_on_disk(tmp_path, backbone, images, monkeypatch, capsys):
    folder = stored(tmp_path, backbone, images, "runs/mine")
    run(monkeypatch, "--cache", str(tmp_path))
    line, total = capsys.readouterr().out.splitlines()[1:]
    assert "runs/mine, folder" in line and folder.name in line
    expected = sum(path.stat().st_size for path in folder.iterdir())
    assert f"{expected / 1000:.1f} kB" in line and total.endswith("in 1 sets of features")


def test_results_of_an_interrupted_task_are_listed_by_name(tmp_path, backbone, monkeypatch, capsys):
    store = Store(tmp_path, workers=0, quiet=True)
    store.label = "runs/mine"
    Partial(store, backbone, "objects", {"a": 1}, "scenes").add("0", [])
    run(monkeypatch, "--cache", str(store.root.parent))
    assert "runs/mine, scenes (objects)" in capsys.readouterr().out


def test_an_empty_cache_is_said_to_be_empty(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--cache", str(tmp_path / "none"))
    assert "no features are stored" in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_damaged_descriptions_and_odd_names_neither_stop_nor_drive_the_list(tmp_path, monkeypatch, capsys):
    (plain_folder(tmp_path, "a") / "meta.json").write_text("{")
    (plain_folder(tmp_path, "b") / "meta.json").write_text("[]")
    plain_folder(tmp_path, "c", checkpoint="x\x1b[2J\nfake", dataset_name="d")
    run(monkeypatch, "--cache", str(tmp_path))
    shown = capsys.readouterr().out
    assert shown.count("weights unknown, images unknown") == 2 and "\x1b" not in shown and "x [2J fake, d" in shown


def test_clear_all_removes_features_and_the_next_evaluation_computes_them_again(tmp_path, backbone, images):
    folder = stored(tmp_path, backbone, images, "")
    assert clear(entries(tmp_path)[0]) and not folder.exists()
    assert stored(tmp_path, backbone, images, "") == folder


def test_only_the_named_key_or_what_is_old_goes(tmp_path, monkeypatch, capsys):
    young, old, other = (plain_folder(tmp_path, key) for key in "abc")
    for path in (*old.iterdir(), *other.iterdir()):
        os.utime(path, (time.time() - 40 * cache.DAY,) * 2)
    run(monkeypatch, "--cache", str(tmp_path), "--clear", other.name)
    assert young.exists() and old.exists() and not other.exists()
    run(monkeypatch, "--cache", str(tmp_path), "--clear", "older-than=39.5")
    assert young.exists() and not old.exists()
    assert "removed 1 of 2 sets of features" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("what", ["everything", "older-than=soon", "..", "a" * 23, "a" * 24, ""])
def test_a_word_that_names_nothing_is_refused_in_one_line(tmp_path, monkeypatch, what):
    kept = plain_folder(tmp_path, "b")
    with pytest.raises(SystemExit, match=r"^error: .*(older-than=DAYS|older-than=30)"):
        run(monkeypatch, "--cache", str(tmp_path), "--clear", what)
    assert (kept / "000000000.npy").exists()


def test_nothing_outside_the_cache_and_nobody_elses_file_is_removed(tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "000000000.npy").write_bytes(b"x")
    root = tmp_path / "cache"
    folder = plain_folder(root, "a")
    (folder / "000004096.npy").symlink_to(outside / "000000000.npy")
    (folder / "notes.txt").write_text("mine")
    (root / "features" / ("b" * 24)).symlink_to(outside)
    (root / "linked").symlink_to(outside.parent)
    (root / "features" / "thesis").mkdir()
    found = entries(root)
    assert [entry.key for entry in found] == ["a" * 24] and clear(found[0])
    assert (outside / "000000000.npy").read_bytes() == b"x"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert (root / "features" / "thesis").exists() and (root / "features" / ("b" * 24)).is_symlink()


def test_features_that_a_task_holds_stay_until_it_is_done(tmp_path, backbone, images, monkeypatch, capsys):
    store = Store(tmp_path, workers=0, quiet=True)
    held = store.get(backbone, ImageFolder(images, "val"))
    run(monkeypatch, "--cache", str(tmp_path), "--clear", "all")
    assert "an evaluation uses it" in capsys.readouterr().err and len(held.cls()) == 18
    del held
    run(monkeypatch, "--cache", str(tmp_path), "--clear", "all")
    assert "removed 1 of 1" in capsys.readouterr().out and not entries(tmp_path)


def test_features_are_safe_while_they_are_computed(tmp_path, backbone, images, monkeypatch):
    tried = []
    original = Store.tokens

    def tokens(*arguments):
        tried.append(clear(entries(tmp_path)[0]))
        return original(*arguments)

    monkeypatch.setattr(Store, "tokens", tokens)
    stored(tmp_path, backbone, images, "")
    assert tried == [False]


def test_a_cache_that_cannot_be_locked_is_still_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "no locks here")))
    assert hold(tmp_path / "x") is None


def test_a_folder_cleared_between_opening_and_locking_is_made_anew(tmp_path, monkeypatch):
    original, times = cache.fcntl.flock, []

    def late(file, how):
        if not times:
            (tmp_path / "x" / ".lock").unlink()
            (tmp_path / "x").rmdir()
        times.append(how)
        original(file, how)

    monkeypatch.setattr(cache.fcntl, "flock", late)
    lock = Hold(tmp_path / "x")
    assert len(times) == 2 and (tmp_path / "x" / ".lock").exists()
    lock.release()


def test_make_shows_and_clears_the_cache():
    def recipe(*arguments: str) -> str:
        environment = {"PATH": os.environ["PATH"]}
        return subprocess.run(
            ["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        ).stdout

    assert recipe("cache").endswith("-m evaluate.cache \n")
    assert recipe("clean-cache").endswith("-m evaluate.cache --clear all\n")
    assert recipe("clean-cache", "ARGS=older-than=30").endswith("-m evaluate.cache --clear older-than=30\n")
