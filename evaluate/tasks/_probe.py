"""What probes share: heads trained side by side on a frozen backbone, followed epoch by epoch.

A probe says what its heads read and how images are shown: fresh random crops, which cost a forward pass each, or stored
centre views, which cost none and are another protocol. Stored tokens are held in memory where they fit `HELD_BYTES`,
else read batch by batch from the store's mapped files; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from evaluate.features import Frozen, Layout
from evaluate.probes import Input, Sweep, Tokens, batch_table, select
from evaluate.tasks._curves import probing_files
from evaluate.tasks.base import Result, Subject, Task, accuracy, centre_view_protocol, check_labels, mean_score

HELD_BYTES = 4_000_000_000  # stored tokens of one image set in memory; ImageNet's of a ViT-B would be 20 GB
CHOSEN = "the head was selected on the images that are reported, as the protocol does: read it as the best of the sweep"
STORED_VIEW = "centre, stored"
FRESH_VIEW = "random resized crop 0.08-1, flip, fresh in every epoch"


class Probe(Task):
    """Heads on a frozen backbone; subclasses store `rates`, `epochs`, `batch_size` and say what heads read.

    crops: interpolation of fresh random crops, "" to train on stored centre views; before_training: curves begin with
    the untrained heads; rate_per_epoch: the cosine falls epoch by epoch, not step by step.
    """

    crops: ClassVar[str] = ""
    before_training: ClassVar[bool] = False
    rate_per_epoch: ClassVar[bool] = False
    rates: list[float]
    epochs: int
    batch_size: int
    hidden: int = 0

    @property
    def stored(self) -> tuple[str, ...]:
        """Splits whose stored features it reads: fresh crops of training images are not stored."""
        return ("test",) if self.crops else self.splits

    def main(self, subject: Subject) -> str:
        """Top-1 accuracy of the selected head after the last epoch."""
        return "top1"

    def inputs(self, backbone: Any) -> list[Input]:
        """What heads read."""
        raise NotImplementedError

    def settings(self, subject: Subject, features: str, **more: Any) -> dict[str, Any]:
        """The part of a protocol that all probes share; `features` says in words what heads read."""
        settings = {"rates": self.rates, "epochs": self.epochs, "batch_size": self.batch_size, "seed": subject.seed}
        settings |= {"training_view": FRESH_VIEW if self.crops else STORED_VIEW}
        return centre_view_protocol(subject, features) | settings | more

    def check(self, subject: Subject) -> None:
        """Needs one class per image."""
        check_labels(subject, ("train", "test"), single=True)

    def run(self, subject: Subject) -> Result:
        """Train all heads, follow their accuracy epoch by epoch, and report the best one."""
        test, device = subject.features("test"), subject.device
        kinds, layout = self.inputs(subject.backbone), Layout.of(subject.backbone)
        tokens, labels = StoredTokens(test, kinds, device), torch.from_numpy(test.labels).to(device)
        steps, classes = -(-len(subject.data.split("train")) // self.batch_size), count_classes(subject)
        sweep = Sweep(
            {(blocks, average): layout.dim * (blocks + average) for blocks, average in kinds},
            [rate * self.batch_size / 256 for rate in self.rates],
            classes,
            self.epochs * steps,
            hidden=self.hidden,
            hold=steps if self.rate_per_epoch else 1,
            seed=subject.seed,
            device=device,
        )
        unseen = ~np.isin(test.labels, train_labels(subject))  # no head can know these classes
        curves: list[tuple[np.ndarray, np.ndarray]] = []
        with subject.store.progress(f"{self.name} on {subject.data.name}", self.epochs, unit="epoch") as bar:
            for epoch in self.train(subject, sweep, steps):
                places = sweep.places(tokens, labels).cpu().numpy()  # (heads, n)
                places[:, unseen] = classes
                curves.append(((places == 0).mean(1), (places < min(5, classes)).mean(1)))
                bar.update(epoch > 0)
        top1, top5 = map(np.array, zip(*curves, strict=True))  # (epochs, heads)
        best = select(top1[-1].tolist())
        predictions = sweep.predictions(best, tokens).cpu().numpy()
        result = report(test, places[best], predictions, classes)
        top1[:, sweep.diverged] = top5[:, sweep.diverged] = np.nan
        names = [head_name(head) for head in sweep.heads]
        result.outcomes |= {"curve_top1": top1, "curve_top5": top5, "heads": np.array(names)}
        first = 0 if self.before_training else 1
        epochs = np.arange(first, first + len(top1))
        result.files = probing_files(f"{self.name} on {subject.data.name}", epochs, top1, top5, names, best)
        result.notes = [f"best head: {names[best]}", CHOSEN] if len(names) > 1 else []
        result.notes += notes(sweep, names, subject, np.unique(test.labels[unseen]))
        result.skipped = {"test": test.skipped}
        return result

    def train(self, subject: Subject, sweep: Sweep, steps: int) -> Iterator[int]:
        """Train epoch by epoch; yields each one's number when it is over, with `before_training` 0 at the start."""
        if self.before_training:
            yield 0
        batches = self.fresh_batches(subject, steps) if self.crops else self.stored_batches(subject, steps)
        for step, (tokens, labels) in enumerate(batches, start=1):
            sweep.step(tokens, labels)
            if step % steps == 0:
                yield step // steps

    def stored_batches(self, subject: Subject, steps: int) -> Iterator[tuple[Tokens, Tensor]]:
        """Batches of stored centre views."""
        train, device = subject.features("train"), subject.device
        tokens = StoredTokens(train, self.inputs(subject.backbone), device)
        labels = torch.from_numpy(train.labels).to(device)
        for rows in batch_table(len(train), self.batch_size, self.epochs * steps, subject.seed).to(device):
            yield tokens.rows(rows), labels[rows]

    def fresh_batches(self, subject: Subject, steps: int) -> Iterator[tuple[Tokens, Tensor]]:
        """Batches of fresh random crops."""
        images, store = subject.data.split("train"), subject.store
        labels = torch.from_numpy(train_labels(subject)).to(store.device)
        table = batch_table(len(images), self.batch_size, self.epochs * steps, subject.seed)
        layout = Layout.of(subject.backbone)
        for found, rows in store.random_crops(subject.backbone, images, table, subject.seed, self.crops):
            average = found[layout.blocks] if layout.average else None
            yield Tokens(found[: layout.blocks], average), labels[rows]


