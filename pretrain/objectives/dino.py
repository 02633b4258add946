"""DINO: cross-entropy between centred, sharpened teacher prototypes and the student's.

Source: Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294, and its public code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.distributed import mean_over_processes
from pretrain.objectives.base import Objective, Output, check_views
from pretrain.ops import at_least_float32
from pretrain.schedules import linear_then_constant


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, *, student_temp: float, teacher_temp: float) -> Tensor:
    """Mean cross-entropy over cross pairs and images, in nats.

    student (V, N, K), teacher (2, N, K) raw prototype scores, center (1, K). One view at a time: with K = 65,536 a
    float32 copy of all views would not fit. Raises ValueError on shapes or temperatures <= 0.
    """
    check_views(student, teacher)
    if student_temp <= 0 or teacher_temp <= 0:
        raise ValueError(f"temperatures must be positive, got student {student_temp}, teacher {teacher_temp}")
    wanted = [torch.softmax((at_least_float32(t.detach()) - center) / teacher_temp, -1) for t in teacher]
    total = student.new_zeros((), dtype=wanted[0].dtype)
    for v, view in enumerate(student):
        target = wanted[1 - v] if v < 2 else wanted[0] + wanted[1]
        total = total - (target * torch.log_softmax(at_least_float32(view) / student_temp, -1)).sum()
    return total / ((2 * len(student) - 2) * student.shape[1])


@torch.no_grad()
def next_center(center: Tensor, teacher: Tensor, momentum: float) -> Tensor:
    """Moving average of the mean teacher row over both views and all processes: (1, K), teacher (..., K)."""
    mean = mean_over_processes(at_least_float32(teacher).flatten(0, -2).mean(0, keepdim=True))
    return center * momentum + mean.to(center.dtype) * (1 - momentum)


class DINO(Objective):
    """DINO with its centre, teacher-temperature warm-up and the freezing of the last layer."""

    batch_statistic = ""  # the centre follows the whole batch, but after the loss of all its parts
    center: Tensor

    def __init__(
        self,
        head: dict[str, Any],
        *,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        warmup_teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 0,
        center_momentum: float = 0.9,
        freeze_last_layer: int = 1,
    ):
        super().__init__(head)
        self.student_temp, self.center_momentum, self.freeze_last_layer = (
            student_temp,
            center_momentum,
            freeze_last_layer,
        )
        self.ramp = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.teacher_temp = warmup_teacher_temp if warmup_teacher_temp_epochs else teacher_temp
        self.chance = math.log(int(head["prototypes"]))
        self.means: list[Tensor] = []  # of the teacher's rows, one a part of the step
        self.register_buffer("center", torch.zeros(1, int(head["prototypes"])))

    def take_over(self, rows: Tensor) -> None:
        """Begin with the centre of the teacher's rows: without it, a trained teacher names one prototype for all."""
        self.center.copy_(rows.mean(0, keepdim=True))

    def start_epoch(self, epoch: int) -> None:
        """Set the teacher temperature of this epoch."""
        self.teacher_temp = float(linear_then_constant(*self.ramp, epochs=epoch + 1)[epoch])

    def drop_gradients(self, head: nn.Module, epoch: int) -> None:
        """Freeze the last layer during the first epochs: no gradient, hence no weight decay either."""
        if epoch < self.freeze_last_layer:
            for parameter in head.last_layer():  # type: ignore[operator]
                parameter.grad = None

    def forward(self, student: Tensor, teacher: Tensor | None) -> Output:
        """Loss of one step or a part of it, after which the centre moves; logs the loss and the teacher's entropy."""
        assert teacher is not None
        loss = dino_loss(student, teacher, self.center, student_temp=self.student_temp, teacher_temp=self.teacher_temp)
        with torch.no_grad():
            p = torch.softmax((at_least_float32(teacher) - self.center) / self.teacher_temp, -1)
            entropy = -torch.xlogy(p, p).sum(-1).mean()
            self._move_center(at_least_float32(teacher).flatten(0, -2).mean(0, keepdim=True))
        return Output(loss, {"agreement": loss.detach(), "teacher_entropy": entropy})

    def _move_center(self, mean: Tensor) -> None:
        """Note the mean teacher row of a part of the step; after the last one, move the centre by all of them."""
        self.means.append(mean)
        if len(self.means) >= self.parts:
            self.center.copy_(next_center(self.center, torch.stack(self.means).mean(0), self.center_momentum))
            self.means.clear()
