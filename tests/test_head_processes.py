"""Heads trained by two processes: the weights of one process, and all leave together when one meets a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import Tensor, nn
from torch.utils.data import Dataset

from evaluate.features import Store
from evaluate.openmmlab.training import Schedule, Training
from pretrain.datasets import ImageError

BAD = 5  # row that a test damages
ROWS = 12


class Head(nn.Module):
    """A linear layer with the three methods that OpenMMLab's models have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.layer = nn.Identity(), nn.Linear(3, 2)

    def data_preprocessor(self, data: dict[str, list], _training: bool) -> dict[str, Tensor]:
        return {"inputs": torch.stack(data["inputs"])}

    def forward(self, inputs: Tensor, mode: str) -> Tensor:
        assert mode == "loss"
        return (self.layer(inputs) - inputs[:, :2]).square().mean()

    def parse_losses(self, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return loss, {"loss": loss}


class Points(Dataset):
    """Rows of random numbers; row 5 is as `fault` says: left out, damaged or not a number."""

    def __init__(self, fault: str = ""):
        self.rows, self.fault = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1)), fault

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        row = key[1]
        if row == BAD and self.fault == "damaged":
            raise ImageError("cannot decode images/5.png: truncated")
        values = self.rows[row] * float("nan" if row == BAD and self.fault == "nan" else 1)
        return {"inputs": values, "damaged": [row] if row == BAD and self.fault == "left out" else []}


def training(folder: Path, fault: str, rank: int = 0, world: int = 1, workers: int = 0) -> Training:
    model = Head()
    groups = [{"params": list(model.parameters()), "lr": 0.05, "weight_decay": 0.0}]
    store = Store(folder / "cache", rank=rank, world=world, local_world=world, workers=workers, quiet=True)
    schedule = Schedule(iterations=9, batch_size=4, lr=0.05, weight_decay=0.0, warmup=1, start=0.1)
    return Training(model, schedule, folder / "head", Points(fault), range(ROWS), groups, store, seed=3)


def train_on_rank(rank: int, folder: str, fault: str) -> dict[str, Any]:
    """Weights and damaged rows, or what was raised."""
    head = training(Path(folder), fault, rank, world=2)
    try:
        head.run()
    except (ImageError, FloatingPointError) as error:
        return {"kind": type(error).__name__, "says": str(error), "iteration": head.iteration}
    return {"weights": head.model.state_dict(), "damaged": sorted(head.damaged)}


def test_two_processes_end_with_the_weights_of_one_and_count_what_either_left_out(tmp_path: Path) -> None:
    one = training(tmp_path / "one", "left out")
    one.run()
    assert one.damaged == {BAD}
    for found in run_processes(2, train_on_rank, str(tmp_path / "two"), "left out"):
        assert found["damaged"] == [BAD]
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(found["weights"][name], value)
    again = training(tmp_path / "two", "left out")
    again.run()
    assert again.damaged == {BAD}, "the kept head must remember what was left out"


@pytest.mark.parametrize(
    "fault, kind, says",
    [("damaged", "ImageError", "cannot decode images/5.png"), ("nan", "FloatingPointError", "the loss is nan in")],
)
def test_a_fault_that_one_process_meets_ends_the_training_of_both(
    tmp_path: Path, fault: str, kind: str, says: str
) -> None:
    first, second = run_processes(2, train_on_rank, str(tmp_path), fault)
    assert first == second and first["kind"] == kind and first["says"].startswith(says)
    assert not list((tmp_path / "head").rglob("*.safetensors"))


def test_an_image_that_a_loaders_process_cannot_decode_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"\Acannot decode images/5\.png: truncated\Z"):
        training(tmp_path, "damaged", workers=1).run()
