"""The moving-average teacher, and the reset of projection heads."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.distributed import is_distributed, is_sharded, local


class Network(nn.Module):
    """Backbone and head: a list of V views -> head output (V, N, B)."""

    backbone: Any
    head: Any

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: list[Tensor]) -> Tensor:
        """Forward views (N, 3, H, W) in order; consecutive ones of a size share a backbone call, all one head call."""
        groups: list[list[Tensor]] = []
        for view in views:
            if groups and groups[-1][-1].shape == view.shape:
                groups[-1].append(view)
            else:
                groups.append([view])
        features = torch.cat([self.backbone(torch.cat(group)) for group in groups])  # (V N, D), view-major
        return self.head(features).view(len(views), len(views[0]), -1)


def make_teacher(student: Any) -> Any:
    """An exact copy of the student without gradients and without stochastic depth."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # type: ignore[assignment]
    return teacher


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moving average of all parameters: teacher <- m teacher + (1 - m) student; buffers are left alone.

    Source: DINO, arXiv 2104.14294.
    """
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    ours, theirs = zip(*[(local(t), local(s).to(t.dtype)) for t, s in pairs], strict=True)
    torch._foreach_mul_(ours, momentum)
    torch._foreach_add_(ours, theirs, alpha=1 - momentum)


@dataclass(frozen=True)
class HeadReset:
    """When and how projection heads are drawn anew (BITS-reset).

    every_epochs: reset before each epoch e > 0 with e mod every_epochs == 0 (0: never). teacher: `copy` gives the
    teacher's head the same new weights, `ema` leaves it alone, `independent` draws another. clear_moments drops the
    optimiser's state of head parameters. rewarm_iters: linear learning-rate warm-up after a reset. at_start: also
    before the first epoch, for runs that continue a checkpoint.
    Source: BITS, arXiv 2602.09764, section 4; the paper leaves all but the period open.
    """

    every_epochs: int = 0
    teacher: str = "copy"
    clear_moments: bool = True
    rewarm_iters: int = 0
    at_start: bool = False

    def __post_init__(self) -> None:
        if self.teacher not in ("copy", "ema", "independent"):
            raise ValueError(f"head_reset.teacher={self.teacher!r}; use copy, ema or independent")
        if self.every_epochs < 0 or self.rewarm_iters < 0:
            raise ValueError("head_reset.every_epochs and rewarm_iters must be 0 or positive")

    def due(self, epoch: int) -> bool:
        """Whether the heads are redrawn before this epoch."""
        if epoch == 0:
            return self.at_start
        return self.every_epochs > 0 and epoch % self.every_epochs == 0

    def last_before(self, epoch: int) -> int | None:
        """The latest epoch up to and including this one that began with a reset."""
        return next((e for e in range(epoch, -1, -1) if self.due(e)), None)

    def apply(
        self,
        student_head: nn.Module,
        teacher_head: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        seed: int,
        epoch: int,
    ) -> None:
        """Redraw in place, the same on every process: the draw depends on (seed, epoch) alone."""
        generator = torch.Generator().manual_seed(hash_seed(seed, epoch))
        redraw(student_head, generator)
        if teacher_head is not None and self.teacher == "copy":
            teacher_head.load_state_dict(student_head.state_dict())
        elif teacher_head is not None and self.teacher == "independent":
            redraw(teacher_head, generator)
        if self.clear_moments:
            for parameter in student_head.parameters():
                optimizer.state.pop(parameter, None)


def redraw(head: nn.Module, generator: torch.Generator) -> None:
    """Redraw a head and take rank 0's draw everywhere, as a safeguard."""
    head.redraw(generator)  # type: ignore[operator]
    if is_distributed():
        for value in head.state_dict().values():
            if not is_sharded(value):
                dist.broadcast(value, 0)


def hash_seed(*numbers: int) -> int:
    """One 63-bit seed from several integers (splitmix64 steps), so that neighbouring inputs give unrelated streams."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
