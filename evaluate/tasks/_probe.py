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
from evaluate.tasks.base import (
    Classes,
    Result,
    Subject,
    Task,
    accuracy,
    centre_view_protocol,
    check_labels,
    mean_score,
    unseen_note,
)

HELD_BYTES = 4_000_000_000  # stored tokens of one image set in memory; ImageNet's of a ViT-B would be 20 GB
VAL = "val"  # the split that a head is selected on, where a dataset has it
CHOSEN = "the head was selected on the images that are reported, as the protocol does: read it as the best of the sweep"
STORED_VIEW = "centre, stored"
FRESH_VIEW = "random resized crop 0.08-1, flip, fresh in every epoch"


class Probe(Task):
    """Heads on a frozen backbone; subclasses store `rates`, `epochs`, `batch_size` and say what heads read.

    crops: interpolation of fresh random crops, "" to train on stored centre views; before_training: curves begin with
    the untrained heads; rate_per_epoch: the cosine falls epoch by epoch, not step by step. iterations: steps of an
    epoch, None for as many as show every image once.
    """

    crops: ClassVar[str] = ""
    before_training: ClassVar[bool] = False
    rate_per_epoch: ClassVar[bool] = False
    rates: list[float]
    epochs: int
    batch_size: int
    hidden: int = 0
    iterations: int | None = None

    @property
    def stored(self) -> tuple[str, ...]:
        """Splits whose stored features it reads: fresh crops of training images are not stored."""
        return ("test",) if self.crops else self.splits

    def selects_apart(self, subject: Subject) -> bool:
        """Whether one of several heads is selected on images that are not reported."""
        return VAL in subject.data.readers and len(self.rates) * len(self.inputs(subject.backbone)) > 1

    def reads(self, subject: Subject) -> tuple[str, ...]:
        """Images that are trained on, reported, and selected on where these are others."""
        return (*self.splits, VAL) if self.selects_apart(subject) else self.splits

    def prepare(self, subject: Subject) -> None:
        """Compute this process's share of what `run` will find stored."""
        super().prepare(subject)
        if self.selects_apart(subject):
            subject.store.prepare(subject.backbone, subject.data.split(VAL))

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
        settings |= {} if self.iterations is None else {"iterations_per_epoch": self.iterations}
        more |= {"selection": "best final top-1 on the val split"} if self.selects_apart(subject) else {}
        classes = Classes.of(subject, self.reads(subject))
        among = chosen_from(subject, classes)
        settings |= {} if among is None else {"chosen_from": f"the {len(among)} classes of the test split"}
        return centre_view_protocol(subject, features) | settings | more | classes.protocol

    def check(self, subject: Subject) -> None:
        """Needs one class per image."""
        check_labels(subject, self.reads(subject), single=True)

    def run(self, subject: Subject) -> Result:
        """Train all heads, follow their accuracy epoch by epoch, and report the best one."""
        test, device = subject.features("test"), subject.device
        kinds, layout = self.inputs(subject.backbone), Layout.of(subject.backbone)
        named = Classes.of(subject, self.reads(subject))
        among, classes, training = chosen_from(subject, named), len(named.names), named.labels("train")
        tokens, truth = StoredTokens(test, kinds, device), named.labels("test", test.rows)
        labels = torch.from_numpy(truth).to(device)
        steps = self.iterations or -(-len(training) // self.batch_size)
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
        unseen = ~np.isin(truth, training)  # no head can know these classes
        near, left_out = min(5, classes if among is None else len(among)), set[int]()
        curves: list[tuple[np.ndarray, np.ndarray]] = []
        with subject.store.progress(f"{self.name} on {subject.data.name}", self.epochs, unit="epoch") as bar:
            for epoch in self.train(subject, sweep, steps, torch.from_numpy(training).to(device), left_out):
                places = sweep.places(tokens, labels, among).cpu().numpy()  # (heads, n)
                places[:, unseen] = max(near, classes)
                curves.append(((places == 0).mean(1), (places < near).mean(1)))
                bar.update(epoch > 0)
        top1, top5 = map(np.array, zip(*curves, strict=True))  # (epochs, heads)
        apart = self.selects_apart(subject)
        best = select(val_top1(subject, sweep, kinds, named) if apart else top1[-1].tolist())
        predictions = sweep.predictions(best, tokens, among).cpu().numpy()
        result = report(test, truth, places[best] == 0, places[best] < near, predictions)
        top1[:, sweep.diverged] = top5[:, sweep.diverged] = np.nan
        names = [head_name(head) for head in sweep.heads]
        result.outcomes |= {"curve_top1": top1, "curve_top5": top5, "heads": np.array(names)}
        first = 0 if self.before_training else 1
        epochs = np.arange(first, first + len(top1))
        result.files = probing_files(f"{self.name} on {subject.data.name}", epochs, top1, top5, names, best)
        chosen_on = f"the head was selected on the {VAL} split" if apart else CHOSEN
        result.notes = [f"best head: {names[best]}", chosen_on] if len(names) > 1 else []
        result.notes += notes(sweep, names, subject) + unseen_note(truth, training)
        result.skipped = {"train": len(left_out), "test": test.skipped}
        return result

    def train(self, subject: Subject, sweep: Sweep, steps: int, labels: Tensor, left_out: set[int]) -> Iterator[int]:
        """Train epoch by epoch; yields each one's number when it is over, with `before_training` 0 at the start.

        labels: of all training images (n,); left_out: gathers those that could not be decoded.
        """
        if self.before_training:
            yield 0
        batches = self.fresh_batches if self.crops else self.stored_batches
        for step, (tokens, rows) in enumerate(batches(subject, steps, left_out), start=1):
            sweep.step(tokens, labels[rows])
            if step % steps == 0:
                yield step // steps

    def stored_batches(self, subject: Subject, steps: int, left_out: set[int]) -> Iterator[tuple[Tokens, Tensor]]:
        """Batches of stored centre views, and which training images they are."""
        train, device = subject.features("train"), subject.device
        left_out |= set(range(len(train.images))).difference(train.rows.tolist())
        tokens = StoredTokens(train, self.inputs(subject.backbone), device)
        images = torch.from_numpy(train.rows).to(device)
        for rows in batch_table(len(train), self.batch_size, self.epochs * steps, subject.seed).to(device):
            yield tokens.rows(rows), images[rows]

    def fresh_batches(self, subject: Subject, steps: int, left_out: set[int]) -> Iterator[tuple[Tokens, Tensor]]:
        """Batches of fresh random crops, and which training images they are of."""
        images, store = subject.data.split("train"), subject.store
        table = batch_table(len(images), self.batch_size, self.epochs * steps, subject.seed)
        layout = Layout.of(subject.backbone)
        crops = store.random_crops(subject.backbone, images, table, subject.seed, self.crops)
        for asked, (found, rows) in zip(table, crops, strict=True):
            shown = torch.tensor(rows)
            left_out |= set(asked[asked != shown].tolist())  # another image stood in for these
            average = found[layout.blocks] if layout.average else None
            yield Tokens(found[: layout.blocks], average), shown.to(store.device)


def checked_iterations(iterations: int | None) -> int | None:
    """Steps of an epoch as given; raises ValueError below 1."""
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1, or null for ceil(n / batch_size)")
    return iterations


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


def chosen_from(subject: Subject, classes: Classes) -> Tensor | None:
    """The classes (K,) that test images are known to be of, where their split says that these are a part of all."""
    return torch.from_numpy(classes.places["test"]) if subject.data.split("test").subset else None


def val_top1(subject: Subject, sweep: Sweep, kinds: Sequence[Input], classes: Classes) -> list[float]:
    """Top-1 accuracy of every head on the validation images."""
    val = subject.features(VAL)
    truth = classes.labels(VAL, val.rows)
    places = sweep.places(StoredTokens(val, kinds, subject.device), torch.from_numpy(truth).to(subject.device))
    right = (places == 0).cpu().numpy() & np.isin(truth, classes.labels("train"))
    return right.mean(1).tolist()


def report(test: Frozen, truth: np.ndarray, correct: np.ndarray, near: np.ndarray, predictions: np.ndarray) -> Result:
    """Scores and outcomes of the selected head: classes (n,), first and among the first five (n,), predictions (n,)."""
    per_class = [correct[truth == label].mean() for label in np.unique(truth)]
    macro = mean_score(np.array(per_class), "class")
    scores = {"top1": accuracy(correct), "top5": accuracy(near), "top1_macro": macro}
    outcomes = {"sample_id": test.ids, "top1": correct, "top5": near, "prediction": predictions}
    return Result(scores, outcomes)


def notes(sweep: Sweep, names: list[str], subject: Subject) -> list[str]:
    """What a reader must know: heads that diverged, blocks that are missing."""
    found = []
    if sweep.diverged:
        found.append(f"{len(sweep.diverged)} heads diverged and stopped: {'; '.join(names[i] for i in sweep.diverged)}")
    depth = subject.backbone.depth
    if depth < 4 and any(blocks > 1 for blocks, _, _ in sweep.heads):
        found.append(f"the network has {depth} blocks, which stand for the last 4")
    return found
