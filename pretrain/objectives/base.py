"""What the training loop needs from an objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pretrain.distributed import world_size


@dataclass(frozen=True)
class Output:
    """Loss of a step (a scalar with gradient) and figures to log (detached scalars)."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A self-supervised objective: head outputs of student and teacher -> `Output`.

    Subclasses store keyword hyper-parameters, name their head in `head` (as `heads.build_head` reads it, without `dim`)
    and implement `forward(student, teacher)`: student (V, N, B) with views 0 and 1 global, teacher (2, N, B) without
    gradient, or None when `uses_teacher` is False. State that a resumed run needs lives in buffers.
    """

    uses_teacher: ClassVar[bool] = True
    #: fewest rows (images of all processes) for which the statistic of the loss is defined
    min_rows: ClassVar[int] = 1
    #: whether the loss is defined on two views alone
    two_views: ClassVar[bool] = False
    #: what the loss forms over the whole batch and parts of it would change; empty: the loss is a mean over images
    batch_statistic: ClassVar[str] = "statistic"
    #: whether the sign of a head output is a bit of a message
    binary: ClassVar[bool] = False
    #: said wherever results of the objective appear
    label: ClassVar[str] = ""

    def __init__(self, head: dict[str, Any]):
        super().__init__()
        self.head = dict(head)
        #: agreement of a student that says the same of every image; None where no such value is known
        self.chance: float | None = None
        #: calls of `forward` that make a step, more than one where gradients are accumulated
        self.parts = 1

    def forward(self, student: Tensor, teacher: Tensor | None) -> Output:
        """Loss of one step."""
        raise NotImplementedError

    def take_over(self, rows: Tensor) -> None:
        """Set what a run does not keep but the loss needs, where a trained head goes on; rows (n, B) of the teacher."""

    def start_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch."""

    def floor(self, rows: int) -> float:
        """Share of its bound that the rate of `rows` images has when all point one way; 0 without a rate."""
        return 0.0

    def remarks(self, rows: int) -> list[str]:
        """What looks wrong in the settings, in words, before any step; `rows` images of all processes."""
        return []

    def drop_gradients(self, head: nn.Module, epoch: int) -> None:
        """Remove gradients that must not reach the optimiser in this epoch."""

    def check_batch(self, rows: int, views: int) -> None:
        """Raise ValueError when the global batch or the number of views is too small for the objective."""
        if rows < self.min_rows:
            raise ValueError(
                f"{type(self).__name__} forms a statistic over the batch and needs at least {self.min_rows} images "
                f"in all processes, got {rows}; raise trainer.batch_size"
            )
        if views < 2:
            raise ValueError(f"{type(self).__name__} needs two global views, got {views} views")
        if self.two_views and views > 2:
            raise ValueError(f"{type(self).__name__} trains on two views, got {views}; set views.local_crops=0")


def cross_pairs(views: int, teacher_views: int = 2) -> Iterator[tuple[int, int]]:
    """Pairs (teacher view q, student view v) with q != v; 2V - 2 of them for two teacher views."""
    return ((q, v) for q in range(teacher_views) for v in range(views) if q != v)


def partners(targets: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """For each student view the sum of its targets over cross pairs, and their number.

    targets (2, N, B) -> sums (V, N, B), counts (V, 1, 1): the other global view for views 0 and 1, both for the rest.
    """
    both = targets.sum(0, keepdim=True)
    sums = torch.cat([targets.flip(0), both.expand(views - 2, -1, -1)])
    counts = torch.tensor([1.0, 1.0] + [2.0] * (views - 2), dtype=targets.dtype, device=targets.device)
    return sums, counts.view(-1, 1, 1)


def check_views(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless student is (V, N, B) with V >= 2 and teacher (2, N, B) of the same rows and width."""
    if student.ndim != 3 or teacher.ndim != 3 or len(student) < 2 or len(teacher) != 2:
        raise ValueError(
            f"expected student (V, N, B) with V >= 2 and teacher (2, N, B), got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    if student.shape[1:] != teacher.shape[1:]:
        raise ValueError(f"student rows {tuple(student.shape[1:])} and teacher rows {tuple(teacher.shape[1:])} differ")


def global_rows(local: int) -> int:
    """Rows of all processes for `local` rows on this one."""
    return local * world_size()
