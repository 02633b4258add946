"""In-context segmentation: a patch takes the labels of its nearest patches in annotated images.

Balazevic et al. 2023, "Towards In-Context Scene Understanding" (Hummingbird). No parameter is trained; the scores are
those of the frozen patch features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluate.dense import CROP_AREA, JITTER, dense_features, masked_batches
from evaluate.metrics.label_transfer import (
    enlarge_labels,
    patch_label_histogram,
    patches_per_image,
    sample_patches,
    transfer_labels,
)
from evaluate.metrics.segmentation import ClassCounts, confusion, mean_iou
from evaluate.overlay import sheet
from evaluate.tasks._masks import class_table, tiles_of
from evaluate.tasks.base import Result, Score, Subject, Task, Unavailable
from pretrain.backbones import IMAGENET_STD
from pretrain.datasets.masks import MaskData

__all__ = ["DenseRetrieval", "enlarge_labels", "patch_label_histogram", "patches_per_image", "sample_patches",
           "transfer_labels"]  # fmt: skip

QUERY_VALUES = 50_000_000  # features of test patches held at a time: 200 MB
SLIP = 0.255  # deviation of blue in the public code, for 0.225
PER_ROW = 2  # images in a row of the sheet, each with truth and prediction


class DenseRetrieval(Task):
    """mIoU of labels that test patches take from the patches of a memory of training images.

    size: side of the square input in pixels, down to whole patches; memory_size: patches in the memory, at most; k,
    beta: as in `transfer_labels`; epochs: passes over the training images, each with fresh crops unless `augment` is
    false. Slips of the public code, off by default: `std_slip` normalises blue with 0.255 (where the backbone has
    ImageNet's normalisation), `hungarian` renames predicted classes as if they were clusters, `empty_as_zero` counts
    classes that occur nowhere as 0. test: the split that is labelled. A record keeps the mIoU of single images; the
    interval resamples images.
    """

    name = "dense_retrieval"

    def __init__(
        self,
        size: int = 512,
        memory_size: int = 1_024_000,
        k: int = 30,
        beta: float = 0.02,
        epochs: int = 1,
        augment: bool = True,
        std_slip: bool = False,
        hungarian: bool = False,
        empty_as_zero: bool = False,
        test: str = "masks_test",
        pictures: int = 12,
    ):
        if min(size, memory_size, k, epochs) < 1 or beta <= 0 or pictures < 0:
            raise ValueError(
                f"size={size}, memory_size={memory_size}, k={k} and epochs={epochs} must be at least 1, "
                f"beta={beta} positive and pictures={pictures} not negative"
            )
        self.size, self.memory_size, self.k, self.beta, self.epochs = size, memory_size, k, beta, epochs
        self.augment, self.std_slip, self.pictures = augment, std_slip, pictures
        self.test_split = test
        self.rules = {"hungarian": hungarian, "empty_as_zero": empty_as_zero}

    @property
    def splits(self) -> tuple[str, ...]:
        """Images of the memory, images to be labelled."""
        return "masks_train", self.test_split

    @property
    def stored(self) -> tuple[str, ...]:
        """Patches are not stored."""
        return ()

    def main(self, subject: Subject) -> str:
        """mIoU."""
        return "miou"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Input, memory, vote and the rules of the metric."""
        view = {"size": self.side(subject), "interpolation": "bilinear", "std": list(self.std(subject))}
        shared = {"features": "patches", "view": view, "precision": subject.store.precision, "seed": subject.seed}
        shared |= {"memory_size": self.memory_size, "epochs": self.epochs, "k": self.k, "beta": self.beta}
        crops = {"area": list(CROP_AREA), "jitter": JITTER} if self.augment else "none"
        return shared | {"augmentation": crops, "miou": "at input size, void left out", **self.rules}

    def side(self, subject: Subject) -> int:
        """Side of the input in pixels."""
        patch = subject.backbone.patch_size
        return max(1, self.size // patch) * patch

    def std(self, subject: Subject) -> tuple[float, ...]:
        """Deviations of the channels."""
        usual = tuple(subject.backbone.std)
        return (*usual[:2], SLIP) if self.std_slip and usual == IMAGENET_STD else usual

    def check(self, subject: Subject) -> None:
        """Needs masks of the same classes in both splits, and room for a patch of every image."""
        train, test = (subject.data.split(split) for split in self.splits)
        if not isinstance(train, MaskData) or not isinstance(test, MaskData):
            raise Unavailable(f"{train.name} has no masks", "use a dataset with semantic masks")
        if train.classes != test.classes:
            raise Unavailable(
                f"memory and test images of {train.name} have {len(train.classes)} and {len(test.classes)} classes",
                "give both splits the same classes",
            )
        try:
            patches_per_image(self.memory_size, len(train), self.epochs)
        except ValueError as error:
            raise Unavailable(str(error), "give a larger memory_size") from error

    def run(self, subject: Subject) -> Result:
        """Fill the memory, label the test images, and score."""
        test: Any = subject.data.split(self.test_split)
        memory, labels, left_out = self.fill(subject)
        if len(memory) < self.k:
            raise ValueError(f"k={self.k} exceeds the {len(memory)} patches of the memory; give a smaller k")
        classes = len(test.classes)
        shown = set(np.linspace(0, len(test) - 1, min(self.pictures, len(test))).round().astype(int).tolist())
        total, counts, rows, tiles = np.zeros((classes, classes), np.int64), ClassCounts(classes), [], []
        for row, pixels, mask, soft in self.label(subject, memory, labels):
            found = enlarge_labels(soft[None], mask.shape)[0].cpu().numpy()  # type: ignore[arg-type]
            truth = mask.numpy()
            table = confusion(truth, found, classes)
            total += table
            counts.add(table)
            rows.append(row)
            if row in shown:
                tiles.append(tiles_of(pixels, truth, found, test.paths[row], counts.iou(-1)))
        scores = self.scores(total, counts)
        outcomes = {"sample_id": np.array([test.paths[row] for row in rows]), "miou": counts.iou()}
        outcomes |= (
            {} if self.rules["hungarian"] else {"class_pixels": counts.by_image()}
        )  # renaming is of the whole set
        files = {"per_class.csv": class_table(test.classes, total)}
        if tiles:
            pairs = (tiles[i : i + PER_ROW] for i in range(0, len(tiles), PER_ROW))
            files["segmentations.png"] = sheet([[tile for three in row for tile in three] for row in pairs])
        skipped = {"memory images": left_out, "test images": len(test) - len(rows)}
        return Result(scores, outcomes, skipped, [f"memory of {len(memory)} patches"], files)

    def scores(self, total: np.ndarray, counts: ClassCounts) -> dict[str, Score]:
        """mIoU and pixel accuracy of the set with intervals over images."""
        n = len(counts)
        value = mean_iou(total, **self.rules)
        # Renaming is of the whole set, so resamples would need it again each: no interval then.
        low, high = (None, None) if self.rules["hungarian"] else counts.interval(self.rules["empty_as_zero"])
        correct = float(total.trace() / max(total.sum(), 1))
        return {"miou": Score(value, low, high, n), "pixel_accuracy": Score(correct, *counts.accuracy_interval(), n)}

    def fill(self, subject: Subject) -> tuple[Tensor, Tensor, int]:
        """The memory: features (M, D) float32, pixels of each class (M, C) int16, and the number of damaged images."""
        train: Any = subject.data.split("masks_train")
        patch, classes, side = subject.backbone.patch_size, len(train.classes), self.side(subject)
        each = min(patches_per_image(self.memory_size, len(train), self.epochs), (side // patch) ** 2)
        memory, labels, filled, damaged = torch.empty(0), torch.empty(0), 0, 0
        with subject.store.progress(f"memory of {train.name}", len(train) * self.epochs) as bar:
            for epoch in range(self.epochs):
                batches = masked_batches(subject.store, train, side, epoch, augment=self.augment, seed=subject.seed)
                for pixels, masks, rows, bad in batches:
                    features = self.tokens(subject, pixels)
                    if not len(memory):  # the width is that of the features
                        room = each * len(train) * self.epochs
                        memory = torch.empty(room, features.shape[-1], device=subject.device)
                        labels = torch.empty(room, classes, dtype=torch.int16, device=subject.device)
                    for row, one, mask in zip(rows, features, masks, strict=True):
                        shares = patch_label_histogram(mask, patch, classes).flatten(0, 1)
                        generator = torch.Generator().manual_seed((subject.seed * 1_000_003 + epoch) * 10**8 + row)
                        chosen = sample_patches(shares, each, generator)
                        place = slice(filled, filled + len(chosen))
                        memory[place] = one.flatten(0, 1)[chosen.to(one.device)]
                        labels[place] = (shares[chosen] * patch**2).round().to(labels)
                        filled += len(chosen)
                    damaged += len(bad)
                    bar.update(len(rows) + len(bad))
        return memory[:filled], labels[:filled], damaged

    def label(
        self, subject: Subject, memory: Tensor, labels: Tensor
    ) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        """Row, image (S, S, 3), mask (S, S) and soft labels (C, h, w) of every test image.

        Each search reads the whole memory, so many images share one.
        """
        test: Any = subject.data.split(self.test_split)
        waiting: list[tuple[int, Tensor, Tensor, Tensor]] = []
        with subject.store.progress(f"labels of {test.name}", len(test)) as bar:
            for pixels, masks, rows, bad in masked_batches(subject.store, test, self.side(subject)):
                if rows:
                    waiting += zip(rows, pixels, masks, self.tokens(subject, pixels), strict=True)
                bar.update(len(rows) + len(bad))
                if waiting and len(waiting) * waiting[0][3].numel() >= QUERY_VALUES:
                    yield from self.answer(waiting, memory, labels)
                    waiting = []
        if waiting:
            yield from self.answer(waiting, memory, labels)

    def answer(
        self, waiting: list[tuple[int, Tensor, Tensor, Tensor]], memory: Tensor, labels: Tensor
    ) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        """Soft labels of several test images from one search; counts of pixels, which weigh as shares do."""
        queries = torch.stack([features for *_, features in waiting])  # (b, h, w, D)
        soft = transfer_labels(memory, labels, queries, k=self.k, beta=self.beta)
        for (row, pixels, mask, _), found in zip(waiting, soft, strict=True):
            yield row, pixels.permute(1, 2, 0).numpy(), mask, found.permute(2, 0, 1)

    def tokens(self, subject: Subject, pixels: Tensor) -> Tensor:
        """Patch tokens (b, h, w, D) of views."""
        return dense_features(subject.store, subject.backbone, pixels, std=self.std(subject))
