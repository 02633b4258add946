"""Linear and MLP probes, all learning rates and inputs of a sweep at once.

Heads that read the same input are one matrix (a layer): one product gives the logits of every rate. Their losses are
summed, so a head's gradient is its own, and SGD with momentum is applied by hand.
Source: the linear evaluation of DINOv2 (Oquab et al. 2023, public code).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MOMENTUM = 0.9
INIT_STD = 0.01
MLP_STD = 0.02
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


class Rows(Protocol):
    """Tokens that are read some rows at a time."""

    def __len__(self) -> int: ...

    def rows(self, index: Any) -> Tokens:
        """Some of the rows."""


class Group:
    """Linear heads that read one input and start from the same weights: one matrix (R C, width), R rates, C classes."""

    def __init__(self, kind: Input, rates: Sequence[float], start: Sequence[Tensor]):
        self.kind, self.classes = kind, len(start[-1])
        self.rates = torch.tensor(rates, dtype=torch.float32, device=start[0].device)
        self.values = self.heads(start)
        self.momenta = [torch.zeros_like(value) for value in self.values]
        self.alive = torch.ones(len(rates), dtype=torch.bool, device=start[0].device)

    def heads(self, start: Sequence[Tensor]) -> list[Tensor]:
        """Weights (R C, width) and biases (R C,) of all heads from the weight (C, width) of one."""
        weight = start[0].float().repeat(len(self.rates), 1)
        return [weight, torch.zeros(len(weight), device=weight.device)]

    @property
    def row_size(self) -> int:
        """Numbers that the logits of one row need at a time."""
        return max(map(len, self.values))

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, R, C) of inputs (n, width)."""
        weight, bias = self.values
        return torch.addmm(bias, x, weight.T).view(len(x), -1, self.classes)

    def accumulate(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each head (R,); its gradient enters the momenta inside the product that makes it."""
        each = torch.arange(len(x), device=x.device)
        log_probability = self.logits(x).log_softmax(2)  # (n, R, C)
        losses = -log_probability[each, :, labels].mean(0)
        error = log_probability.exp_()  # gradient of the loss: (probability - truth) / n
        error[each, :, labels] -= 1
        error = error.div_(len(x)).flatten(1)  # (n, R C): a column is one head's own, so NaN stays with its head
        self.momenta[0].addmm_(error.T, x, beta=MOMENTUM)
        self.momenta[1].mul_(MOMENTUM).add_(error.sum(0))
        return losses

    def step(self, x: Tensor, labels: Tensor, decay: float) -> None:
        """One step of SGD on the mean cross-entropy of each head; a head whose loss is not finite is out for good."""
        self.alive &= torch.isfinite(self.accumulate(x, labels))
        rate = (self.rates * decay)[:, None]
        for value, momentum in zip(self.values, self.momenta, strict=True):
            value.view(len(rate), -1).addcmul_(momentum.view(len(rate), -1), rate, value=-1)

    def weights(self, rate: int) -> list[Tensor]:
        """Weights and biases of one head, layer by layer."""
        return [value.view(len(self.rates), -1, *value.shape[1:])[rate] for value in self.values]


class HiddenGroup(Group):
    """Heads with one hidden layer of H units: linear, GELU, linear; the layers of all rates lie side by side."""

    def heads(self, start: Sequence[Tensor]) -> list[Tensor]:
        """Weights and biases (R H, width), (R H,), (R C, H), (R C,) from the weights (H, width) and (C, H) of one."""
        weights = [layer.float().repeat(len(self.rates), 1) for layer in start]
        return [part for weight in weights for part in (weight, torch.zeros(len(weight), device=weight.device))]

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, R, C) of inputs (n, width)."""
        return self.forward(self.values, x).transpose(0, 1)

    def forward(self, values: Sequence[Tensor], x: Tensor) -> Tensor:
        """Logits (R, n, C)."""
        first, first_bias, second, second_bias = values
        rates = len(self.rates)
        hidden = F.gelu(torch.addmm(first_bias, x, first.T)).view(len(x), rates, -1).transpose(0, 1)  # (R, n, H)
        layer = second.view(rates, self.classes, -1).transpose(1, 2)  # (R, H, C)
        return torch.baddbmm(second_bias.view(rates, 1, -1), hidden, layer)

    def accumulate(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each head (R,); its gradient enters the momenta."""
        with torch.enable_grad():
            values = [value.requires_grad_() for value in self.values]
            logits = self.forward(values, x)
            losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
            losses = losses.view(len(logits), -1).mean(1)
            gradients = torch.autograd.grad(losses.sum(), values)
        for value, momentum, gradient in zip(values, self.momenta, gradients, strict=True):
            value.requires_grad_(False)
            momentum.mul_(MOMENTUM).add_(gradient)
        return losses.detach()


class Sweep:
    """Heads for every input x rate, trained together; heads are ordered input by input, rate by rate.

    widths: of what heads read; rates: learning rates as used (already scaled with the batch); steps: of the whole
    cosine schedule to 0, in which the rate stays as it is for `hold` steps. `hidden`: units of a hidden layer, 0 for
    linear heads. `starts` gives the first weights (C, width) of each input, with a hidden layer (H, width) and (C, H),
    else drawn with `seed` from N(0, 0.01^2), with a hidden layer from N(0, 0.02^2). Biases start at 0.
    """

    def __init__(
        self,
        widths: Mapping[Input, int],
        rates: Sequence[float],
        classes: int,
        steps: int,
        *,
        hidden: int = 0,
        hold: int = 1,
        seed: int = 0,
        starts: Mapping[Input, Tensor | Sequence[Tensor]] | None = None,
        device: str | torch.device = "cpu",
    ):
        generator = torch.Generator().manual_seed(seed)
        kind_of_heads = HiddenGroup if hidden else Group
        self.groups: list[Group] = []
        for kind, width in widths.items():
            sizes = [(hidden, width), (classes, hidden)] if hidden else [(classes, width)]
            std = MLP_STD if hidden else INIT_STD
            start = starts[kind] if starts else [torch.randn(size, generator=generator) * std for size in sizes]
            layers = [start] if isinstance(start, Tensor) else start
            self.groups.append(kind_of_heads(kind, rates, [layer.to(device) for layer in layers]))
        self.heads = [(*kind, rate) for kind in widths for rate in rates]
        self.steps, self.done, self.hold = steps, 0, hold

    def step(self, tokens: Tokens, labels: Tensor) -> None:
        """One step of every head on a batch: labels (n,) class indices."""
        decay = 0.5 * (1 + math.cos(math.pi * (self.done // self.hold * self.hold) / self.steps))
        for group in self.groups:
            group.step(tokens.input(group.kind), labels, decay)
        self.done += 1

    @property
    def diverged(self) -> list[int]:
        """Heads that stopped because their loss was not finite."""
        alive = torch.cat([group.alive for group in self.groups]).tolist()
        return [head for head, fine in enumerate(alive) if not fine]

    def places(self, tokens: Rows, labels: Tensor, among: Tensor | None = None) -> Tensor:
        """Place of the true class by every head, 0 the best, equal logits to the lower class: (heads, n) int32.

        among: the classes (K,) that are chosen from, all where None. A diverged head has no valid place: the number of
        classes.
        """
        parts = []
        for span in self.spans(len(tokens)):
            batch = tokens.rows(span)
            parts.append(torch.cat([group_places(g, batch.input(g.kind), labels[span], among) for g in self.groups]))
        return torch.cat(parts, dim=1)

    def predictions(self, head: int, tokens: Rows, among: Tensor | None = None) -> Tensor:
        """Predicted class of every row by one head, one of the classes `among` (K,) where given: (n,) int64."""
        index, rate = divmod(head, len(self.groups[0].rates))
        group = self.groups[index]
        batches = (tokens.rows(span) for span in self.spans(len(tokens)))
        return torch.cat([chosen(group, batch.input(group.kind), among)[:, rate].argmax(1) for batch in batches])

    def spans(self, n: int) -> list[slice]:
        """Parts of n rows whose logits are held together."""
        chunk = max(1, LOGITS_AT_ONCE // max(group.row_size for group in self.groups))
        return [slice(start, start + chunk) for start in range(0, n, chunk)]

    def weights(self, head: int) -> list[Tensor]:
        """Weight (C, width) and bias (C,) of one head; with a hidden layer those of both layers."""
        index, rate = divmod(head, len(self.groups[0].rates))
        return self.groups[index].weights(rate)


def chosen(group: Group, x: Tensor, among: Tensor | None) -> Tensor:
    """Logits (n, R, C) of a group, minus infinity for classes that are not chosen from."""
    logits = group.logits(x)
    if among is not None:
        barred = torch.ones(group.classes, dtype=torch.bool, device=x.device).index_fill_(0, among.to(x.device), False)
        logits = logits.masked_fill(barred, -math.inf)
    return logits


def group_places(group: Group, x: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
    """Place of the true class by every head of a group: (R, n) int32."""
    logits = chosen(group, x, among)  # (n, R, C)
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
