"""BITS: the student predicts the teacher's binary message, and a coding rate keeps the channel in use.

Source: Self-Supervised Learning as Discrete Communication, arXiv 2602.09764, equations 8 to 10.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.distributed import gather_rows, is_distributed
from pretrain.messages import to_bits
from pretrain.objectives.base import Objective, Output, check_views, partners
from pretrain.ops import at_least_float32, coding_rate, coding_rate_bound, rate_factor

AGREEMENT = {"reduction": "mean", "target": "hard", "tau": 1.0, "tau_student": 1.0}
PAIRS = ("all", "global_only")
SOURCES = ("student_global", "student_teacher_mean", "student_concat", "student_all")


def targets_from(teacher: Tensor, target: str, tau: float) -> Tensor:
    """Messages of teacher logits, without gradient: `hard` bits (logit > 0) or `soft` shares sigma(logit/tau)."""
    if target == "hard":
        return to_bits(teacher.detach()).to(teacher.dtype)
    if target == "soft" and tau > 0:
        return torch.sigmoid(teacher.detach() / tau)
    raise ValueError(f"unknown target {target!r} with tau {tau}; use 'hard', or 'soft' with tau > 0")


def check_pairs(pairs: str) -> None:
    """Raises ValueError for an unknown rule."""
    if pairs not in PAIRS:
        raise ValueError(f"unknown pairs {pairs!r}; use {' or '.join(PAIRS)}")


def binary_agreement(
    student: Tensor,
    teacher: Tensor,
    *,
    reduction: str = "mean",
    target: str = "hard",
    tau: float = 1.0,
    tau_student: float = 1.0,
    pairs: str = "all",
) -> Tensor:
    """Binary cross-entropy of student logits against teacher messages, averaged over images and cross pairs.

    student (V, N, B), teacher (2, N, B) raw logits; scalar in nats per bit (`reduction="mean"`) or per message ("sum").
    `pairs="global_only"` leaves local views out. BCE is linear in its target, bce(a, z) = softplus(a) - a z, so the sum
    over pairs needs each student view once. Raises ValueError on shapes, targets or reductions it does not know.
    Source: BITS, arXiv 2602.09764, eq. 8, extended to local views.
    """
    check_views(student, teacher)
    check_pairs(pairs)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; use mean or sum")
    student, teacher = at_least_float32(student) / tau_student, at_least_float32(teacher)
    if pairs == "global_only":
        student = student[:2]
    views, n, bits = student.shape
    wanted, count = partners(targets_from(teacher, target, tau), views)
    total = (-F.logsigmoid(-student) * count - student * wanted).sum()  # -logsigmoid(-a) = softplus(a), exact gradient
    return total / ((2 * views - 2) * n * (bits if reduction == "mean" else 1))


def cosine_agreement(student: Tensor, teacher: Tensor, *, pairs: str = "all") -> Tensor:
    """One minus the cosine between student logits and +-1 codes of the teacher, mean over images and cross pairs.

    Source: BITS, arXiv 2602.09764, Table 3.
    """
    check_views(student, teacher)
    check_pairs(pairs)
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if pairs == "global_only":
        student = student[:2]
    views, n, bits = student.shape
    wanted, _ = partners(2 * targets_from(teacher, "hard", 1.0) - 1, views)
    similarity = (F.normalize(student, dim=-1) * wanted).sum() / bits**0.5
    return 1 - similarity / ((2 * views - 2) * n)


def mean_rate(
    student: Tensor,
    teacher: Tensor,
    eps: float,
    *,
    source: str = "student_global",
    scope: str = "global",
    centered: bool = False,
    eps_squared: bool = False,
) -> tuple[Tensor, int]:
    """Coding rate in nats averaged over the matrices that `source` names, and the rows M of each.

    student_global: each global student view; student_teacher_mean: (unit student + unit teacher)/2 of each global view;
    student_concat: both stacked; student_all: every view. `scope` global gathers the rows of all processes.
    """
    if source not in SOURCES or scope not in ("global", "local"):
        raise ValueError(
            f"unknown rate source {source!r} or scope {scope!r}; use {', '.join(SOURCES)}; global or local"
        )
    views = [at_least_float32(view) for view in (student if source == "student_all" else student[:2])]
    if source == "student_concat":
        views = [torch.cat(views)]
    if source == "student_teacher_mean":
        unit = [F.normalize(at_least_float32(t.detach()), dim=-1) for t in teacher]
        views = [(F.normalize(s, dim=-1) + t) / 2 for s, t in zip(views, unit, strict=True)]
    rows = [gather_rows(view) if scope == "global" else view for view in views]
    normalize = source != "student_teacher_mean"  # the mean of two unit rows is not normalised again
    rates = [coding_rate(r, eps, centered=centered, eps_squared=eps_squared, normalize=normalize) for r in rows]
    return torch.stack(rates).mean(), len(rows[0])


def bits_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.1,
    eps: float = 0.05,
    reduction: str = "mean",
    gamma: bool = True,
    agreement: str = "bce",
    target: str = "hard",
    tau: float = 1.0,
    tau_student: float = 1.0,
    pairs: str = "all",
    normalize_logits: bool = False,
    source: str = "student_global",
    scope: str = "global",
    center: bool = False,
    eps_squared: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The BITS objective: (loss, agreement, rate) with rate = -gamma R and loss = agreement + beta rate.

    student (V, N, B), teacher (2, N, B) raw logits. Defaults where the paper is silent: mean over bits, gamma on,
    un-squared eps, un-centred second moment, raw logits in the BCE, all cross pairs, rows of all processes.
    Source: BITS, arXiv 2602.09764, eq. 8 to 10.
    """
    check_views(student, teacher)
    if normalize_logits:
        student, teacher = (F.normalize(at_least_float32(logits), dim=-1) for logits in (student, teacher))
    if agreement == "bce":
        agree = binary_agreement(
            student, teacher, reduction=reduction, target=target, tau=tau, tau_student=tau_student, pairs=pairs
        )
    elif agreement == "cosine":
        given = {"reduction": reduction, "target": target, "tau": tau, "tau_student": tau_student}
        if foreign := [key for key, value in given.items() if value != AGREEMENT[key]]:
            raise ValueError(
                f"{foreign[0]}={given[foreign[0]]!r} is of agreement=bce; the cosine has hard targets alone"
            )
        agree = cosine_agreement(student, teacher, pairs=pairs)
    else:
        raise ValueError(f"unknown agreement {agreement!r}; use bce or cosine")
    rate, m = mean_rate(student, teacher, eps, source=source, scope=scope, centered=center, eps_squared=eps_squared)
    rate = -rate * (rate_factor(m, student.shape[-1]) if gamma else 1.0)
    return agree + beta * rate, agree, rate