class StoredTokens:
    """Stored tokens of an image set, read some rows at a time: those that heads with inputs `kinds` need.

    They are held on the device where they take at most `HELD_BYTES`, else read from the mapped files of the store.
    """

    def __init__(self, features: Frozen, kinds: Sequence[Input], device: torch.device):
        layout, self.device = features.layout, device
        blocks = max(kind[0] for kind in kinds)
        self.average = any(kind[1] for kind in kinds)
        self.slices = slice(layout.blocks - blocks, layout.blocks + self.average)  # the average lies behind the tokens
        self.shards = [np.load(path, mmap_mode="r") for path in features.shards]
        self.starts = np.cumsum([0, *(shard.shape[1] for shard in self.shards)])
        self.held: Tensor | None = None
        if 4 * len(self) * layout.dim * (blocks + self.average) <= HELD_BYTES:
            parts = [shard[self.slices] for shard in self.shards]
            self.held = torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32)).to(device)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, index: Tensor | slice) -> Tokens:
        """Tokens of some rows, in the order asked for."""
        found = self._read(index) if self.held is None else self.held[:, index]
        return Tokens(found[:-1], found[-1]) if self.average else Tokens(found, None)

    def _read(self, index: Tensor | slice) -> Tensor:
        """The rows (slices, b, D) float32 from the files, shard by shard."""
        rows = np.arange(len(self))[index] if isinstance(index, slice) else index.cpu().numpy()
        home = np.searchsorted(self.starts, rows, side="right") - 1
        count = self.slices.stop - self.slices.start
        found = np.empty((count, len(rows), self.shards[0].shape[2]), np.float32)
        for shard in np.unique(home):
            own = home == shard
            found[:, own] = self.shards[shard][self.slices][:, rows[own] - self.starts[shard]]
        return torch.from_numpy(found).to(self.device)


def head_name(head: tuple[int, bool, float]) -> str:
    """Words for a head: its input and its learning rate as used."""
    blocks, with_average, rate = head
    return f"{blocks} block{'s' if blocks > 1 else ''}{' + average' if with_average else ''}, rate {rate:.3g}"


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
    if depth < 4 and any(blocks > 1 for blocks, _, _ in sweep.heads):
        found.append(f"the network has {depth} blocks, which stand for the last 4")
    if len(unseen):
        found.append(f"{len(unseen)} classes of the test images do not occur in training: always wrong")
    return found
