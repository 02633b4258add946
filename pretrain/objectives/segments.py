"""What IMSVD and MUSIC share: information measures on the joint probabilities of softly discretised segments.

Source: IMSVD, arXiv 2501.03469, and its public code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.distributed import gather_rows
from pretrain.objectives.base import Objective, Output
from pretrain.ops import at_least_float32

FLOOR = 1e-8  # of each probability, so that a product of two stays above 1e-16 and its logarithm finite


def block_probabilities(x: Tensor, bin_size: int, temperature: float) -> Tensor:
    """Softmax of each block of `bin_size` columns, floored at 1e-8: (n, D) -> (n, D / bin_size, bin_size).

    Raises ValueError when bin_size does not divide D or the temperature is not positive.
    """
    if x.ndim != 2 or bin_size < 1 or x.shape[1] % bin_size:
        raise ValueError(f"bin_size {bin_size} does not divide the width of rows {tuple(x.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    blocks = at_least_float32(x).unflatten(1, (-1, bin_size))
    return torch.softmax(blocks / temperature, -1).clamp(min=FLOOR)


def joint_probabilities(p1: Tensor, p2: Tensor) -> Tensor:
    """Mean outer product of the rows of all processes: two (n, S, k) -> (S k, S k); not symmetrised."""
    rows1, rows2 = gather_rows(p1.flatten(1)), gather_rows(p2.flatten(1))
    return rows1.T @ rows2 / len(rows1)


def joint_entropy_loss(
    x1: Tensor,
    x2: Tensor,
    *,
    bin_size: int,
    temperature: float,
    dia_coeff: float = 1,
    off_coeff: float = 1,
    ti_coeff: float = 1,
    ti_form: str = "neg_log_inner",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, dia, off, ti): the terms already multiplied by their coefficients, loss their sum; nats.

    x1, x2 (n, S k) projector outputs of two views. dia: mean over variables of P ln P on the diagonal; off: mean over
    ordered pairs of variables of the sum of P ln P in their block; ti: mean negative log of the views' inner product
    (`ti_form="one_minus_inner"`: one minus it). The joint matrix covers all processes, ti this one.
    Raises ValueError on shapes, bins, temperature or forms it does not know. Source: arXiv 2501.03469, public code.
    """
    if x1.shape != x2.shape:
        raise ValueError(f"views of shape {tuple(x1.shape)} and {tuple(x2.shape)} differ")
    if ti_form not in ("neg_log_inner", "one_minus_inner"):
        raise ValueError(f"unknown ti_form {ti_form!r}; use neg_log_inner or one_minus_inner")
    with torch.autocast(x1.device.type, enabled=False):
        p1, p2 = (block_probabilities(x, bin_size, temperature) for x in (x1, x2))
        variables = p1.shape[1]
        if variables < 2:
            raise ValueError(f"{variables} variable of {bin_size} bins; the loss compares at least two")
        joint = joint_probabilities(p1, p2)
        entries = joint * joint.clamp(min=FLOOR**2).log()
        dia = entries.diagonal().sum() / variables
        blocks = entries.view(variables, bin_size, variables, bin_size)
        within = blocks.diagonal(dim1=0, dim2=2).sum()
        off = (entries.sum() - within) / (variables * (variables - 1))
        inner = (p1 * p2).sum(-1)  # (n, S)
        ti = -inner.log().mean() if ti_form == "neg_log_inner" else (1 - inner).mean()
        dia, off, ti = dia_coeff * dia, off_coeff * off, ti_coeff * ti
    return dia + off + ti, dia, off, ti


class JointEntropy(Objective):
    """Joint entropies of two views; `bins` is k, the number of variables is the head's width over it."""

    uses_teacher = False
    two_views = True
    min_rows = 2
    batch_statistic = "joint distribution"

    def __init__(
        self,
        head: dict[str, Any],
        *,
        bins: int = 80,
        temperature: float = 1.0,
        dia_coeff: float = 1.0,
        off_coeff: float = 1.0,
        ti_coeff: float = 1.0,
        ti_form: str = "neg_log_inner",
    ):
        super().__init__(head)
        width = int(head["out"])
        if width % bins or width // bins < 2:
            raise ValueError(f"bins={bins} must divide the head's width {width} into two or more variables")
        self.options = {
            "bin_size": bins, "temperature": temperature, "dia_coeff": dia_coeff, "off_coeff": off_coeff,
            "ti_coeff": ti_coeff, "ti_form": ti_form,
        }  # fmt: skip

    def forward(self, student: Tensor, teacher: Tensor | None) -> Output:
        """Loss of one step on the two views."""
        loss, dia, off, ti = joint_entropy_loss(student[0], student[1], **self.options)  # type: ignore[arg-type]
        return Output(loss, {"dia": dia.detach(), "off": off.detach(), "agreement": ti.detach()})
