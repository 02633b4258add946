"""Semantic segmentation with heads by mmseg on the frozen or fine-tuned patch features of a backbone.

Linear: Oquab et al. 2023 (DINOv2, arXiv 2304.07193); UPerNet: Xiao et al. 2018 (arXiv 1807.10221); FCN: Long et al.
2015 (arXiv 1411.4038).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluate.metrics.segmentation import ClassCounts, confusion, mean_accuracy, mean_iou
from evaluate.openmmlab.samples import Augmentation, Samples, mask_samples
from evaluate.openmmlab.training import Schedule, Training, own_randomness
from evaluate.overlay import PALETTE, sheet
from evaluate.partial import Partial
from evaluate.storage import write_whole
from evaluate.tasks._heads import HeadTask, budget, curve_files, kept_at
from evaluate.tasks._masks import class_table, tiles_of
from evaluate.tasks.base import Result, Score, Subject, Unavailable
from pretrain.datasets import ImageError
from pretrain.datasets.indexed import decode_labels, encode_labels
from pretrain.datasets.masks import MaskData

HELD_OUT = 10  # every tenth training image selects among heads where there is no validation split
VAL = "masks_val"
PER_ROW = 2  # images in a row of the sheet, each with truth and prediction


class Segmentation(HeadTask):
    """mIoU of a head; a record keeps the mIoU of single images, and the intervals resample images.

    iterations, batch_size, lr, weight_decay, warmup: AdamW, linear warm-up from 1e-6 of the rate, linear decay to 0;
    several `lr` train as many linear heads side by side, and validation images choose. size: shorter and longer side,
    in pixels, that images are brought to before the factor `ratio` and the crop; crop: height and width in pixels, up
    to whole patches, also of the sliding window at test, which moves by two thirds of it. frozen, layer_decay,
    checkpointing: of the backbone; channels: width of the head; test: split that is tested on; pictures: images on
    the sheet.
    """

    library = "mmseg"
    blocks = 1

    def __init__(
        self,
        iterations: int = 40_000,
        batch_size: int = 16,
        lr: float | Sequence[float] = 1e-3,
        weight_decay: float = 1e-4,
        warmup: int = 1500,
        size: Sequence[int] = (512, 2048),
        ratio: Sequence[float] = (0.5, 2.0),
        crop: Sequence[int] = (512, 512),
        distort: bool = True,
        frozen: bool = True,
        layer_decay: float = 1.0,
        channels: int = 256,
        checkpointing: bool = False,
        test: str = "masks_test",
        pictures: int = 12,
    ):
        self.rates = [float(lr)] if isinstance(lr, int | float) else [float(rate) for rate in lr]
        if not self.rates or len(self.rates) > 1 and (self.head != "linear" or not frozen):
            raise ValueError(f"lr={lr}: several rates are for linear heads on a frozen backbone; give one")
        if min(*size, *crop, channels) < 1 or pictures < 0 or not 0 < layer_decay <= 1:
            raise ValueError(
                f"size={list(size)}, crop={list(crop)}, channels={channels} and layer_decay must be positive"
            )
        self.schedule = Schedule(iterations, batch_size, max(self.rates), weight_decay, warmup, 1e-6)
        self.size, self.ratio, self.crop = (int(size[0]), int(size[1])), (ratio[0], ratio[1]), (crop[0], crop[1])
        self.distort, self.frozen, self.layer_decay, self.channels = distort, frozen, layer_decay, channels
        self.checkpointing, self.train_split, self.test_split, self.pictures = (
            checkpointing, "masks_train", test, pictures,
        )  # fmt: skip

    def main(self, subject: Subject) -> str:
        """mIoU."""
        return "miou"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Budget, augmentation, sliding window and the rules of the metric."""
        rules = {"test": self.test_split, "window": "stride 2/3, single scale", "miou": "at image size, void left out"}
        return self.training_protocol(subject) | rules

    def training_protocol(self, subject: Subject) -> dict[str, Any]:
        """What the trained head depends on."""
        shared = super().training_protocol(subject) | {"schedule": self.schedule.protocol(), "rates": self.rates}
        shared |= {"augmentation": self.augmentation(subject).protocol()}
        shared |= {"blocks": self.blocks} if self.head != "linear" else {}
        shared |= {"channels": self.channels} if self.head != "linear" else {}
        return shared | ({"selection": self.selection(subject)} if len(self.rates) > 1 else {})

    def augmentation(self, subject: Subject) -> Augmentation:
        """What is done to images; crops are whole patches."""
        patch = subject.backbone.patch_size
        crop = (-(-self.crop[0] // patch) * patch, -(-self.crop[1] // patch) * patch)
        return Augmentation(self.size, self.ratio, crop, 0.5, self.distort)

    def selection(self, subject: Subject) -> str:
        """Images that choose among several heads, never those that are tested on."""
        usable = VAL in subject.data.readers and self.test_split != VAL
        return VAL if usable else f"every {HELD_OUT}th training image"

    def check(self, subject: Subject) -> None:
        """Needs OpenMMLab, a network, and masks of the same classes in both splits."""
        self.check_network(subject)
        train, test = (subject.data.split(split) for split in self.splits)
        if not isinstance(train, MaskData) or not isinstance(test, MaskData):
            raise Unavailable(f"{train.name} has no masks", "use a dataset with semantic masks")
        if train.classes != test.classes:
            raise Unavailable(
                f"training and test images of {train.name} have {len(train.classes)} and {len(test.classes)} classes, "
                "or others of the same number",
                "give both splits the same classes",
            )

    def trained(self, subject: Subject) -> Training:
        """A head trained to the end of its schedule."""
        self.load()
        from evaluate.openmmlab.segmentors import build_segmentor
        from evaluate.openmmlab.wrapper import parameter_groups

        train: Any = subject.data.split(self.train_split)
        augmentation = self.augmentation(subject)
        settings: dict[str, Any] = {"channels": self.channels, "heads": len(self.rates), "window": augmentation.crop}
        settings |= {"frozen": self.frozen, "checkpointing": self.checkpointing}
        with own_randomness(subject.device):
            torch.manual_seed(subject.seed)
            model = build_segmentor(subject.backbone, self.head, len(train.classes), **settings)
        held = len(self.rates) > 1 and self.selection(subject) != VAL
        rows = [row for row in range(len(train)) if not held or row % HELD_OUT]
        training = Training(
            model, self.schedule, kept_at(subject, self.training_protocol(subject), self.train_split),
            mask_samples(train, augmentation, subject.seed), rows,
            parameter_groups(model, self.rates if len(self.rates) > 1 else self.rates[0],
                             self.schedule.weight_decay, self.layer_decay),
            subject.store, subject.seed, f"{self.name} on {subject.data.name}", tolerant=len(self.rates) > 1,
        )  # fmt: skip
        training.run()
        model.eval()
        return training

    def run(self, subject: Subject) -> Result:
        """Train, choose, label the test images, and score."""
        test: Any = subject.data.split(self.test_split)
        training = self.trained(subject)
        folder = self.predict(subject, training, range(len(test)))
        classes = len(test.classes)
        shown = set(np.linspace(0, len(test) - 1, min(self.pictures, len(test))).round().astype(int).tolist())
        total, counts, rows, tiles = np.zeros((classes, classes), np.int64), ClassCounts(classes), [], []
        for row in range(len(test)):
            if not (file := folder / f"{row:06d}.png").exists():
                continue  # a damaged image
            image, truth = test.pair(row)
            found = decode_labels(file.read_bytes(), str(file))
            table = confusion(truth, found, classes)
            total += table
            counts.add(table)
            rows.append(row)
            if row in shown:
                tiles.append(tiles_of(np.asarray(image), truth, found, test.paths[row], counts.iou(-1)))
        files = curve_files(training.title, training.history) | {"per_class.csv": class_table(test.classes, total)}
        if tiles:
            pairs = (tiles[i : i + PER_ROW] for i in range(0, len(tiles), PER_ROW))
            files["segmentations.png"] = sheet([[tile for three in row for tile in three] for row in pairs])
        outcomes = {"sample_id": np.array([test.paths[row] for row in rows]), "miou": counts.iou()}
        outcomes["class_pixels"] = counts.by_image()  # a mean IoU is compared by its pixels
        notes = [budget(self.schedule, len(training.rows)), chance(total, test.classes), f"label maps in {folder}"]
        if len(self.rates) > 1:
            chosen, heads = self.choose(subject, training)
            notes.append(f"lr {self.rates[chosen]:g}, best of {len(heads)} on {self.selection(subject)}")
            lines = [f"{rate:g},{value:.6f}" for rate, value in zip(self.rates, heads, strict=True)]
            files["heads.csv"] = "\n".join(["lr,miou", *lines, ""]).encode()
        skipped = {"test images": len(test) - len(rows), "training images": len(training.damaged)}
        return Result(scores(total, counts), outcomes, skipped, notes, files)

    def predict(self, subject: Subject, training: Training, rows: Sequence[int]) -> Path:
        """Label maps of test images as indexed PNGs in a folder beside the head; those that are there stay."""
        from evaluate.openmmlab.segmentors import segment

        test: Any = subject.data.split(self.test_split)
        folder = training.folder / f"{self.test_split}-{test.fingerprint}"
        chosen = self.choose(subject, training)[0]
        samples = mask_samples(test, self.augmentation(subject), subject.seed)
        with subject.store.progress(f"{self.name}: labels of {test.name}", len(rows)) as bar:
            for row in rows:
                if not (file := folder / f"{row:06d}.png").exists() and (sample := tested(samples, row)):
                    found = segment(training.model, sample, subject.store.precision, len(self.rates))[chosen]
                    write_whole(file, encode_labels(found, PALETTE))
                bar.update()
        return folder

    def choose(self, subject: Subject, training: Training) -> tuple[int, list[float]]:
        """Place of the head with the best mIoU on the selecting images, the first of equals, and that of every head."""
        if len(self.rates) == 1:
            return 0, []
        from evaluate.openmmlab.segmentors import segment

        apart = self.selection(subject) == VAL
        images: Any = subject.data.split(VAL if apart else self.train_split)
        rows = [row for row in range(len(images)) if apart or row % HELD_OUT == 0]
        settings = self.training_protocol(subject) | {"selecting": images.fingerprint}
        kept = Partial(subject.store, subject.backbone, self.name, settings, images.name)
        samples, classes = mask_samples(images, self.augmentation(subject), subject.seed), len(images.classes)
        totals = np.zeros((len(self.rates), 3, classes), np.int64)
        with subject.store.progress(f"{self.name}: choice among {len(self.rates)} heads", len(rows)) as bar:
            for row in rows:
                if str(row) not in kept and (sample := tested(samples, row)):
                    truth = images.mask(row)
                    found = segment(training.model, sample, subject.store.precision, len(self.rates))
                    tables = [confusion(truth, one, classes) for one in found]
                    kept.add(str(row), [[t.diagonal(), t.sum(1), t.sum(0)] for t in tables])
                totals += np.array(kept[str(row)]) if str(row) in kept else 0
                bar.update()
        correct, true, predicted = totals.transpose(1, 0, 2)
        union = true + predicted - correct
        values = (correct / np.maximum(union, 1)).sum(1) / np.maximum((union > 0).sum(1), 1)
        return int(values.argmax()), values.tolist()


class SegmentationLinear(Segmentation):
    """Batch norm and a 1 x 1 convolution on the last map."""

    name, head = "segmentation_linear", "linear"


class SegmentationSweep(Segmentation):
    """The same at several learning rates, the best by validation."""

    name, head = "segmentation_sweep", "linear"


class SegmentationFCN(Segmentation):
    """Two 3 x 3 convolutions on the last map."""

    name, head = "segmentation_fcn", "fcn"


class SegmentationUPer(Segmentation):
    """UPerNet on a pyramid of the last four blocks."""

    name, head, blocks = "segmentation_uper", "uper", 4


def tested(samples: Samples, row: int) -> dict[str, Any] | None:
    """Test sample of an image, None for a damaged one where these are left out; raises ImageError naming it."""
    try:
        return samples[-1, row]
    except ImageError:
        if samples.images.skip_bad:
            return None
        raise


def scores(total: np.ndarray, counts: ClassCounts) -> dict[str, Score]:
    """mIoU, mean accuracy of classes and accuracy of pixels, with intervals over images; total (C, C)."""
    n = len(counts)
    correct = float(total.trace() / max(total.sum(), 1))
    return {
        "miou": Score(mean_iou(total), *counts.interval(), n),
        "mean_accuracy": Score(mean_accuracy(total), *counts.mean_accuracy_interval(), n),
        "pixel_accuracy": Score(correct, *counts.accuracy_interval(), n),
    }


def chance(total: np.ndarray, classes: Sequence[str]) -> str:
    """What labelling every pixel as the most frequent class would score."""
    true = total.sum(axis=1)
    constant = np.zeros_like(total)
    constant[:, true.argmax()] = true
    return f"all pixels {classes[int(true.argmax())]}: mIoU {100 * mean_iou(constant):.1f}"
