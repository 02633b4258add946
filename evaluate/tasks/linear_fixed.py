"""Linear probe at one learning rate for 100 epochs: the protocol of DINO (Caron et al. 2021, public code)."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluate.features import Layout
from evaluate.metrics import wilson_interval
from evaluate.probes import Input
from evaluate.tasks._probe import Probe
from evaluate.tasks.base import Result, Score, Subject

WIDE = 768  # from ViT-B on
INPUTS = {
    "cls4": "class tokens of the last 4 blocks",
    "cls_average": "class token and patch average of the last block",
}


class LinearFixed(Probe):
    """One linear head on fresh random crops; the headline is its accuracy after the last epoch.

    The reference reports its best epoch, which selects on the test images: that number stands beside, named so.
    input: "cls4", "cls_average", or "auto": the first below a width of 768 (ViT-S), else the second (ViT-B).
    rate: at batch 256, scaled with the batch (1024 in the published runs).
    """

    name = "linear_fixed"
    crops = "bilinear"
    rate_per_epoch = True

    def __init__(self, rate: float = 0.001, epochs: int = 100, batch_size: int = 128, input: str = "auto"):
        if input not in ("auto", *INPUTS):
            raise ValueError(f"unknown input {input!r}; use auto, {', '.join(INPUTS)}")
        self.rates, self.epochs, self.batch_size, self.input = [rate], epochs, batch_size, input

    def chosen(self, backbone: Any) -> str:
        """The input of this backbone's head, by the rule of widths where it is left open."""
        return self.input if self.input != "auto" else "cls4" if backbone.dim < WIDE else "cls_average"

    def inputs(self, backbone: Any) -> list[Input]:
        """What the head reads, as far as the backbone has it."""
        layout = Layout.of(backbone)
        return [(layout.blocks, False) if self.chosen(backbone) == "cls4" else (1, layout.average)]

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Input, rate, schedule and training view."""
        return self.settings(
            subject,
            INPUTS[self.chosen(subject.backbone)],
            optimizer="SGD, momentum 0.9, cosine to 0 by epoch, no decay",
            crop_interpolation=self.crops,
            selection="none: the last epoch",
        )

    def run(self, subject: Subject) -> Result:
        """Train the head; add the best epoch to what is reported."""
        result = super().run(subject)
        curve = np.nan_to_num(result.outcomes["curve_top1"][:, 0])  # a head that diverged is never right
        best, n = int(curve.argmax()), result.scores["top1"].n
        value, low, high = wilson_interval(round(curve[best] * n), n)
        result.scores["top1_best_epoch"] = Score(value, low, high, n, "image")
        result.notes.append(f"top1_best_epoch is epoch {best + 1}, selected on the test images as the reference does")
        return result
