"""What tasks share that train a head by OpenMMLab: what they need, where the head is kept, and its curve."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from evaluate.openmmlab import library
from evaluate.openmmlab.training import Schedule, Training, head_folder
from evaluate.pictures import graph, printable
from evaluate.tasks.base import Subject, Task, Unavailable

DISTRIBUTIONS = {"mmseg": "onedl-mmsegmentation", "mmdet": "onedl-mmdetection"}


class HeadTask(Task):
    """A task that trains a head on the train split, and the backbone with it unless that is frozen.

    library: mmseg or mmdet; head: what is trained.
    """

    library: ClassVar[str]
    head: ClassVar[str]
    frozen: bool
    layer_decay: float
    train_split: str
    test_split: str

    @property
    def splits(self) -> tuple[str, ...]:
        """Images that are trained on, images that are tested on."""
        return self.train_split, self.test_split

    @property
    def stored(self) -> tuple[str, ...]:
        """No features are stored."""
        return ()

    def check_network(self, subject: Subject) -> None:
        """Raise Unavailable without OpenMMLab, or where there is no network to put a head on."""
        try:
            library.check()
        except library.Missing as error:
            raise Unavailable(str(error), error.remedy) from error
        if next(subject.backbone.parameters(), None) is None:
            raise Unavailable("raw pixels have no network to put a head on", "compare with the untrained backbone")

    def load(self) -> None:
        """Import the library; raises Unavailable when it does not work here."""
        try:
            library.load(self.library)
        except library.Missing as error:
            raise Unavailable(str(error), error.remedy) from error

    def training_protocol(self, subject: Subject) -> dict[str, Any]:
        """The part of the protocol on which the trained head depends."""
        tuned = "frozen" if self.frozen else f"fine-tuned, layer decay {self.layer_decay:g}"
        shared = {"features": "patches", "backbone": tuned, "head": self.head, "precision": subject.store.precision}
        return shared | {"library": f"{self.library} {library_version(self.library)}", "seed": subject.seed}

    def prepare(self, subject: Subject) -> None:
        """Train in all processes together, then predict this one's share of the test images."""
        training = self.trained(subject)
        self.predict(subject, training, subject.store.share(range(len(subject.data.split(self.test_split)))))

    def trained(self, subject: Subject) -> Training:
        """The training, run to its end or taken from where it was kept."""
        raise NotImplementedError

    def predict(self, subject: Subject, training: Training, rows: Sequence[int]) -> Any:
        """Predictions for rows of the test split, from earlier runs where they were kept."""
        raise NotImplementedError


def library_version(library: str) -> str:
    """Version of mmseg or mmdet."""
    return version(DISTRIBUTIONS[library])


def kept_at(subject: Subject, protocol: dict[str, Any], train_split: str) -> Any:
    """Folder of a head: another one for every training set, protocol and backbone."""
    return head_folder(
        subject.store, subject.backbone, protocol | {"data": subject.data.split(train_split).fingerprint}
    )


def budget(schedule: Schedule, images: int) -> str:
    """How much was trained, in words."""
    seen = schedule.iterations * schedule.batch_size
    return f"{schedule.iterations:,} iterations of {schedule.batch_size} images, {seen / max(images, 1):.1f} epochs"


# ---- the curve


def curve_files(title: str, history: Sequence[dict[str, float]]) -> dict[str, bytes]:
    """`curve.csv` and `curve.png` of the losses and the learning rate by iteration."""
    if not history:
        return {}
    return {"curve.csv": as_table(history), "curve.png": draw(title, history)}


def as_table(history: Sequence[dict[str, float]]) -> bytes:
    """One line a stretch of iterations: means of every loss; empty where a head diverged."""
    names = list(dict.fromkeys(name for row in history for name in row))
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(names)
    for row in history:
        values = [row.get(name, np.nan) for name in names]
        writer.writerow([int(values[0]), *("" if not np.isfinite(v) else f"{v:.6g}" for v in values[1:])])
    return sink.getvalue().encode()


def draw(title: str, history: Sequence[dict[str, float]]) -> bytes:
    """A PNG: the total loss, its parts thin, and the learning rate below."""
    x = [row["iteration"] for row in history]
    parts = [name for name in history[0] if "loss" in name and name != "loss"]

    def fill(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        marker = {"marker": "o", "markersize": 3} if len(x) < 30 else {}
        for name in parts if 1 < len(parts) <= 12 else ():
            upper.plot(x, [row.get(name, np.nan) for row in history], linewidth=0.8, alpha=0.8, label=printable(name))
        upper.plot(x, [row["loss"] for row in history], color="0.15", label="loss", **marker)
        upper.set(ylabel="loss", title=printable(title, 80))
        upper.legend(fontsize=6, frameon=False, ncols=2)
        lower.plot(x, [row["lr"] for row in history], color="C1", **marker)
        lower.set(xlabel="iteration", ylabel="rate")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)

    return graph(fill, 5.4, 4.2)
