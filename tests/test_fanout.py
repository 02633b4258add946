"""A suite shared out to workers: the records of one process, nothing twice, whatever is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from frozen import save_tiny_run
from omegaconf import DictConfig
from quick_tasks import TASKS as QUICK
from quick_tasks import Spread

from evaluate import evaluator, launchers, records, run, worker
from evaluate.evaluator import Item
from evaluate.features import Store
from evaluate.launchers import LocalProcesses, Submitit, open_launcher

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("knn", "retrieval", "hamming", "geometry", "linear_cached", "mlp_cached")


class Forks:
    """Workers that are forked from this process, with all that a test has changed in it."""

    def __init__(self, count: int):
        self.count, self.workers = count, list[Any]()

    def start(self, request: dict[str, Any], units: list[dict[str, Any]]) -> None:
        own = json.loads(json.dumps(request | {"units": units, "local_world": 1}))
        fork = multiprocessing.get_context("fork")
        self.workers = [fork.Process(target=self._work, args=(own,)) for _ in range(self.count)]
        for process in self.workers:
            process.start()

    @staticmethod
    def _work(request: dict[str, Any]) -> None:
        torch.set_num_threads(1)  # a forked process must not wait for threads that it does not have
        worker.work(request)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.workers)

    def stop(self) -> str:
        return ""

    def finish(self) -> str:
        return f" {[process.exitcode for process in self.workers]}"


def log(line: object) -> None:
    """Add a line to a file that all workers of a test write to."""
    with open("log", "a") as file:
        file.write(f"{line}\n")


def logged() -> list[str]:
    """The lines of that file."""
    return Path("log").read_text().splitlines() if Path("log").exists() else []


@pytest.fixture(scope="module")
def settings() -> DictConfig:
    """The settings of `python -m evaluate`."""
    with hydra.initialize_config_dir(str(run.cli.CONFIGS), version_base=None):
        return hydra.compose("evaluate", ["suite=folder", "baselines=false", "jobs=2", "workers=0", "device=cpu"])


@pytest.fixture
def place(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, settings: DictConfig) -> Callable[..., int]:
    """`python -m evaluate` on two tasks by two runs, in this process, with workers that are forks.

    Takes settings; returns the exit code.
    """
    for number in range(2):
        save_tiny_run(tmp_path / "runs", name=f"run{number}", seed=number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "open_launcher", lambda kind, jobs, folder, cluster: Forks(jobs))
    monkeypatch.setattr(run, "as_item", lambda task, data: Item(QUICK[task](), data))
    monkeypatch.setattr(run, "rebuild", lambda *_: "")

    def evaluate(**changed: Any) -> int:
        config = settings.copy()
        config.suite.tasks = [{"task": name, "data": "folder"} for name in QUICK]
        for key, value in ({"checkpoints": ["run0", "run1"], "data_root": str(images)} | changed).items():
            config[key] = value
        try:
            run.run(config)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return evaluate


def written() -> dict[Path, int]:
    """The files of all records, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in Path("results/records").glob("run*/*.json")}


def test_workers_leave_the_records_of_one_process_and_compute_nothing_twice(place, monkeypatch, capsys):
    original = Store.tokens
    monkeypatch.setattr(Store, "tokens", lambda self, *rest: (log(len(rest[1])), original(self, *rest))[1])
    assert place(jobs=3) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "4 recorded" in said and re.search(r"\[4/4\] run\d: ", said)
    assert sum(map(int, logged())) == 2 * (36 + 18)
    shared = {record.key: record for record in records.read_all("results/records")}
    assert not Path("results/.claims").exists() and not list(Path(".cache/claims").iterdir())
    assert place(jobs=3) == 0
    assert "nothing to do: 4 records up to date" in capsys.readouterr().out
    assert place(output="alone", jobs=1) == 0
    alone = {record.key: record for record in records.read_all("alone/records")}
    assert {key: record.scores for key, record in shared.items()} == {key: r.scores for key, r in alone.items()}


@pytest.mark.thorough
def test_overwrite_computes_each_record_again_once(place, monkeypatch, capsys):
    assert place() == 0
    before, original = written(), evaluator.run_task
    monkeypatch.setattr(evaluator, "run_task", lambda record, *rest: (log(record.key), original(record, *rest))[1])
    assert place(overwrite=True) == 0
    assert "4 recorded" in capsys.readouterr().out and len(logged()) == len(set(logged())) == 4
    assert before.keys() == written().keys() and not before.items() & written().items()


