"""Linear probe: the sweep of 52 heads on a frozen backbone (DINOv2 protocol, Oquab et al. 2023).

`linear` shows every head a fresh random crop of each image, as the protocol asks: one forward pass a step, shared by
all heads. `linear_cached` trains on stored features of the centre view: no forward pass, another protocol, named so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.features import Layout
from evaluate.probes import Input
from evaluate.tasks._probe import Probe, checked_iterations
from evaluate.tasks.base import Subject

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)


class LinearCached(Probe):
    """Linear probe on stored centre views.

    rates: learning rates at batch 256, scaled with the batch; epochs: each of ceil(n / batch_size) steps, or of
    `iterations`. Raises ValueError when these are below 1.
    """

    name = "linear_cached"

    def __init__(
        self,
        rates: Sequence[float] = RATES,
        epochs: int = 10,
        batch_size: int = 128,
        iterations: int | None = None,
    ):
        self.rates, self.epochs, self.batch_size = list(rates), epochs, batch_size
        self.iterations = checked_iterations(iterations)

    def inputs(self, backbone: Any) -> list[Input]:
        """What heads read: {1, 4} last blocks x {without, with patch average}, as far as the backbone has them."""
        layout = Layout.of(backbone)
        averages = (False, True) if layout.average else (False,)
        return [(blocks, average) for blocks in sorted({1, layout.blocks}) for average in averages]

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Inputs, rates, schedule, training view and the rule of selection."""
        return self.settings(
            subject,
            "{1, 4} last blocks x {class token, with patch average}",
            optimizer="SGD, momentum 0.9, cosine to 0, no decay",
            selection="best final top-1 on the reported images",
        )


class Linear(LinearCached):
    """Linear probe on fresh random crops in every epoch: the exact protocol."""

    name = "linear"
    crops = "bicubic"
