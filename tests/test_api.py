"""The four functions of a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen import save_tiny_run
from quick_tasks import TASKS

from evaluate import importer, run
from evaluate.api import compare, evaluate, extract, load
from evaluate.evaluator import Item
from evaluate.features import Store
from pretrain.datasets import ImageFolder, Images

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs, and suites of two tasks that cost nothing."""
    for number in range(2):
        save_tiny_run(tmp_path / "runs", name=f"run{number}", seed=number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "as_entries", lambda suite: [{"task": name, "data": "folder"} for name in TASKS])
    monkeypatch.setattr(run, "as_item", lambda task, data: Item(TASKS[task](), data))
    return tmp_path


def test_features_are_those_of_the_store_however_the_images_are_named(place: Path, images: Path) -> None:
    model = load("run0")
    assert model.record["name"] == "run0" and model.backbone.dim == 16 and model.head is not None
    reader = ImageFolder(images, "val", name="folder")
    expected = Store(place / "other", workers=0, quiet=True).get(importer.load("run0"), reader)
    for images_given, options in ((reader, {}), ("folder", {"data_root": images}), (images / "val", {})):
        found = extract(model, images_given, **options)
        assert torch.equal(found.cls(), expected.cls()) and len(found.ids) == 18
    assert torch.equal(extract("run0", "folder", "train", data_root=images).cls()[:, 0], extract(
        model, Images(images / "train", name="x")).cls()[:, 0])  # fmt: skip
    with pytest.raises(ValueError, match="folder has no split 'validation'; it has train, test"):
        extract(model, "folder", "validation", data_root=images)
    with pytest.raises(ValueError, match="unknown data 'foldr'; did you mean 'folder'"):
        extract(model, "foldr", data_root=images)


def test_scores_and_comparison_come_as_tables(place: Path, images: Path) -> None:
    first = evaluate(["run0", Path("runs/run1")], suite="folder", data_root=images, workers=0)
    assert list(first["checkpoint"]) == ["run0"] * 2 + ["run1"] * 2 and list(first["task"]) == ["mean", "spread"] * 2
    expected = extract("run0", "folder", data_root=images).cls()[:, 0].mean().item()
    assert first["value"][0] == pytest.approx(expected) and first["note"][0] == ""
    again = evaluate("run0", suite="folder", data_root=images)
    assert again.equals(first[:2])
    table = compare("run0", "run1", samples=200)
    assert list(table["task"]) == ["mean", "spread"] and set(table["checkpoint"]) == {"run1"}
    np.testing.assert_allclose(table["difference"], first["value"][2:].to_numpy() - first["value"][:2].to_numpy())
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    assert set(table["verdict"]) <= {"better", "worse", "no difference shown"}


@pytest.mark.thorough
def test_what_cannot_be_done_is_said(place: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = evaluate("run0", suite="folder", data_root=place / "nowhere")
    assert table["value"].isna().all() and table["note"].str.startswith("skipped: ").all() and len(table) == 2
    with pytest.raises(ValueError, match="unknown suite 'foldr'; did you mean 'folder'"):
        evaluate("run0", suite="foldr")
    with pytest.raises(ValueError, match="unknown setting 'batchsize'; did you mean 'batch_size'"):
        evaluate("run0", suite="folder", batchsize=3)
    evaluate("run0", suite="folder", data_root=images)
    with pytest.raises(ValueError, match="no records of checkpoint 'run9'; nearest: run0"):
        compare("run0", "run9")


def test_both_packages_say_that_they_are_typed() -> None:
    import tomllib

    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("pretrain", "evaluate"):
        assert (ROOT / package / "py.typed").exists() and "py.typed" in shipped[package]


@pytest.mark.slow
def test_the_example_runs_as_it_is_printed(tmp_path: Path, images: Path) -> None:
    for number in range(2):
        save_tiny_run(tmp_path / "runs", name=f"run{number}", seed=number)
    command = [sys.executable, ROOT / "docs" / "example.py", "run0", "run1", "folder", images]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "run0: (18, 16) features of folder" in result.stdout and "linear_cached" in result.stdout
