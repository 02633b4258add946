"""The BITS objective against published definitions in float64, and the facts that follow from its formulas."""

from __future__ import annotations

import math

import pytest
import torch
from golden_values import close, gradient, load

from pretrain.objectives.bits import Bits, binary_agreement, bits_loss, cosine_agreement, mean_rate
from pretrain.ops import coding_rate, coding_rate_bound, rate_factor

BCE, RATE, TOTAL = load("bits_bce.npz"), load("bits_rate.npz"), load("bits_total.npz")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_agreement_and_its_gradient_equal_the_double_loop(reduction: str) -> None:
    student = BCE["student"].requires_grad_()
    loss = binary_agreement(student, BCE["teacher"], reduction=reduction)
    close(loss, BCE[f"loss_{reduction}_bits"])
    close(gradient(loss, student)[0], BCE[f"grad_student_{reduction}_bits"])


@pytest.mark.parametrize("tau", [1.0, 0.2, 0.1, 0.05, 0.01])
def test_soft_targets_equal_the_double_loop(tau: float) -> None:
    student = BCE["student"].requires_grad_()
    loss = binary_agreement(student, BCE["teacher"], target="soft", tau=tau)
    close(loss, BCE[f"soft_tau{tau}_loss_mean_bits"])
    close(gradient(loss, student)[0], BCE[f"soft_tau{tau}_grad_student"])


def test_two_global_views_equal_equation_8_of_the_paper() -> None:
    total = 2 * binary_agreement(BCE["student"], BCE["teacher"], reduction="sum", pairs="global_only")
    close(total, BCE["loss_eq8_two_global_views"])


def test_cosine_agreement_equals_the_double_loop() -> None:
    close(cosine_agreement(BCE["student"], BCE["teacher"]), BCE["cosine_loss_one_minus"])


def test_agreement_is_ln_2_at_zero_logits_and_finite_at_huge_ones() -> None:
    teacher = torch.randn(2, 3, 8)
    assert binary_agreement(torch.zeros(4, 3, 8), teacher).item() == pytest.approx(math.log(2))
    huge = torch.full((4, 3, 8), -1e4, requires_grad=True)
    loss = binary_agreement(huge, teacher)
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, huge)[0]).all()


def test_the_teacher_receives_no_gradient() -> None:
    student, teacher = torch.randn(4, 5, 8, requires_grad=True), torch.randn(2, 5, 8, requires_grad=True)
    for target in ("hard", "soft"):
        loss, _, _ = bits_loss(student, teacher, target=target, source="student_teacher_mean")
        assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("centered", [False, True])
def test_coding_rate_and_its_gradient_equal_the_definition(case: int, centered: bool) -> None:
    name = "centered" if centered else "uncentered"
    rows, eps = RATE[f"c{case}_logits"].requires_grad_(), RATE[f"c{case}_eps"]
    rate = coding_rate(rows, eps, centered=centered)
    close(rate, RATE[f"c{case}_R_{name}"])
    close(gradient(rate, rows)[0], RATE[f"c{case}_grad_R_{name}"])
    close(coding_rate(rows, eps, centered=centered, eps_squared=True), RATE[f"c{case}_R_{name}_eps_squared"])
    close(rate_factor(*rows.shape), RATE[f"c{case}_gamma"])


@pytest.mark.parametrize(
    ("source", "key"),
    [("student_global", "student"), ("student_teacher_mean", "student_teacher_mean"), ("student_concat", "concat")],
)
def test_rate_sources_equal_the_definition(source: str, key: str) -> None:
    student = RATE["v_student"].requires_grad_()
    eps = RATE["v_eps"]
    rate, _ = mean_rate(student, RATE["v_teacher"], eps, source=source)
    close(rate, RATE[f"v_R_{key}"])
    close(gradient(rate, student)[0], RATE[f"v_grad_R_{key}"])


def test_default_objective_and_its_gradient_equal_the_definition() -> None:
    student = TOTAL["student"].requires_grad_()
    loss, agreement, rate = bits_loss(student, TOTAL["teacher"], beta=TOTAL["beta"], eps=TOTAL["eps"])
    for ours, key in ((loss, "loss"), (agreement, "loss_bce"), (rate, "loss_rate")):
        close(ours, TOTAL[key])
    close(gradient(loss, student)[0], TOTAL["grad_student"])


def test_rate_ignores_the_scale_of_rows_and_rotations() -> None:
    rows = torch.randn(12, 7, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    expected = coding_rate(rows, 0.05)
    close(coding_rate(rows * torch.rand(12, 1, dtype=torch.float64).add(0.1), 0.05), expected)
    close(coding_rate(rows @ turned, 0.05), expected)


def test_rate_spans_collapse_to_orthonormal_rows() -> None:
    bits, eps = 8, 0.05
    equal = torch.ones(16, bits, dtype=torch.float64)
    close(coding_rate(equal, eps), 0.5 * math.log(1 + bits / eps))
    basis = torch.eye(bits, dtype=torch.float64).repeat(2, 1)
    close(coding_rate(basis, eps), bits / 2 * math.log(1 + 1 / eps))
    assert coding_rate_bound(16, bits, eps) == pytest.approx(bits / 2 * math.log(1 + 1 / eps))


def test_both_forms_of_the_rate_agree_for_few_and_many_rows() -> None:
    wide = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    unit = torch.nn.functional.normalize(wide, dim=1)
    direct = 0.5 * torch.linalg.slogdet(torch.eye(9, dtype=torch.float64) + 9 / 0.05 / 5 * unit.T @ unit).logabsdet
    close(coding_rate(wide, 0.05), direct)
    close(gradient(coding_rate(wide, 0.05), wide)[0], gradient(direct, wide)[0])


def test_rate_refuses_rows_that_are_not_finite() -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        coding_rate(torch.full((4, 4), float("nan")), 0.05)


@pytest.mark.parametrize(
    "choice", [{"reduction": "max"}, {"target": "half"}, {"agreement": "l2"}, {"source": "all"}, {"scope": "world"}]
)
def test_an_unknown_choice_is_refused_before_training(choice: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="use"):
        Bits(head={}, **choice)


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = torch.randn(3, 6, 16), torch.randn(2, 6, 16)
    full, _, _ = bits_loss(student.half().float(), teacher.half().float())
    half, _, _ = bits_loss(student.half(), teacher.half())
    assert half.dtype == torch.float32 and torch.equal(full, half)
