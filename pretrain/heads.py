"""Projection heads, and batch norm whose statistics cover all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import assign, is_distributed, sum_over_processes
from pretrain.ops import at_least_float32


class SyncBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all processes, on any device; equals `nn.BatchNorm1d` on one process.

    rows: (n, D), the same n on every process. torch's own synchronised layer exists on GPUs only.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise each column of (n, D)."""
        if not (self.training and is_distributed()):
            return super().forward(rows)
        given, rows = rows.dtype, at_least_float32(rows)  # counts and sums of many rows are no numbers for 16 bits
        ones = torch.ones(1, dtype=rows.dtype, device=rows.device)
        sums = sum_over_processes(torch.cat([ones * len(rows), rows.sum(0)]))
        n, mean = sums[0].detach(), sums[1:] / sums[0].detach()
        var = sum_over_processes((rows - mean).square().sum(0)) / n
        with torch.no_grad():
            buffers: Any = self  # typed as optional, but a layer that tracks statistics has all three
            buffers.num_batches_tracked += 1
            buffers.running_mean.lerp_(mean.detach().to(buffers.running_mean.dtype), self.momentum)
            buffers.running_var.lerp_((var.detach() * n / (n - 1)).to(buffers.running_var.dtype), self.momentum)
        normal = (rows - mean) * torch.rsqrt(var + self.eps)
        return (normal * self.weight + self.bias if self.affine else normal).to(given)


class MLPHead(nn.Module):
    """Linear, GELU, Linear, GELU, Linear: features (n, dim) -> (n, out); with `normalize`, rows of unit length.

    `bn` puts batch norm before each GELU, `final_bn` after the last layer (no affine). `init="reference"` draws
    weights from a truncated normal of std 0.02 (cut at +-2), `init="fan_in"` with std gain/sqrt(fan-in), which narrow
    heads need to start with logits of order 0.1 to 1. Without normalisation the output is the logit vector of the
    binary channel.
    Source: DINO, arXiv 2104.14294; BITS, arXiv 2602.09764, section 4.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 2048,
        out: int = 256,
        bn: bool = False,
        final_bn: bool = False,
        normalize: bool = False,
        init: str = "reference",
        gain: float = 1.0,
    ):
        super().__init__()
        if init not in ("reference", "fan_in"):
            raise ValueError(f"unknown head init {init!r}; use 'reference' or 'fan_in'")
        self.normalize, self.init, self.gain = normalize, init, gain
        layers: list[nn.Module] = []
        for width_in, width_out in ((dim, hidden), (hidden, hidden)):
            layers.append(nn.Linear(width_in, width_out))
            layers += [SyncBatchNorm(width_out)] if bn else []
            layers.append(nn.GELU())
        layers.append(nn.Linear(hidden, out))
        layers += [SyncBatchNorm(out, affine=False)] if final_bn else []
        self.mlp = nn.Sequential(*layers)
        self.redraw()

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew in place, from the distribution of the start."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                draw_linear(module, self.init, self.gain, generator)
            elif isinstance(module, nn.BatchNorm1d):
                module.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Project features (n, dim) -> (n, out)."""
        rows = self.mlp(features)
        return F.normalize(rows, dim=1) if self.normalize else rows


def draw_linear(layer: nn.Linear, init: str, gain: float, generator: torch.Generator | None) -> None:
    """Draw a linear layer's weights on the CPU: the same on every device. Biases are zero but for init="torch"."""
    weight = torch.empty(layer.weight.shape)
    bound = layer.in_features**-0.5
    if init == "fan_in":
        weight.normal_(std=gain * bound, generator=generator)
    elif init == "torch":
        weight.uniform_(-bound, bound, generator=generator)
    else:
        nn.init.trunc_normal_(weight, std=0.02, a=-2.0, b=2.0, generator=generator)
    assign(layer.weight, weight)
    if layer.bias is not None:
        bias = torch.zeros(layer.bias.shape)
        assign(layer.bias, bias.uniform_(-bound, bound, generator=generator) if init == "torch" else bias)


