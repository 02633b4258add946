"""The same run on one process and on several, whole or in shards; resumed by as many processes or by others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from processes import join_group, run_processes
from tiny import OBJECTIVES, TWO_VIEWS, compose, overrides, write_images
from torch import Tensor
from training import EQUAL, assert_equal_up_to_sums, logged, run_tiny, stop_at, weights

from evaluate import importer
from pretrain import cli
from pretrain import train as loop
from pretrain.distributed import local
from pretrain.prepare import Run
from pretrain.train import train

#: the others are tested the same way, but not every time
FIRST = ("bits_reset",)
#: twelve steps of twice as many images, since a statistic of few is mostly noise
LARGER = ("trainer.batch_size=36", "trainer.epochs=6")


def settings(objective: str) -> tuple[str, ...]:
    return (*EQUAL, *(LARGER if objective in TWO_VIEWS else ()))


def train_on_rank(rank: int, images: str, folder: str, objective: str) -> dict[str, Tensor]:
    """One run whole, then one stopped in the middle of an epoch and continued, then one that a process alone began."""
    join_group(rank, 2)
    config = compose(
        *overrides(Path(images), objective, Path(folder) / "two", *settings(objective))
    )  # once: it takes a while
    train(config)
    config.runs = f"{folder}/stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.Interrupted, match="step 5 of 12"):
        if rank == 1:  # one process is told; both must stop
            stop_at(5, patch)
        train(config)
    for part in ("stopped", "begun"):
        config.resume = f"{folder}/{part}/{objective}-folder"
        train(config)
    return {}


@pytest.mark.parametrize(
    "objective", [o if o in FIRST else pytest.param(o, marks=pytest.mark.thorough) for o in OBJECTIVES]
)
def test_every_objective_trains_resumes_and_exports_on_two_processes(objective: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=24)  # four steps an epoch
    run_tiny(images, objective, tmp_path / "one", *settings(objective))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.Interrupted):
        stop_at(5, patch)
        run_tiny(images, objective, tmp_path / "begun", *settings(objective))
    run_processes(2, train_on_rank, str(images), str(tmp_path), objective)
    one, two, stopped, begun = (tmp_path / part / f"{objective}-folder" for part in ("one", "two", "stopped", "begun"))
    losses = [float(row["loss"]) for row in logged(two) if row["loss"]]
    assert len(losses) == 12 and all(map(math.isfinite, losses)) and sum(losses[-4:]) < sum(losses[:4])
    assert_equal_up_to_sums(one, two)
    assert weights(two) == weights(stopped) and logged(two) == logged(stopped)
    assert torch.isfinite(importer.load(str(two))(torch.rand(2, 3, 16, 16))).all()
    assert_equal_up_to_sums(one, begun)
    assert weights(begun) != weights(one)  # it did go on with two processes: sums in another order


def train_on_four(rank: int, images: str, folder: str, objective: str) -> dict[str, Tensor]:
    join_group(rank, 4)
    run_tiny(Path(images), objective, Path(folder) / "four", *EQUAL, "trainer.batch_size=36")
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_four_processes_equal_one(objective: str, images: Path, tmp_path: Path) -> None:
    one = run_tiny(images, objective, tmp_path / "one", *EQUAL, "trainer.batch_size=36")
    run_processes(4, train_on_four, str(images), str(tmp_path), objective)
    assert_equal_up_to_sums(one, tmp_path / "four" / one.name)


SETTINGS = {
    "bits_reset": ["head_reset.every_epochs=1"],
    "dino": ["trainer.accumulate=3"],
    "vicreg": ["+optim=lars"],
}


def train_in_shards(rank: int, images: str, folder: str, objective: str) -> dict[str, Tensor]:
    """Begun in shards, gone on with as copies and then in shards again; returns how much of the weights was here."""
    join_group(rank, 2)
    values = overrides(Path(images), objective, Path(folder) / "shards", *EQUAL, *SETTINGS[objective])
    config = compose(*values, "trainer.strategy=fsdp")
    for strategy, steps, reached in (("fsdp", 5, 5), ("ddp", 2, 7)):
        config.trainer.strategy = strategy
        with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.Interrupted, match=f"step {reached} of 12"):
            stop_at(steps, patch)
            train(config)
    config.trainer.strategy = "fsdp"
    held: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = loop.end_epoch

        def end_epoch(run: Run) -> dict[str, float]:
            networks = [run.network, *([run.teacher] if run.teacher is not None else [])]
            weights = [p for network in networks for p in network.parameters()]
            weights += [state for each in run.optimizer.state.values() for state in each.values() if state.ndim]
            held.append((sum(local(p).numel() for p in weights), sum(p.numel() for p in weights)))
            return original(run)

        patch.setattr(loop, "end_epoch", end_epoch)
        train(config)
    return {"held": torch.tensor(held[-1])}


@pytest.mark.parametrize(
    "objective", [pytest.param(o, marks=pytest.mark.thorough) for o in ("bits_reset", "dino", "vicreg")]
)
def test_a_run_in_shards_equals_one_with_copies_and_is_saved_whole(objective: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=24)
    one = run_tiny(images, objective, tmp_path / "one", *EQUAL, *SETTINGS[objective])
    found = run_processes(2, train_in_shards, str(images), str(tmp_path), objective)
    assert_equal_up_to_sums(one, tmp_path / "shards" / one.name)
    shares = [int(each["held"][0]) / int(each["held"][1]) for each in found]
    assert sum(shares) == 1 and max(shares) < 0.6
