"""DINO against the published reference values over successive steps."""

from __future__ import annotations

import math

import pytest
import torch
from golden_values import by_view, close, gradient, load
from torch import nn

from pretrain.heads import PrototypeHead
from pretrain.objectives.dino import DINO, dino_loss, next_center
from pretrain.schedules import linear_then_constant

GOLDEN = load("dino_loss.npz")


def test_three_steps_with_one_centre_equal_the_reference() -> None:
    center = GOLDEN["center0"]
    for step in (1, 2, 3):
        rows = GOLDEN[f"s{step}_student"].requires_grad_()
        teacher = by_view(GOLDEN[f"s{step}_teacher"], 2)
        temp = GOLDEN["teacher_temp_schedule"][GOLDEN[f"s{step}_epoch"]].item()
        loss = dino_loss(
            by_view(rows, GOLDEN["ncrops"]), teacher, center, student_temp=GOLDEN["student_temp"], teacher_temp=temp
        )
        close(loss, GOLDEN[f"s{step}_loss"])
        close(gradient(loss, rows)[0], GOLDEN[f"s{step}_grad_student"])
        center = next_center(center, teacher, GOLDEN["center_momentum"])
        close(center, GOLDEN[f"s{step}_center_after"])


def test_the_objective_itself_takes_the_reference_steps() -> None:
    objective = DINO(
        head={"prototypes": GOLDEN["out_dim"]},
        student_temp=GOLDEN["student_temp"],
        teacher_temp=GOLDEN["teacher_temp"],
        warmup_teacher_temp=GOLDEN["warmup_teacher_temp"],
        warmup_teacher_temp_epochs=GOLDEN["warmup_teacher_temp_epochs"],
        center_momentum=GOLDEN["center_momentum"],
    ).double()
    for step in (1, 2, 3):
        objective.start_epoch(GOLDEN[f"s{step}_epoch"])
        output = objective(
            by_view(GOLDEN[f"s{step}_student"], GOLDEN["ncrops"]), by_view(GOLDEN[f"s{step}_teacher"], 2)
        )
        close(output.loss, GOLDEN[f"s{step}_loss"])
        close(objective.center, GOLDEN[f"s{step}_center_after"])


def test_teacher_temperature_equals_the_reference_schedule() -> None:
    ours = linear_then_constant(
        GOLDEN["warmup_teacher_temp"], GOLDEN["teacher_temp"], GOLDEN["warmup_teacher_temp_epochs"], GOLDEN["nepochs"]
    )
    close(torch.from_numpy(ours), GOLDEN["teacher_temp_schedule"], 1e-12)


def test_a_constant_network_scores_at_least_ln_k_once_centred() -> None:
    k = 32
    rows = torch.randn(k).expand(2, 8, k)
    center = rows[0, :1]
    assert dino_loss(rows, rows, center, student_temp=0.1, teacher_temp=0.04) >= math.log(k) - 1e-6


def test_the_last_layer_gets_no_gradient_while_frozen_and_one_afterwards() -> None:
    head = PrototypeHead(8, hidden=16, bottleneck=4, prototypes=12)
    objective = DINO(head={"prototypes": 12}, freeze_last_layer=1)
    for epoch, frozen in ((0, True), (1, False)):
        objective(head(torch.randn(6, 8)).view(2, 3, 12), torch.randn(2, 3, 12)).loss.backward()
        objective.drop_gradients(head, epoch)
        assert (head.last_direction.grad is None) == frozen


def test_a_frozen_last_layer_does_not_decay() -> None:
    from pretrain.optim import make_optimizer, parameter_groups

    head: nn.Module = PrototypeHead(8, hidden=16, bottleneck=4, prototypes=12)
    optimizer = make_optimizer("adamw", parameter_groups(head))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.1, 0.5
    before = head.last_direction.clone()
    head(torch.randn(6, 8)).square().sum().backward()
    DINO(head={"prototypes": 12}).drop_gradients(head, 0)
    optimizer.step()
    assert torch.equal(before, head.last_direction)


@pytest.mark.parametrize("temps", [(0.0, 0.04), (0.1, -1.0)])
def test_temperatures_must_be_positive(temps: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        dino_loss(
            torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(1, 4), student_temp=temps[0], teacher_temp=temps[1]
        )
