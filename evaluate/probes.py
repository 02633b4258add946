"""Linear probes, all learning rates and inputs of a sweep at once.

Heads that read the same input are one matrix: one product gives the logits of every rate. Their losses are summed, so a
head's gradient is its own, and SGD with momentum is applied by hand.
Source: the linear evaluation of DINOv2 (Oquab et al. 2023, public code).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM = 0.9
INIT_STD = 0.01
LOGITS_AT_ONCE = 50_000_000

#: input of a head: class tokens of so many last blocks, and whether the average of the last block's patches is added
Input = tuple[int, bool]


@dataclass(frozen=True)
class Tokens:
    """What heads read, row by row: `cls` (L, n, D), oldest block first, and `average` (n, D) if there is one."""

    cls: Tensor
    average: Tensor | None

    def __len__(self) -> int:
        return self.cls.shape[1]

    def rows(self, index: Tensor | slice) -> Tokens:
        """Some of the rows."""
        return Tokens(self.cls[:, index], None if self.average is None else self.average[index])

    def input(self, kind: Input) -> Tensor:
        """Input of a head (n, width): class tokens, the oldest selected block first, then the average."""
        blocks, with_average = kind
        parts = list(self.cls[-blocks:])
        if with_average:
            assert self.average is not None
            parts.append(self.average)
        return torch.cat(parts, dim=1)

    def width(self, kind: Input) -> int:
        """Width of `input`."""
        return self.cls.shape[2] * (kind[0] + kind[1])


class Group:
    """Heads that read one input and start from the same weights: one matrix (R C, width) for R rates and C classes."""

    def __init__(self, kind: Input, rates: Sequence[float], start: Tensor):
        self.kind, self.classes = kind, len(start)
        self.rates = torch.tensor(rates, dtype=torch.float32, device=start.device)
        self.weight = start.float().repeat(len(rates), 1)  # (R C, width)
        self.bias = torch.zeros(len(self.weight), device=start.device)
        self.momenta = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.alive = torch.ones(len(rates), dtype=torch.bool, device=start.device)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, R, C) of inputs (n, width)."""
        return torch.addmm(self.bias, x, self.weight.T).view(len(x), -1, self.classes)

    def step(self, x: Tensor, labels: Tensor, decay: float) -> None:
        """One step of SGD on the mean cross-entropy of each head; a head whose loss is not finite is out for good."""
        each = torch.arange(len(x), device=x.device)
        log_probability = self.logits(x).log_softmax(2)  # (n, R, C)
        self.alive &= torch.isfinite(log_probability[each, :, labels].mean(0))
        error = log_probability.exp_()  # gradient of the loss: (probability - truth) / n
        error[each, :, labels] -= 1
        error = error.div_(len(x)).flatten(1)  # (n, R C): a column is one head's own, so NaN stays with its head
        rate = (self.rates * decay).repeat_interleave(self.classes)
        for value, momentum, gradient in (
            (self.weight, self.momenta[0], error.T @ x),
            (self.bias, self.momenta[1], error.sum(0)),
        ):
            momentum.mul_(MOMENTUM).add_(gradient)
            value.sub_(momentum * (rate[:, None] if value.ndim == 2 else rate))


class Sweep:
    """Heads for every input x rate, trained together; heads are ordered input by input, rate by rate.

    inputs: what heads read; rates: learning rates as used (already scaled with the batch); steps: of the whole cosine
    schedule to 0. `starts` gives the first weights (C, width) of each input, else drawn from N(0, 0.01^2) with `seed`.
    """

    def __init__(
        self,
        widths: Mapping[Input, int],
        rates: Sequence[float],
        classes: int,
        steps: int,
        *,
        seed: int = 0,
        starts: Mapping[Input, Tensor] | None = None,
        device: str | torch.device = "cpu",
    ):
        generator = torch.Generator().manual_seed(seed)
        drawn = starts or {
            k: torch.randn(classes, width, generator=generator) * INIT_STD for k, width in widths.items()
        }
        self.groups = [Group(kind, rates, drawn[kind].to(device)) for kind in widths]
        self.heads = [(*kind, rate) for kind in widths for rate in rates]
        self.steps, self.done = steps, 0

    def step(self, tokens: Tokens, labels: Tensor) -> None:
        """One step of every head on a batch: labels (n,) class indices."""
        decay = 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        for group in self.groups:
            group.step(tokens.input(group.kind), labels, decay)
        self.done += 1

    @property
    def diverged(self) -> list[int]:
        """Heads that stopped because their loss was not finite."""
        alive = torch.cat([group.alive for group in self.groups]).tolist()
        return [head for head, fine in enumerate(alive) if not fine]

    def places(self, tokens: Tokens, labels: Tensor) -> Tensor:
        """Place of the true class by every head, 0 the best, equal logits to the lower class: (heads, n) int32.

        A diverged head has no valid place: the number of classes.
        """
        chunk = max(1, LOGITS_AT_ONCE // (len(self.groups[0].weight)))
        spans = [slice(start, start + chunk) for start in range(0, len(tokens), chunk)]
        parts = [[group_places(g, tokens.rows(s).input(g.kind), labels[s]) for s in spans] for g in self.groups]
        return torch.cat([torch.cat(pieces, dim=1) for pieces in parts])

    def predictions(self, head: int, tokens: Tokens) -> Tensor:
        """Predicted class of every row by one head: (n,) int64."""
        group, rate = divmod(head, len(self.groups[0].rates))
        return self.groups[group].logits(tokens.input(self.groups[group].kind))[:, rate].argmax(1)

    def weights(self, head: int) -> tuple[Tensor, Tensor]:
        """Weight (C, width) and bias (C,) of one head."""
        index, rate = divmod(head, len(self.groups[0].rates))
        group = self.groups[index]
        rows = slice(rate * group.classes, (rate + 1) * group.classes)
        return group.weight[rows], group.bias[rows]


def group_places(group: Group, x: Tensor, labels: Tensor) -> Tensor:
    """Place of the true class by every head of a group: (R, n) int32."""
    logits = group.logits(x)  # (n, R, C)
    truth = logits.gather(2, labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1))
    lower = torch.arange(group.classes, device=x.device) < labels.view(-1, 1, 1)
    place = (logits > truth).sum(2) + ((logits == truth) & lower).sum(2)
    return place.masked_fill(~group.alive, group.classes).T.int()


def batch_table(n: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Rows of every step (steps, batch_size): permutations of the n rows, one after the other without a gap."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch_size // n)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(passes)])
    return order[: steps * batch_size].view(steps, batch_size)


def select(top1: Sequence[float]) -> int:
    """Head with the best final accuracy, the first in order among equals."""
    return max(range(len(top1)), key=lambda head: (top1[head], -head))