class Bits(Objective):
    """BITS with every choice the paper leaves open as a keyword (see `bits_loss`)."""

    min_rows = 2
    batch_statistic = "coding rate"
    binary = True

    def __init__(self, head: dict[str, Any], **choices: Any):
        super().__init__(head)
        self.choices = choices
        example = torch.zeros(2, 2, 4)
        bits_loss(example, example, **choices)  # an unknown choice is refused before training starts
        self.bits = int(head.get("out", 0))
        divisor = choices.get("eps", 0.05)
        self.divisor = divisor**2 if choices.get("eps_squared") else divisor
        if choices.get("agreement", "bce") == "bce":
            self.chance = math.log(2) * (self.bits if choices.get("reduction") == "sum" else 1)

    def floor(self, rows: int) -> float:
        """Share of its bound that the rate has when all logits point one way."""
        eps = self.choices.get("eps", 0.05)
        return math.log1p(self.bits / eps) / 2 / coding_rate_bound(rows, self.bits, eps)

    def remarks(self, rows: int) -> list[str]:
        """Whether agreement and rate are on scales so different that one drowns the other.

        The agreement starts at its chance value, the rate can weigh beta times its bound at most. Conventions that
        agree with the published beta give a ratio of 2 to 10; sum with gamma gives 600, mean without gamma 0.02.
        """
        beta = self.choices.get("beta", 0.1)
        gamma = rate_factor(rows, self.bits) if self.choices.get("gamma", True) else 1.0
        weight = beta * gamma * coding_rate_bound(rows, self.bits, self.divisor)
        ratio = (self.chance or 1.0) / weight if weight > 0 else math.inf
        if 0.2 <= ratio <= 50:
            return []
        drowned = "rate" if ratio > 50 else "agreement"
        return [
            f"the agreement starts at {self.chance or 1.0:.3g}, the rate weighs at most {weight:.3g} (beta = {beta}): "
            f"the {drowned} will hardly count; use reduction=mean with gamma=true, or reduction=sum with gamma=false"
        ]

    def forward(self, student: Tensor, teacher: Tensor | None) -> Output:
        """Loss of one step; logs agreement, rate and rate over its bound."""
        assert teacher is not None
        try:
            loss, agreement, rate = bits_loss(student, teacher, **self.choices)
        except FloatingPointError:
            if not is_distributed():
                raise
            loss = agreement = rate = student.sum() * math.nan  # the rows of all follow, on which all stop together
        with torch.no_grad():
            rows = gather_rows(student[0].detach())
            eps = self.choices.get("eps", 0.05)
            share = coding_rate(rows, eps) / coding_rate_bound(len(rows), rows.shape[1], eps)
        return Output(loss, {"agreement": agreement.detach(), "rate": rate.detach(), "rate_over_bound": share})
