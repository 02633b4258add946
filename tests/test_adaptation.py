"""The command that adapts and measures: what it plans, what it takes as done, and the whole of it on a tiny world."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from frozen import save_tiny_run
from omegaconf import OmegaConf
from tiny import compose, overrides, write_images

from evaluate import adapt, adaptation, everything, importer
from evaluate import run as evaluation
from evaluate.records import find, read_all
from pretrain.checkpoint import CheckpointError, read_run
from pretrain.cli import CONFIGS
from pretrain.train import train

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = OmegaConf.load(CONFIGS / "evaluate.yaml").adaptation


def saved_adapted(runs: Path, parent: Path, target: str, **info) -> Path:
    """A run with other random weights that says it was adapted from another."""
    origin = {"name": parent.name, "weights": importer.describe(parent)["weights_digest"], "data": "shapeworld"}
    facts = {"name": f"{parent.name}-to-{target}", "parent": origin, "data": {"name": target, "fingerprint": "none"}}
    return save_tiny_run(runs, seed=7, **facts | {"config": {"trainer": {"epochs": 4}}} | info)


def test_a_plan_measures_target_source_and_signals_before_after_and_between(tmp_path: Path):
    parent = save_tiny_run(tmp_path, name="p", data={"name": "shapeworld", "fingerprint": "none"})
    [pairing] = adaptation.pairings(["p"], ["shapeworld_style"], str(tmp_path))
    assert pairing.name == "p-to-shapeworld_style" and pairing.source == "shapeworld"
    folder = saved_adapted(tmp_path, parent, "shapeworld_style", step=30)
    for epoch, step in ((1, 10), (2, 20), (3, 30)):
        save_tiny_run(folder / "epochs", name=f"{epoch:03d}", seed=epoch, step=step)
    plan = adaptation.plan([(pairing, folder)], SETTINGS)
    places = {name: {(entry["task"], entry["data"]) for entry in own} for name, own in plan.items()}
    three = {"retrieval", "knn", "linear_cached"}
    own = {(t, d) for t in three for d in ("shapeworld", "shapeworld_style")} | {("domain_gap", "shapeworld_style")}
    assert places["p"] == places[str(folder)] == own
    kept = {(t, "shapeworld_style") for t in (*three, "domain_gap")}
    assert [places[str(folder / "epochs" / e)] for e in ("001", "002")] == [kept] * 2
    assert str(folder / "epochs" / "003") not in plan  # the run itself
    assert not adaptation.curves([f"untrained:{folder}"], SETTINGS, str(tmp_path))  # its twin was never adapted
    found = adaptation.curves([str(folder), str(parent)], SETTINGS, str(tmp_path))
    assert found.keys() == plan.keys() - {"p", str(folder)} | {str(parent)}
    assert {(entry["task"], entry["data"]) for entry in found[str(parent)]} == kept  # frozen, on the target
    assert str(parent) not in adaptation.curves([str(folder)], SETTINGS, str(tmp_path))


def test_targets_are_measured_by_their_own_suite_or_as_the_paper_does():
    def tasks(target: str) -> list[str]:
        return [entry["task"] for entry in adaptation.entries(target, SETTINGS.tasks)]

    assert tasks("birds525") == ["retrieval", "knn", "linear"]
    assert tasks("fashion_mnist") == [e["task"] for e in evaluation.load_suite("fashion_mnist")]
    more = [{"task": "dense_retrieval", "data": "camvid"}, {"task": "video", "data": "davis2017"}]
    own = [entry["task"] for entry in evaluation.load_suite("camvid")]
    found = [entry["task"] for entry in adaptation.entries("camvid", ["knn"], more)]
    assert found == [*own, "dense_retrieval"]  # of a suite asked for, what is on the target
    assert tasks("images") == ["retrieval", "knn", "linear_cached"]


def test_only_a_finished_adaptation_of_these_weights_and_length_counts_as_done(tmp_path: Path):
    parent = save_tiny_run(tmp_path, name="p", data={"name": "shapeworld", "fingerprint": "none"})
    [pairing] = adaptation.pairings(["p"], ["shapeworld_style"], str(tmp_path))
    folder = tmp_path / pairing.name
    assert not adaptation.is_adapted(folder, pairing, None)
    saved_adapted(tmp_path, parent, "shapeworld_style")
    assert adaptation.is_adapted(folder, pairing, None) and adaptation.is_adapted(folder, pairing, 4)
    assert not adaptation.is_adapted(folder, pairing, 5)
    assert not adaptation.is_adapted(folder, pairing, 4, ["trainer.batch_size=7"])
    assert not adaptation.is_adapted(folder, pairing, 4, images="another fingerprint")
    saved_adapted(tmp_path, parent, "shapeworld_style", finished=False)
    assert not adaptation.is_adapted(folder, pairing, 4)
    save_tiny_run(tmp_path, name="p", seed=99, data={"name": "shapeworld", "fingerprint": "none"})
    saved_adapted(tmp_path, folder, "shapeworld_style", name=folder.name)
    assert not adaptation.is_adapted(folder, pairing, 4)


def test_wrong_checkpoints_and_targets_are_named(tmp_path: Path):
    save_tiny_run(tmp_path, name="p")
    with pytest.raises(ValueError, match="no target: make adaptation"):
        adaptation.pairings(["p"], [], str(tmp_path))
    with pytest.raises(ValueError, match="unknown data 'fashion_mnits'; did you mean 'fashion_mnist'"):
        adaptation.pairings(["p"], ["fashion_mnits"], str(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        adaptation.pairings(["q"], ["clothing"], str(tmp_path))
    with pytest.raises(CheckpointError, match="so it cannot be trained on"):
        adapt.start_of(f"pixels:{tmp_path / 'p'}", tmp_path)


def test_a_checkpoint_that_is_no_run_is_written_once_as_a_place_to_start(tmp_path: Path):
    run = save_tiny_run(tmp_path, name="p")
    assert adapt.start_of(str(run), tmp_path) == run
    start = adapt.start_of(f"untrained:{run}", tmp_path)
    assert start.parent == tmp_path / "imported" and adapt.start_of(f"untrained:{run}", tmp_path) == start
    assert importer.describe(f"untrained:{run}")["weights_digest"] == importer.describe(start)["weights_digest"]
    assert read_run(start)["head"] is None
    words = adapt.with_start([f'checkpoint="untrained:{run}"', "data=clothing", f'runs="{tmp_path}"'])
    assert words == ["data=clothing", f'runs="{tmp_path}"', f"checkpoint={start}"]
    with pytest.raises(CheckpointError, match="holds other weights"):
        adapt.as_start(importer.load(str(run)), "x", start)  # type: ignore[arg-type]


def test_a_plan_of_trainings_is_followed_by_adaptations_and_nobody_elses_runs_are(tmp_path: Path, monkeypatch):
    begun: list[str] = []
    monkeypatch.setattr(adaptation, "train", lambda config, found: begun.extend(p.name for p in found) or [])
    config = OmegaConf.load(CONFIGS / "evaluate.yaml")
    config.runs, config.everything.adapt_to = str(tmp_path), ["shapeworld_style", "shapeworld_fine"]
    for name in ("dino-shapeworld", "mine"):
        save_tiny_run(tmp_path, name=name, data={"name": "shapeworld", "fingerprint": "none"})
    assert everything.adapt(config) == begun == []
    (tmp_path / everything.PLAN).write_text('{"dino-shapeworld": [], "simdino-shapeworld": []}')
    assert everything.adapt(config) == []
    assert begun == ["dino-shapeworld-to-shapeworld_style", "dino-shapeworld-to-shapeworld_fine"]
    assert config.adaptation.epochs == config.everything.adapt_epochs


@pytest.mark.slow
def test_one_command_adapts_measures_and_then_rests(tmp_path: Path, images: Path):
    train(compose(*overrides(images, "bits_fixed", tmp_path / "runs", "name=p")))
    root = write_images(tmp_path / "data", train=12, val=6, side=14)
    command = [sys.executable, "-m", "evaluate.adaptation", "checkpoints=[runs/p]", "adaptation.targets=[folder]"]
    command += ["adaptation.epochs=2", f"data_root={root}", "workers=0"]
    command += ["adaptation.settings=['trainer.batch_size=12','trainer.workers=0']"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    found = read_all(tmp_path / "results" / "records")
    names = {record.checkpoint["name"] for record in found}
    assert names == {"p", "p-to-folder", "p-to-folder/epochs/001"}
    assert find(tmp_path / "results" / "records", task="domain_gap")
    text = (tmp_path / "results" / "adaptation" / "adaptation.md").read_text()
    assert "## Gains" in text and "p-to-folder" in text
    second = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0 and "nothing to do" in second.stdout and "adapting" not in second.stdout