class PrototypeHead(nn.Module):
    """DINO head: `MLPHead` to a unit-norm bottleneck, then a weight-normed linear layer without bias to K prototypes.

    Row k of the effective weight is g_k u_k/||u_k||; g starts at 1 and stays there with `norm_last_layer`. The
    directions keep torch's default linear initialisation. Source: DINO, arXiv 2104.14294, public code.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 65536,
        bn: bool = False,
        norm_last_layer: bool = True,
        init: str = "reference",
        gain: float = 1.0,
    ):
        super().__init__()
        self.bottleneck = MLPHead(dim, hidden=hidden, out=bottleneck, bn=bn, normalize=True, init=init, gain=gain)
        last = nn.Linear(bottleneck, prototypes, bias=False)
        self.last_direction = nn.Parameter(last.weight.detach().clone())
        self.last_scale = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not norm_last_layer)

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew in place, from the distribution of the start."""
        self.bottleneck.redraw(generator)
        bound = self.last_direction.shape[1] ** -0.5
        directions = torch.empty(self.last_direction.shape).uniform_(-bound, bound, generator=generator)
        assign(self.last_direction, directions)
        self.last_scale.fill_(1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (n, dim) -> (n, prototypes)."""
        return self.prototypes(self.bottleneck(features))

    def prototypes(self, unit: Tensor) -> Tensor:
        """Similarity of unit bottleneck rows (n, bottleneck) to each prototype: (n, prototypes)."""
        return F.linear(unit, self.last_scale * F.normalize(self.last_direction, dim=1))

    def last_layer(self) -> list[nn.Parameter]:
        """Parameters that DINO freezes at the start."""
        return [self.last_direction, self.last_scale]


class Projector(nn.Module):
    """Linear, batch norm, ReLU, ..., Linear without bias: features (n, dim) -> (n, out) in `layers` linear layers.

    `bias` gives all but the last layer one; `init` is "torch" (the framework's default) for every layer or
    "reference" (truncated normal of std 0.02) for all but the last. Two layers for IMSVD and MUSIC, three for Barlow
    Twins (no bias) and VICReg. Source: the public codes of arXiv 2501.03469, 2103.03230 and 2105.04906.
    """

    def __init__(
        self, dim: int, *, hidden: int = 8192, out: int = 8192, layers: int = 3, bias: bool = True, init: str = "torch"
    ):
        super().__init__()
        if layers < 1 or init not in ("torch", "reference"):
            raise ValueError(f"projector with {layers} layers and init {init!r}; use 1 or more, torch or reference")
        self.init = init
        widths = [dim, *[hidden] * (layers - 1)]
        blocks: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            blocks += [nn.Linear(before, after, bias=bias), SyncBatchNorm(after), nn.ReLU()]
        self.mlp = nn.Sequential(*blocks, nn.Linear(widths[-1], out, bias=False))
        self.redraw()

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew in place, from the distribution of the start."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                last = module is self.mlp[-1]
                draw_linear(module, "torch" if last else self.init, 1.0, generator)
            elif isinstance(module, nn.BatchNorm1d):
                module.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Project features (n, dim) -> (n, out)."""
        return self.mlp(features)


HEADS: dict[str, type[nn.Module]] = {"mlp": MLPHead, "prototypes": PrototypeHead, "projector": Projector}


def build_head(spec: dict[str, Any]) -> nn.Module:
    """A head from its description {"kind": ..., keyword arguments}, as run.json keeps it."""
    options = dict(spec)
    kind = options.pop("kind")
    if kind not in HEADS:
        raise ValueError(f"unknown head kind {kind!r}; known: {', '.join(HEADS)}")
    try:
        return HEADS[kind](**options)
    except TypeError as error:
        raise ValueError(f"head of kind {kind}: {error}") from error
