"""What a person watches: curves, optional logs, and warnings in words when training goes wrong."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import compose, overrides

from pretrain import loggers
from pretrain.curves import draw_curves, read_curves
from pretrain.diagnostics import message_health, warnings
from pretrain.objectives.bits import Bits
from pretrain.objectives.dino import DINO, next_center
from pretrain.objectives.simdino import SimDINO
from pretrain.ops import coding_rate, coding_rate_bound
from pretrain.system import System, taken
from pretrain.train import train

HEALTHY = {"effective_rank": 40.0, "dead_bits": 0.0, "agreement": 0.5, "rate_over_bound": 0.8}


def test_a_healthy_run_gives_no_warning() -> None:
    assert warnings(HEALTHY, highest_rank=45.0, chance=math.log(2), floor=0.01) == {}


@pytest.mark.parametrize(
    ("kind", "figures", "says"),
    [
        ("rank", {"effective_rank": 1.2}, "effective rank of 1.2: they have collapsed"),
        ("falling", {"effective_rank": 20.0}, "fell from 45.0 to 20.0"),
        ("dead", {"dead_bits": 0.75, "bit_imbalance": 0.45}, "75% of the bits are equal for all images"),
        ("constant", {"bit_imbalance": 0.43}, "nearly constant (mean |p - 1/2| is 0.43"),
        ("floor", {"rate_over_bound": 0.011}, "the rate is at its floor (1.1% of its bound)"),
        ("chance", {"agreement": 0.6925}, "0.6925, no better than a guess (0.6931)"),
        ("saturated", {"agreement": 0.005}, "it is saturated"),
    ],
)
def test_each_way_of_going_wrong_has_its_words(kind: str, figures: dict[str, float], says: str) -> None:
    found = warnings(HEALTHY | figures, highest_rank=45.0, chance=math.log(2), floor=0.01)
    assert list(found) == [kind] and says in found[kind]


def test_signs_of_outputs_that_are_no_bits_say_nothing() -> None:
    assert warnings(HEALTHY | {"dead_bits": 0.75, "bit_imbalance": 0.45}, binary=False) == {}


def test_agreement_may_be_a_guess_at_the_start() -> None:
    assert warnings(HEALTHY | {"agreement": math.log(2)}, chance=math.log(2), done=0.2) == {}


def test_the_floor_of_the_rate_is_that_of_equal_rows() -> None:
    rows = torch.randn(1, 16).double().expand(24, 16)
    share = float(coding_rate(rows, 0.05)) / coding_rate_bound(24, 16, 0.05)
    for objective in (Bits(head={"out": 16}), SimDINO(head={"out": 16})):
        assert objective.floor(24) == pytest.approx(share)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({}, None),
        ({"reduction": "sum", "gamma": False}, None),
        ({"reduction": "sum"}, "the rate will hardly count"),
        ({"gamma": False}, "the agreement will hardly count"),
    ],
)
def test_a_loss_whose_terms_drown_each_other_is_named_before_training(
    choices: dict[str, object], says: str | None
) -> None:
    remarks = Bits(head={"out": 256}, **choices).remarks(256)
    assert (says is None and remarks == []) or (says is not None and says in remarks[0])


def test_warnings_are_said_once_and_in_words(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(compose(*overrides(images, "bits_fixed", tmp_path, "objective.loss.beta=3", "optim.lr=0")))
    lines = capsys.readouterr().err.splitlines()
    assert sum("warning before training: the agreement starts at" in line for line in lines) == 1
    assert sum("no better than a guess" in line for line in lines) == 1


def test_constant_logits_are_dead_bits() -> None:
    assert message_health(torch.ones(8, 4))["dead_bits"] == 1.0


def test_the_centre_moves_once_a_step_by_the_mean_of_its_parts() -> None:
    objective, teacher = DINO(head={"prototypes": 6}), torch.randn(2, 8, 6)
    objective.parts = 2
    first, second = teacher.chunk(2, dim=1)
    objective(torch.randn(2, 4, 6), first)
    assert torch.equal(objective.center, torch.zeros(1, 6))
    objective(torch.randn(2, 4, 6), second)
    torch.testing.assert_close(objective.center, next_center(torch.zeros(1, 6), teacher, 0.9))
    before = objective.center.clone()
    objective.parts = 1
    objective(torch.randn(2, 8, 6), teacher)
    torch.testing.assert_close(objective.center, next_center(before, teacher, 0.9))


@pytest.mark.thorough
def test_curves_are_drawn_at_the_end_of_a_run(images: Path, tmp_path: Path) -> None:
    run = train(compose(*overrides(images, "bits_fixed", tmp_path, "trainer.curves=true")))
    curves = read_curves(run / "log.csv")
    assert {"loss", "agreement", "rate", "lr", "effective_rank"} <= set(curves) and not {"step", "images"} & set(curves)
    assert len(curves["loss"][0]) == 9 and len(curves["effective_rank"][0]) == 3
    picture = (run / "curves.png").read_bytes()
    assert Image.open(io.BytesIO(picture)).size[0] > 800
    assert draw_curves(run / "log.csv", run.name) == picture
    assert draw_curves(run / "log.csv", r"$\another$ title") != picture


def test_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,images,loss\n1,8,nan\n2,16,0.5\n3,24,\n")
    assert read_curves(tmp_path / "log.csv") == {"loss": ([16.0], [0.5])}


def test_tensorboard_holds_what_the_log_holds(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(compose(*overrides(images, "bits_fixed", tmp_path, "trainer.loggers=[tensorboard]")))
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    losses = [(event.step, pytest.approx(event.value, rel=1e-5)) for event in events.Scalars("loss")]
    assert losses == list(zip(range(1, 10), read_curves(run / "log.csv")["loss"][1], strict=True))


@pytest.mark.slow
def test_wandb_stays_offline(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(compose(*overrides(images, "bits_fixed", tmp_path, "trainer.loggers=[wandb]")))
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.slow
def test_mlflow_holds_what_the_log_holds_and_goes_on(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    words = overrides(images, "bits_fixed", tmp_path, "trainer.loggers=[mlflow]")
    train(compose(*words, "trainer.stop_after_epoch=1"))
    run = train(compose(*words))
    client = MlflowClient(f"sqlite:///{run.resolve() / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("bitsbench").experiment_id])
    losses = [
        (point.step, pytest.approx(point.value)) for point in client.get_metric_history(found.info.run_id, "loss")
    ]
    logged = zip(range(1, 10), read_curves(run / "log.csv")["loss"][1], strict=True)
    assert losses == [(step, value) for step, value in logged] and found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.02" and found.data.metrics["system/memory_mb"] > 10


def test_the_machine_is_logged_at_every_row(images: Path, tmp_path: Path) -> None:
    run = train(compose(*overrides(images, "bits_fixed", tmp_path, "trainer.epochs=1", "optim.warmup_epochs=0")))
    with open(run / "system.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(run / "log.csv", newline="") as file:
        assert [row["step"] for row in rows] == [row["step"] for row in csv.DictReader(file)]
    assert all(10 < float(row["memory_mb"]) < 1e6 for row in rows)


def test_busy_cores_are_those_of_this_process_and_its_children() -> None:
    system = System(torch.device("cpu"))
    end = time.process_time() + 0.2
    began = time.monotonic()
    while time.process_time() < end:
        pass
    busy = 0.2 / (time.monotonic() - began)
    assert system.figures()["cpu_cores"] == pytest.approx(busy, rel=0.3)  # the kernel counts in hundredths of a second
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    alone = taken(os.getpid())[1] / 2**20
    assert system.figures()["memory_mb"] > 1.02 * alone
    child.kill()
    child.join()
    assert taken(child.pid or 0) == (0.0, 0.0)


def test_a_log_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.MODULES, "wandb", "no_such_module_of_anybody")
    with pytest.raises(ValueError, match=r"wandb is not installed; pip install -e '\.\[loggers\]'"):
        loggers.check_loggers(["wandb"])
