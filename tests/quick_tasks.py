"""Two tasks that cost nothing, for tests of what is around tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluate.records import Score
from evaluate.tasks.base import Result, Subject, Task


class Mean(Task):
    """The first of the stored features of each test image."""

    name = "mean"
    split = "test"

    def main(self, subject: Subject) -> str:
        return "mean"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        return {"of": self.split}

    def run(self, subject: Subject) -> Result:
        features = subject.features(self.split)
        values = features.cls()[:, 0].numpy().astype(np.float64)
        score = Score(float(values.mean()), None, None, len(values), scale="units")
        return Result({"mean": score}, {"sample_id": features.ids, "mean": values})


class Spread(Mean):
    """The same of the images that are trained on."""

    name = "spread"
    split = "train"


TASKS = {"mean": Mean, "spread": Spread}
