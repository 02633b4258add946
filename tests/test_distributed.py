"""Statistics over processes: the values and gradients each rank sees, against published two-process references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_values import by_view, close, load
from processes import run_processes
from torch import Tensor

from pretrain.distributed import gather_rows, sum_over_processes
from pretrain.objectives.barlow_twins import BarlowTwins, barlow_twins_loss
from pretrain.objectives.base import Objective
from pretrain.objectives.bits import Bits, bits_loss
from pretrain.objectives.dino import DINO, dino_loss, next_center
from pretrain.objectives.imsvd import IMSVD, joint_entropy_loss
from pretrain.objectives.music import Music
from pretrain.objectives.simdino import SimDINO, simdino_loss
from pretrain.objectives.vicreg import VICReg, vicreg_loss

GOLDEN = load("distributed_2ranks.npz")
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "bits": lambda: Bits({"out": 8}),
    "simdino": lambda: SimDINO({"out": 8}),
    "dino": lambda: DINO({"prototypes": 8}),
    "imsvd": lambda: IMSVD({"out": 8}, bins=4),
    "music": lambda: Music({"out": 8}, bins=2),
    "barlow_twins": lambda: BarlowTwins({"out": 8}),
    "vicreg": lambda: VICReg({"out": 8}),
}


def through_normalisation(grad: Tensor, unit: Tensor) -> Tensor:
    """Gradient with respect to raw rows of unit length, from the gradient with respect to the unit rows."""
    return grad - (grad * unit).sum(-1, keepdim=True) * unit


def losses_of_rank(rank: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for reduce in (0, 1):
        for kind in (0, 1):
            rows = GOLDEN["mcr_student"][rank].clone().requires_grad_()
            loss, comp, expa = simdino_loss(
                by_view(rows, GOLDEN["mcr_ncrops"]),
                by_view(GOLDEN["mcr_teacher"][rank], 2),
                eps=GOLDEN["mcr_eps"],
                coeff=GOLDEN["mcr_coeff"],
                expa_type=kind,
                reduce_cov=bool(reduce),
            )
            name = f"mcr_rc{reduce}_e{kind}"
            found |= {f"{name}_loss": loss.detach(), f"{name}_comp": comp.detach(), f"{name}_expa": expa.detach()}
            found[f"{name}_grad_student"] = torch.autograd.grad(loss, rows)[0]
    rows = GOLDEN["dino_student"][rank].clone().requires_grad_()
    teacher, center = by_view(GOLDEN["dino_teacher"][rank], 2), torch.zeros(1, GOLDEN["dim"], dtype=torch.float64)
    temps = {"student_temp": GOLDEN["dino_student_temp"], "teacher_temp": GOLDEN["dino_teacher_temp"]}
    loss = dino_loss(by_view(rows, GOLDEN["mcr_ncrops"]), teacher, center, **temps)
    found |= {"dino_loss": loss.detach(), "dino_grad_student": torch.autograd.grad(loss, rows)[0]}
    found |= two_view_losses(rank)
    found["dino_center_after"] = next_center(center, teacher, GOLDEN["dino_center_momentum"])
    return found


def two_view_losses(rank: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def add(name: str, keys: tuple[str, ...], loss: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
        x1, x2 = (GOLDEN[key][rank].clone().requires_grad_() for key in ("x1", "x2"))
        values = loss(x1, x2)
        grads = torch.autograd.grad(values[0], (x1, x2))
        suffixes = ("x1", "x2") if name == "imsvd" else ("a", "b")
        found.update({f"{name}_{key}": value.detach() for key, value in zip(keys, values, strict=True)})
        found.update({f"{name}_grad_{suffix}": grad for suffix, grad in zip(suffixes, grads, strict=True)})

    bins = GOLDEN["imsvd_bin_size"]
    add("imsvd", ("loss", "dia", "off", "ti"), lambda a, b: joint_entropy_loss(a, b, bin_size=bins, temperature=1.0))
    lambda_ = GOLDEN["barlow_lambda"]  # the published values normalise each process's rows by themselves
    add("barlow", ("loss",), lambda a, b: (barlow_twins_loss(a, b, lambda_=lambda_, norm_scope="local"),))
    add("vicreg", ("loss",), lambda a, b: vicreg_loss(a, b)[:1])
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Tensor]]:
    return run_processes(2, losses_of_rank)


def test_every_statistic_equals_the_two_process_reference(ranks: list[dict[str, Tensor]]) -> None:
    for rank, found in enumerate(ranks):
        for name, value in found.items():
            golden = GOLDEN[name][rank]
            if name.startswith("mcr") and name.endswith("grad_student"):
                golden = through_normalisation(golden, GOLDEN["mcr_student"][rank])
            close(value, golden)


def objective_of_rank(rank: int, world: int, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss and gradient of every objective on this rank's share of the rows."""
    found: dict[str, Tensor] = {}
    for name, objective in OBJECTIVES.items():
        mine = [value.chunk(world, dim=1)[rank].clone().requires_grad_() for value in (rows[name], rows["teacher"])]
        output = objective()(mine[0], mine[1].detach())
        found[f"{name}/loss"] = output.loss.detach()
        found[f"{name}/grad"] = torch.autograd.grad(output.loss, mine[0])[0]
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(world: int) -> None:
    torch.manual_seed(0)
    rows = {name: torch.randn(3, 12, 8, dtype=torch.float64) for name in OBJECTIVES}
    rows["teacher"] = torch.randn(2, 12, 8, dtype=torch.float64)
    parts = run_processes(world, objective_of_rank, world, rows)
    whole = objective_of_rank(0, 1, rows)
    for name in OBJECTIVES:
        close(torch.stack([part[f"{name}/loss"] for part in parts]).mean(), whole[f"{name}/loss"], 1e-9)
        # data-parallel training averages parameter gradients, hence each rank's share of them
        close(torch.cat([part[f"{name}/grad"] for part in parts], 1) / world, whole[f"{name}/grad"], 1e-9)


def bits_of_rank(rank: int, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    mine = student.chunk(2, dim=1)[rank].clone().requires_grad_()
    loss, _, _ = bits_loss(mine, teacher.chunk(2, dim=1)[rank])
    rows = torch.arange(6.0).view(2, 3) + rank
    weighted = (gather_rows(rows.requires_grad_()) * torch.arange(12.0).view(4, 3)).sum() * (rank + 1)
    total = sum_over_processes(loss.detach())
    return {
        "loss": loss.detach(),
        "grad": torch.autograd.grad(loss, mine)[0],
        "gather": torch.autograd.grad(weighted, rows)[0],
        "sum": total,
    }


def test_bits_over_two_processes_has_the_gradient_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 10, 16, dtype=torch.float64), torch.randn(2, 10, 16, dtype=torch.float64)
    parts = run_processes(2, bits_of_rank, student, teacher)
    whole = student.clone().requires_grad_()
    loss, _, _ = bits_loss(whole, teacher)
    close((parts[0]["loss"] + parts[1]["loss"]) / 2, loss, 1e-9)
    # data-parallel training averages parameter gradients, hence half of each rank's gradient
    close(torch.cat([part["grad"] for part in parts], 1) / 2, torch.autograd.grad(loss, whole)[0], 1e-9)
    close(parts[0]["gather"], 3 * torch.arange(6.0).view(2, 3))
    close(parts[1]["gather"], 3 * torch.arange(6.0, 12.0).view(2, 3))
    close(parts[0]["sum"], parts[0]["loss"] + parts[1]["loss"], 1e-12)
