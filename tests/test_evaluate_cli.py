"""Evaluation as a user runs it: a table at the end, nothing twice, one clear line when something is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from frozen import save_tiny_run
from tiny import NETWORK, VIEWS, write_images

from evaluate import everything, records, run
from evaluate.features import Store
from evaluate.tasks.hamming import Hamming
from pretrain.checkpoint import read_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one run; images as data root."""
    save_tiny_run(tmp_path / "runs", name="mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fitting(suite: str) -> list[str]:
    """Tasks of a suite that a tiny BITS run can be scored on: no discretised variables, and 16 features for codes."""
    return [entry["task"] for entry in run.load_suite(suite) if entry["task"] not in ("units", "hamming_itq")]


def evaluate(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    """Exit code of `python -m evaluate` with these overrides, in this process."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *overrides])
    try:
        run.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


FEW = ["knn", "hamming", "linear_cached"]


@pytest.mark.parametrize("tasks", [FEW, pytest.param(None, marks=pytest.mark.slow)])
def test_a_user_gets_a_table_and_the_second_time_nothing_to_do(place, images, monkeypatch, capsys, tasks):
    command = [sys.executable, "-m", "evaluate", "checkpoints=[mine]", f"data_root={images}"]
    if tasks:
        entries = ", ".join(f"{{task: {task}, data: folder}}" for task in tasks)
        command += ["suite=folder", f"suite.tasks=[{entries}]"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    total = 3 * len(tasks or run.load_suite("folder"))
    recorded, skipped = map(int, re.search(r"(\d+) recorded, (\d+) skipped", first.stdout).groups())
    assert recorded + skipped == total and recorded > total / 2
    for word in (
        f"[1/{total}, about ",
        " left] mine: knn on folder",
        "pixels:16px",
        "untrained:vit-16x2p8-16px",
        "linear_cached",
    ):
        assert word in first.stdout
    assert not tasks or f"[{total}/{total}] " in first.stdout  # the last item of the whole suite is one that is skipped
    assert {path.name for path in (place / "results").glob("leaderboard.*")} >= {"leaderboard.md", "leaderboard.html"}
    assert {path.name for path in place.iterdir()} == {"runs", "results", ".cache"}, "something was littered"
    before = {path: path.stat().st_mtime_ns for path in (place / "results" / "records").rglob("*.npz")}
    assert evaluate(monkeypatch, *command[3:]) == 0
    assert f"nothing to do: {recorded} records up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (place / "results" / "records").rglob("*.npz")}


@pytest.mark.parametrize(
    "overrides, says",
    [
        ([], "checkpoints=[] names nothing to evaluate"),
        (["checkpoints=[nobody]"], "no checkpoint 'nobody': give a run"),
        (["checkpoints=[mine]", "suite=shapewrld"], "unknown suite 'shapewrld'; did you mean 'shapeworld'?"),
        (["checkpoints=[mine]", "data=cifar10"], "unknown configuration key 'data'; did you mean 'data_root'?"),
        (["checkpoints=[mine]", "batchsize=3"], "unknown configuration key 'batchsize'; did you mean 'batch_size'?"),
        (["checkpoints=[mine]", "device=tpu9"], "device=tpu9 cannot be used here"),
        (["checkpoints=[mine]", "precision=int4"], "unknown precision 'int4'; use float32"),
        (["checkpoints=[mine]", "batch_size=0"], "batch_size=0 must be at least 1"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_1(place, monkeypatch, capsys, overrides, says):
    assert evaluate(monkeypatch, *overrides) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and says in error and "\n" not in error


def test_unknown_tasks_datasets_and_settings_in_a_suite_name_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'knnn'; did you mean 'knn'"):
        run.as_item("knnn", "folder")
    with pytest.raises(ValueError, match="unknown setting 'temprature' of task knn; did you mean 'temperature'"):
        run.as_item("knn", "folder", temprature=0.1)
    with pytest.raises(ValueError, match="unknown data 'cifar'; did you mean 'cifar10'"):
        run.load_data("cifar", "data")


def test_every_suite_names_known_tasks_and_datasets():
    assert run.choices("suite")
    for name in run.choices("suite"):
        assert [run.as_item(**entry) for entry in run.load_suite(name)]


def test_a_run_gets_the_suite_of_its_data_and_shapeworlds_otherwise(tmp_path):
    own, foreign = (
        str(save_tiny_run(tmp_path, name=name, data={"name": data}))
        for name, data in (("a", "folder"), ("b", "mystery"))
    )
    plan = run.make_plan([own, foreign], None, "runs", baselines=True)
    assert {item.data for item in plan[own]} == {"folder"} and {item.data for item in plan[foreign]} == {"shapeworld"}
    shared = [items for name, items in plan.items() if name.startswith("untrained:")]
    assert [sorted({item.data for item in items}) for items in shared] == [["folder", "shapeworld"]]
    assert set(run.make_plan([own, foreign], run.load_suite("cifar10"), "runs", baselines=False)) == {own, foreign}


def test_missing_data_is_said_and_the_exit_code_is_1(place, monkeypatch, capsys):
    assert evaluate(monkeypatch, "checkpoints=[mine]", "data_root=/nowhere", "baselines=false") == 1
    error = capsys.readouterr().err
    assert "skipped: knn on folder, mine: no dataset at /nowhere" in error and "give data_root=<folder>" in error
    assert "Traceback" not in error


@pytest.mark.thorough
def test_ctrl_c_keeps_what_is_recorded_and_the_same_command_goes_on(place, images, monkeypatch, capsys):
    arguments = ("checkpoints=[mine]", f"data_root={images}", "baselines=false", "quiet=true")
    original = Hamming.run
    monkeypatch.setattr(Hamming, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert evaluate(monkeypatch, *arguments) == 130
    assert capsys.readouterr().err.strip() == "stopped: what is recorded stays; the same command goes on from there"
    kept = {record.task for record in records.read_all(place / "results" / "records")}
    assert kept == {"knn", "retrieval"}
    monkeypatch.setattr(Hamming, "run", original)
    monkeypatch.setattr(Store, "tokens", None)  # nothing may be forwarded again
    assert evaluate(monkeypatch, *arguments) == 0
    rest = len(fitting("folder")) - len(kept)
    assert f"{rest} recorded, 2 up to date" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_damaged_image_fails_its_tasks_unless_skip_bad_leaves_it_out(place, tmp_path, monkeypatch, capsys):
    root = write_images(tmp_path / "data", train=9, val=3)
    (root / "val" / "class0" / "001.png").write_bytes(b"")
    arguments = ("checkpoints=[mine]", f"data_root={root}", "baselines=false")
    assert evaluate(monkeypatch, *arguments) == 1
    captured = capsys.readouterr()
    assert "class0/001.png" in captured.err and "skip_bad=true" in captured.err and "Traceback" not in captured.err
    assert evaluate(monkeypatch, *arguments, "skip_bad=true") == 0
    found = records.read_all(place / "results" / "records")
    assert len(found) == len(fitting("folder")) and all(1 in record.skipped.values() for record in found)


# ---- everything


def test_only_finished_runs_are_evaluated_and_a_damaged_one_is_named(tmp_path, capsys):
    save_tiny_run(tmp_path, name="done")
    save_tiny_run(tmp_path, name="half", finished=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert list(everything.finished_runs(tmp_path)) == ["done"]
    assert "broken/run.json is damaged" in capsys.readouterr().err


def test_trainings_start_only_where_no_run_is_finished_and_go_on_after_a_stop(tmp_path):
    wanted = everything.wanted_runs(tmp_path, ["bits_fixed", "dino"], "shapeworld", ["seed=3"])
    assert wanted["dino-shapeworld"] == ["objective=dino", "data=shapeworld", "seed=3"]
    save_tiny_run(tmp_path, name="bits_fixed-shapeworld")
    assert list(everything.wanted_runs(tmp_path, ["music"], "shapeworld")) == ["dino-shapeworld"]
    save_tiny_run(tmp_path / "own", name="mine")
    assert everything.wanted_runs(tmp_path / "own", ["dino"], "shapeworld") == {}


@pytest.mark.slow
def test_on_a_fresh_machine_one_command_trains_evaluates_and_then_rests(tmp_path, images):
    options = [NETWORK, *VIEWS, "trainer={epochs: 1, batch_size: 12, workers: 0}", "optim.warmup_epochs=0"]
    listed = ", ".join('"' + option.replace('"', '\\"') + '"' for option in [*options, "objective.head.hidden=16"])
    command = [sys.executable, "-m", "evaluate.everything", f"data_root={images}", "everything.data=folder"]
    command += [
        "everything.objectives=[bits_fixed,simdino]",
        f"everything.options=[{listed}]",
        "everything.adapt_to=[]",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    assert read_run(tmp_path / "runs" / "simdino-folder")["finished"]
    assert "22 recorded, 14 skipped" in first.stdout
    second = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0 and "nothing to do: 22 records up to date" in second.stdout
    assert "training" not in second.stdout