@pytest.mark.thorough
def test_a_task_that_fails_is_tried_once_and_named_and_the_rest_is_recorded(place, monkeypatch, capsys):
    def fail(self, subject):
        log("tried")
        raise ValueError("the weights have diverged")

    monkeypatch.setattr(Spread, "run", fail)
    assert place(jobs=3) == 1
    said = capsys.readouterr()
    assert len(logged()) == 2 and "2 recorded, 2 failed" in said.out
    assert "failed: spread on folder, run0: the weights have diverged" in said.err


@pytest.mark.thorough
@pytest.mark.parametrize("deaths", [1, 2])
def test_what_killed_workers_leave_is_done_by_another_or_by_the_next_command(place, monkeypatch, capsys, deaths):
    original = Spread.run

    def die(self, subject):
        if len(logged()) < deaths:
            log("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, subject)

    monkeypatch.setattr(Spread, "run", die)
    status, said = place(), capsys.readouterr()
    if deaths == 1:
        assert status == 0 and "4 recorded" in said.out
        return
    assert status == 1 and "unfinished: spread on folder, run" in said.err and "the same command goes on" in said.err
    before = written()
    assert place() == 0 and len(written()) == 4 and before.items() <= written().items()


@pytest.mark.thorough
def test_what_ends_its_worker_again_and_again_is_given_up(place, monkeypatch, capsys):
    monkeypatch.setattr(Spread, "run", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert place(jobs=4, checkpoints=["run0"]) == 1
    assert "failed: spread on folder, run0: the processes at work on it ended 3 times" in capsys.readouterr().err
    assert len(written()) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"launcher": "slrum"}, "unknown launcher 'slrum'; use processes, slurm, submitit_local"),
        ({"jobs": 0}, "jobs=0 must be at least 1"),
        ({"launcher": "slurm"}, "there is no sbatch here"),
    ],
)
def test_a_launcher_that_cannot_work_is_one_line(place, monkeypatch, changed, says):
    pytest.importorskip("submitit")
    monkeypatch.setattr(run, "open_launcher", open_launcher)
    monkeypatch.setattr(launchers.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=says):
        place(**changed)


def test_every_setting_of_a_cluster_is_one_that_submitit_knows(tmp_path):
    submitit = pytest.importorskip("submitit")
    cluster = run.OmegaConf.to_container(run.OmegaConf.load(run.cli.CONFIGS / "evaluate.yaml").cluster)
    Submitit("local", 2, tmp_path, cluster)
    parameters = submitit.SlurmExecutor._valid_parameters()
    assert {key.removeprefix("slurm_") for key in cluster if key.startswith("slurm_")} <= parameters
    with pytest.raises(ValueError, match="cluster settings: .*memory"):
        Submitit("local", 2, tmp_path, {"memory": 3})


