"""Linear probe: the sweep of 52 heads on a frozen backbone (DINOv2 protocol, Oquab et al. 2023).

`linear` shows every head a fresh random crop of each image, as the protocol asks: one forward pass a step, shared by
all heads. `linear_cached` trains on stored features of the centre view: no forward pass, another protocol, named so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from evaluate.features import Frozen, Layout
from evaluate.probes import Input, Sweep, Tokens, batch_table, select
from evaluate.tasks.base import Result, Subject, Task, accuracy, centre_view_protocol, check_labels, mean_score

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
CHOSEN = "the head was selected on the images that are reported, as the protocol does: read it as the best of the sweep"


class LinearCached(Task):
    """Linear probe on stored centre views.

    rates: learning rates at batch 256, scaled with the batch; epochs: each of ceil(n / batch_size) steps.
    """

    name = "linear_cached"
    view: ClassVar[str] = "centre, stored"

    def __init__(self, rates: Sequence[float] = RATES, epochs: int = 10, batch_size: int = 128):
        self.rates, self.epochs, self.batch_size = list(rates), epochs, batch_size

    def main(self, subject: Subject) -> str:
        """Top-1 accuracy of the selected head."""
        return "top1"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Inputs, rates, schedule, training view and the rule of selection."""
        settings = {"rates": self.rates, "epochs": self.epochs, "batch_size": self.batch_size, "seed": subject.seed}
        settings |= {"optimizer": "SGD, momentum 0.9, cosine to 0, no decay", "training_view": self.view}
        settings |= {"selection": "best final top-1 on the reported images"}
        return centre_view_protocol(subject, "{1, 4} last blocks x {class token, with patch average}") | settings

    def check(self, subject: Subject) -> None:
        """Needs one class per image."""
        check_labels(subject, ("train", "test"), single=True)

    def run(self, subject: Subject) -> Result:
        """Train all heads, follow their accuracy epoch by epoch, and report the best one."""
        test, device = subject.features("test"), subject.device
        tokens, labels = stored_tokens(test, device), torch.from_numpy(test.labels).to(device)
        widths = {kind: tokens.width(kind) for kind in inputs_of(subject.backbone)}
        scaled = [rate * self.batch_size / 256 for rate in self.rates]
        steps = -(-len(subject.data.split("train")) // self.batch_size)
        classes = count_classes(subject)
        sweep = Sweep(widths, scaled, classes, self.epochs * steps, seed=subject.seed, device=device)
        unseen = ~np.isin(test.labels, train_labels(subject))  # no head can know these classes
        top1, top5 = np.empty((2, self.epochs, len(sweep.heads)))
        with subject.store.progress(f"{self.name} on {subject.data.name}", self.epochs, unit="epoch") as bar:
            for epoch in self.train(subject, sweep, steps):
                places = sweep.places(tokens, labels).cpu().numpy()  # (heads, n)
                places[:, unseen] = classes
                top1[epoch], top5[epoch] = (places == 0).mean(1), (places < min(5, classes)).mean(1)
                bar.update()
        best = select(top1[-1].tolist())
        predictions = sweep.predictions(best, tokens).cpu().numpy()
        result = report(test, places[best], predictions, classes)
        names = [head_name(head) for head in sweep.heads]
        for name, curve in (("curve_top1", top1), ("curve_top5", top5)):
            curve[:, sweep.diverged] = np.nan
            result.outcomes[name] = curve
        result.outcomes["heads"] = np.array(names)
        result.notes = [
            f"best head: {names[best]}",
            CHOSEN,
            *notes(sweep, names, subject, np.unique(test.labels[unseen])),
        ]
        result.skipped = {"test": test.skipped}
        return result

    def train(self, subject: Subject, sweep: Sweep, steps: int) -> Iterator[int]:
        """Train epoch by epoch; yields each one's number when it is over."""
        train, device = subject.features("train"), subject.device
        tokens, labels = stored_tokens(train, device), torch.from_numpy(train.labels).to(device)
        table = batch_table(len(train), self.batch_size, self.epochs * steps, subject.seed).to(device)
        for step, rows in enumerate(table, start=1):
            sweep.step(tokens.rows(rows), labels[rows])
            if step % steps == 0:
                yield step // steps - 1


class Linear(LinearCached):
    """Linear probe on fresh random crops in every epoch: the exact protocol."""

    name = "linear"
    view = "random resized crop 0.08-1, flip, fresh in every epoch"

    def train(self, subject: Subject, sweep: Sweep, steps: int) -> Iterator[int]:
        """Train epoch by epoch; yields each one's number when it is over."""
        images, store = subject.data.split("train"), subject.store
        assert images.labels is not None
        labels = torch.from_numpy(images.labels).to(store.device)
        table = batch_table(len(images), self.batch_size, self.epochs * steps, subject.seed)
        layout = Layout.of(subject.backbone)
        crops = store.random_crops(subject.backbone, images, table, subject.seed)
        for step, (found, rows) in enumerate(crops, start=1):
            average = found[layout.blocks] if layout.average else None
            sweep.step(Tokens(found[: layout.blocks], average), labels[rows])
            if step % steps == 0:
                yield step // steps - 1


def inputs_of(backbone: Any) -> list[Input]:
    """What heads read: {1, 4} last blocks x {without, with patch average}, as far as the backbone has them."""
    layout = Layout.of(backbone)
    return [(n, avg) for n in sorted({1, layout.blocks}) for avg in ((False, True) if layout.average else (False,))]


def head_name(head: tuple[int, bool, float]) -> str:
    """Words for a head: its input and its learning rate as used."""
    blocks, with_average, rate = head
    return f"{blocks} block{'s' if blocks > 1 else ''}{' + average' if with_average else ''}, rate {rate:.3g}"


def stored_tokens(features: Frozen, device: torch.device) -> Tokens:
    """Stored tokens of an image set on the device."""
    average = features.average()
    cls = torch.stack([features.cls(block) for block in range(-features.layout.blocks, 0)])
    return Tokens(cls.to(device), average if average is None else average.to(device))


def train_labels(subject: Subject) -> np.ndarray:
    """Class indices (n,) of the training images."""
    labels = subject.data.split("train").labels
    assert labels is not None
    return labels


def count_classes(subject: Subject) -> int:
    """Classes of a head: those that either split names or uses."""
    counts = []
    for split in ("train", "test"):
        images = subject.data.split(split)
        assert images.labels is not None
        counts += [len(images.classes), int(images.labels.max()) + 1]
    return max(counts)


def report(test: Frozen, places: np.ndarray, predictions: np.ndarray, classes: int) -> Result:
    """Scores and outcomes of the selected head: places (n,) of the true class, predictions (n,)."""
    correct, near = places == 0, places < min(5, classes)
    per_class = [correct[test.labels == label].mean() for label in np.unique(test.labels)]
    macro = mean_score(np.array(per_class), "class")
    scores = {"top1": accuracy(correct), "top5": accuracy(near), "top1_macro": macro}
    outcomes = {"sample_id": test.ids, "top1": correct, "top5": near, "prediction": predictions}
    return Result(scores, outcomes)


def notes(sweep: Sweep, names: list[str], subject: Subject, unseen: np.ndarray) -> list[str]:
    """What a reader must know: heads that diverged, blocks that are missing, classes never seen in training."""
    found = []
    if sweep.diverged:
        found.append(f"{len(sweep.diverged)} heads diverged and stopped: {'; '.join(names[i] for i in sweep.diverged)}")
    depth = subject.backbone.depth
    if depth < 4:
        found.append(f"the network has {depth} blocks, which stand for the last 4")
    if len(unseen):
        found.append(f"{len(unseen)} classes of the test images do not occur in training: always wrong")
    return found
