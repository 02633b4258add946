"""Processes under torchrun share the work of the store; the main one goes on alone and finds nothing left to do."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from frozen import SPEC, count_forward, folder_data, save_tiny_run
from omegaconf import DictConfig

from evaluate import everything, features, importer, records
from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store
from evaluate.processes import Processes
from evaluate.run import load_task
from evaluate.tasks.base import Unavailable
from evaluate.tasks.knn import KNN
from pretrain.backbones import Backbone
from pretrain.datasets import ImageFolder

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def make_evaluator(root: Path, images: Path, **options) -> Evaluator:
    store = Store(root / "cache", batch_size=5, workers=0, quiet=True, **options)
    return Evaluator(store, root / "results" / "records", lambda name: folder_data(images), quiet=True)


def plan(root: Path, *tasks: str) -> dict[str, list[Item]]:
    return {str(root / "runs" / "bits_fixed"): [Item(load_task(task), "folder") for task in tasks]}


def work(rank: int, world: int, port: str, root: Path, images: Path, tasks: tuple[str, ...]) -> None:
    """One of `world` processes as torchrun would start it; leaves what it computed in a file."""
    torch.set_num_threads(1)  # a forked process must not wait for threads that it does not have
    names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    features.SHARD_IMAGES = 5
    evaluator = make_evaluator(root, images, rank=rank, world=world)
    computed: list[int] = []
    original = Store.tokens

    def tokens(self, backbone, pixels):
        computed.append(len(pixels))
        return original(self, backbone, pixels)

    Store.tokens = tokens  # type: ignore[method-assign]
    main = evaluator.prepare(plan(root, *tasks), Processes.from_environment())
    (root / f"computed.{rank}").write_text(str(sum(computed)))
    Store.tokens = None  # type: ignore[assignment,method-assign]  # whatever is missing now is an error
    if main:
        assert evaluator.store.share([1, 2, 3]) == [1, 2, 3], "the main process goes on alone"
        evaluator.evaluate(plan(root, *tasks))


def run_together(root: Path, images: Path, tasks: tuple[str, ...], world: int = 2) -> list[int]:
    """Images that each of `world` processes computed."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    processes = [fork.Process(target=work, args=(rank, world, port, root, images, tasks)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world
    return [int((root / f"computed.{rank}").read_text()) for rank in range(world)]


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(**SPEC).eval().requires_grad_(False)


def test_two_processes_give_the_features_and_records_of_one(tmp_path, images, monkeypatch):
    monkeypatch.setattr(features, "SHARD_IMAGES", 5)
    run = save_tiny_run(tmp_path / "runs")
    computed = run_together(tmp_path, images, ("knn", "retrieval"))
    assert sum(computed) == 36 + 18 and min(computed) >= 18, "not shared, or computed twice"
    ours = records.read_all(tmp_path / "results" / "records")
    assert {record.task for record in ours} == {"knn", "retrieval"}
    backbone, train = importer.load(run), ImageFolder(images, "train", name="folder")
    alone = Store(tmp_path / "alone", batch_size=5, workers=0, quiet=True).get(backbone, train)
    with count_forward(backbone) as sizes:
        shared = Store(tmp_path / "cache", batch_size=5, workers=0, quiet=True).get(backbone, train)
    assert sizes == [] and torch.equal(shared.cls(), alone.cls()) and torch.equal(shared.cls(-2), alone.cls(-2))


def test_what_is_recorded_is_not_prepared_again(tmp_path, images):
    save_tiny_run(tmp_path / "runs")
    make_evaluator(tmp_path, images).evaluate(plan(tmp_path, "knn"))
    for path in (tmp_path / "cache").rglob("*.npy"):
        path.unlink()
    assert run_together(tmp_path, images, ("knn",)) == [0, 0]


def test_a_share_that_nobody_computed_falls_to_the_main_process(tmp_path, images, backbone, monkeypatch):
    monkeypatch.setattr(features, "SHARD_IMAGES", 5)
    train = ImageFolder(images, "train")
    store = Store(tmp_path, batch_size=5, workers=0, quiet=True, rank=1, world=2)
    store.prepare(backbone, train)
    with count_forward(backbone) as sizes:
        found = Store(tmp_path, batch_size=5, workers=0, quiet=True).get(backbone, train)
    assert sum(sizes) == 5 + 5 + 5 + 5 and len(found.cls()) == 36  # shards 0, 2, 4, 6 of 8


def test_a_fault_in_one_share_is_left_to_the_main_process_which_notes_it(tmp_path, images, monkeypatch):
    save_tiny_run(tmp_path / "runs")
    evaluator = make_evaluator(tmp_path, images, rank=1, world=2)
    monkeypatch.setattr(Store, "prepare", lambda *_: (_ for _ in ()).throw(ValueError("weights have diverged")))
    evaluator.prepare_checkpoint(*next(iter(plan(tmp_path, "knn").items())))
    monkeypatch.setattr(KNN, "check", lambda *_: (_ for _ in ()).throw(Unavailable("no", "none")))
    evaluator.prepare_checkpoint(*next(iter(plan(tmp_path, "knn").items())))
    evaluator.prepare_checkpoint("nowhere", [])
    assert evaluator.unfit == [] and not (tmp_path / "results").exists()


@pytest.mark.parametrize("items", [0, 1, 7])
def test_shares_are_a_partition(tmp_path, items):
    shares = [Store(tmp_path, rank=rank, world=3).share(range(items)) for rank in range(3)]
    assert sorted(sum(shares, [])) == list(range(items))
    assert Store(tmp_path).share(range(items)) == list(range(items))


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    here = Processes.from_environment()
    assert here == Processes(5, 8, 1, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert here.device("auto") == here.device("cuda") == "cuda:1" and here.device("cpu") == "cpu"
    assert Processes().device("auto") == "cuda" and Processes().device("cuda:3") == "cuda:3"


def test_trainings_are_not_started_once_for_every_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = {"objectives": ["dino"], "data": "shapeworld", "options": [], "at_once": None, "adapt_to": []}
    config = DictConfig({"runs": str(tmp_path), "checkpoints": [], "quiet": True, "everything": settings})
    with pytest.raises(ValueError, match="run the command once without it"):
        everything.run(config)


@pytest.mark.slow
def test_torchrun_gives_one_table_and_the_second_time_nothing_to_do(tmp_path, images):
    save_tiny_run(tmp_path / "runs", name="mine")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evaluate"]
    command += ["checkpoints=[mine]", f"data_root={images}", "baselines=false"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first, second = (
        subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("knn on folder") == 1 and "recorded" in first.stdout
    assert second.returncode == 0 and second.stdout.count("nothing to do") == 1
