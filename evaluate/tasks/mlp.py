"""MLP probe: heads with one hidden layer on the class token, at several rates (BITS, arXiv 2602.09764, Figure 6).

The paper gives neither width nor depth nor optimiser; ours are the sweep's of `linear`, stated in the protocol.
`mlp` trains on fresh random crops; `mlp_cached` on stored features of the centre view, another protocol, named so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.probes import MLP_STD, Input
from evaluate.tasks._probe import Probe, checked_iterations
from evaluate.tasks.base import Subject, Unavailable

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


class MLPCached(Probe):
    """MLP probe on stored centre views: linear, GELU, linear; curves begin before training, at epoch 0.

    hidden: units of the hidden layer; rates: at batch 256, scaled with the batch; epochs: each of
    ceil(n / batch_size) steps, or of `iterations`. Raises ValueError when there is no hidden unit or no iteration.
    """

    name = "mlp_cached"
    before_training = True

    def __init__(
        self,
        hidden: int = 2048,
        rates: Sequence[float] = RATES,
        epochs: int = 10,
        batch_size: int = 128,
        iterations: int | None = None,
    ):
        if hidden < 1:
            raise ValueError(f"hidden={hidden} must be at least 1; task=linear has no hidden layer")
        self.hidden, self.rates, self.epochs, self.batch_size = hidden, list(rates), epochs, batch_size
        self.iterations = checked_iterations(iterations)

    def check(self, subject: Subject) -> None:
        """Needs one class per image and a network: on raw pixels the hidden layers would outgrow any backbone."""
        super().check(subject)
        if subject.backbone.spec.get("name") == "pixels":
            raise Unavailable("raw pixels are too wide for a hidden layer", "use task=linear_cached, or a network")

    def inputs(self, backbone: Any) -> list[Input]:
        """What heads read: the class token of the last block."""
        return [(1, False)]

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Head, rates, schedule, training view and the rule of selection."""
        return self.settings(
            subject,
            "class token of the last block",
            head=f"linear {self.hidden}, GELU, linear; weights N(0, {MLP_STD}^2)",
            optimizer="SGD, momentum 0.9, cosine to 0, no decay",
            selection="best final top-1 on the reported images",
        )


class MLP(MLPCached):
    """MLP probe on fresh random crops in every epoch."""

    name = "mlp"
    crops = "bicubic"
