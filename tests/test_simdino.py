"""SimDINO against the published reference values."""

from __future__ import annotations

import pytest
import torch
from golden_values import by_view, close, gradient, load

from pretrain.objectives.simdino import SimDINO, simdino_loss

GOLDEN = load("simdino_mcr.npz")


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("kind", [0, 1])
def test_loss_terms_and_gradient_equal_the_reference(case: int, kind: int) -> None:
    raw, views = GOLDEN[f"c{case}_student_raw"].requires_grad_(), GOLDEN[f"c{case}_ncrops"]
    student, teacher = by_view(raw, views), by_view(GOLDEN[f"c{case}_teacher_raw"], 2)
    loss, comp, expa = simdino_loss(
        student, teacher, eps=GOLDEN[f"c{case}_eps"], coeff=GOLDEN[f"c{case}_coeff"], expa_type=kind
    )
    for ours, key in ((loss, "loss"), (comp, "comp"), (expa, "expa")):
        close(ours, GOLDEN[f"c{case}_e{kind}_{key}"])
    close(gradient(loss, raw)[0], GOLDEN[f"c{case}_e{kind}_grad_student_raw"])


def test_unknown_expansion_and_wrong_shapes_are_refused() -> None:
    student, teacher = torch.randn(4, 5, 6), torch.randn(2, 5, 6)
    with pytest.raises(ValueError, match="expa_type 2"):
        simdino_loss(student, teacher, eps=0.05, coeff=1, expa_type=2)
    with pytest.raises(ValueError, match="expected student"):
        simdino_loss(student, teacher[:1], eps=0.05, coeff=1, expa_type=0)


def test_expansion_over_its_bound_is_at_most_one() -> None:
    output = SimDINO(head={}).forward(torch.randn(4, 64, 16), torch.randn(2, 64, 16))
    assert 0 < output.scalars["rate_over_bound"] <= 1