def test_workers_share_the_cores_and_take_the_gpus_in_turn(monkeypatch, tmp_path):
    started: list[tuple[dict, dict]] = []

    def popen(command, env, **_):
        started.append((json.loads(Path(command[-1]).read_text()), env))

    monkeypatch.setattr(launchers.subprocess, "Popen", popen)
    monkeypatch.setattr(launchers.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launchers.os, "cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    LocalProcesses(3, tmp_path).start({"config": {"device": "auto"}}, [{"key": str(k)} for k in range(6)])
    assert [request["config"]["device"] for request, _ in started] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [request["units"][0]["key"] for request, _ in started] == ["0", "2", "4"]
    assert all(len(request["units"]) == 6 and env["OMP_NUM_THREADS"] == "4" for request, env in started)


# ---- whole, in processes of their own


def words(images: Path, launcher: str, tasks: Sequence[str], count: int) -> list[str]:
    """Overrides of `python -m evaluate` for some tasks by so many runs."""
    suite = ",".join(f"{{task: {task}, data: folder}}" for task in tasks)
    names = ",".join(f"run{number}" for number in range(count))
    fixed = [f"checkpoints=[{names}]", f"data_root={images}", "baselines=false", "suite=folder"]
    return [*fixed, f"suite.tasks=[{suite}]", "jobs=3", f"launcher={launcher}"]


WATCH = '''
"""Loaded by every Python of this test: notes what is computed, and holds two tasks up until they are killed."""
import importlib.abc, importlib.util, os, pathlib, sys, time

def note(line):
    with open(os.environ["WATCH"] + "/log", "a") as file:
        file.write(line + "\\n")

def held(name):
    marker = pathlib.Path(os.environ["WATCH"], "victim-" + name)
    if name in os.environ["VICTIMS"].split() and not marker.exists():
        marker.with_suffix(".new").write_text(str(os.getpid()))
        marker.with_suffix(".new").rename(marker)
        time.sleep(600)

def patch(module):
    run, write = module.run_task, module.Store._write
    module.Store._write.__globals__["SHARD_IMAGES"] = 5
    def run_task(record, *rest):
        name = record.checkpoint["name"] + "/" + record.task
        held(name.replace("/", "-"))
        found = run(record, *rest)
        note("task " + name)
        return found
    def write_some(self, backbone, images, folder, missing, layout):
        for start in missing:
            write(self, backbone, images, folder, [start], layout)
            note(f"shard {folder.name} {start}")
    module.run_task, module.Store._write = run_task, write_some

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "evaluate.evaluator":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), patch(module))
        return spec

sys.meta_path.insert(0, Watch())
'''


def run_watched(folder: Path, overrides: list[str], victims: list[str]) -> subprocess.CompletedProcess:
    """`python -m evaluate` with every computation noted; kills the workers that come to the victims."""
    environment = os.environ | {"PYTHONPATH": f"{folder / 'watch'}:{ROOT}", "WATCH": str(folder / "watch")}
    environment |= {"VICTIMS": " ".join(victims)}
    command = [sys.executable, "-m", "evaluate", *overrides]
    with subprocess.Popen(command, env=environment, cwd=folder, stdout=-1, stderr=-1, text=True) as process:
        waiting = set(victims)
        while waiting and process.poll() is None:
            for name in sorted(waiting):
                if (marker := folder / "watch" / f"victim-{name}").exists():
                    os.kill(int(marker.read_text()), signal.SIGKILL)
                    waiting.discard(name)
            time.sleep(0.1)
        out, err = process.communicate(timeout=1200)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "count", "tasks"),
    [("submitit_local", 2, ("knn", "geometry")), ("submitit_local", 4, TASKS), ("processes", 4, TASKS)],
)
def test_a_suite_survives_the_killing_of_two_workers(tmp_path, images, launcher, count, tasks):
    if launcher == "submitit_local":
        pytest.importorskip("submitit")
    for number in range(count):
        save_tiny_run(tmp_path / "runs", name=f"run{number}", seed=number)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    overrides, total = words(images, launcher, tasks, count), count * len(tasks)
    first = run_watched(tmp_path, overrides, ["run0-geometry", f"run{count - 1}-knn"])
    found = records.read_all(tmp_path / "results" / "records")
    if launcher == "submitit_local":  # a job has one task, and nobody else for it
        assert first.returncode == 1 and len(found) == total - 2, first
        assert f"{total - 2} recorded, 2 unfinished" in first.stdout and first.stderr.count("unfinished: ") == 2
    else:  # the last worker does what the two have left
        assert first.returncode == 0 and len(found) == total, first
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "records").glob("run*/*")}
    second = run_watched(tmp_path, overrides, [])
    assert second.returncode == 0, second
    third = run_watched(tmp_path, overrides, [])
    assert f"nothing to do: {total} records up to date" in third.stdout
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "records").glob("run*/*")}
    assert len(records.read_all(tmp_path / "results" / "records")) == total and kept.items() <= now.items()
    lines = (tmp_path / "watch" / "log").read_text().splitlines()
    computed = [line for line in lines if line.startswith("task ")]
    shards = [line for line in lines if line.startswith("shard ")]
    assert sorted(computed) == sorted(f"task run{n}/{task}" for n in range(count) for task in tasks)
    assert len(shards) == len(set(shards)) == count * (8 + 4)  # 36 and 18 images in shards of 5
    assert not list((tmp_path / ".cache" / "claims").glob("*")) and not (tmp_path / "results" / ".claims").exists()
