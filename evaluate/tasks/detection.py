"""Detection and instance segmentation with heads by mmdet on the frozen or fine-tuned patch features of a backbone.

ViTDet: Li et al. 2022 (arXiv 2203.16527), with Mask R-CNN (arXiv 1703.06870), its cascade (arXiv 1906.09756) or
RetinaNet (arXiv 1708.02002).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluate.metrics.coco import coco_ap, coco_image_ap, decode_mask
from evaluate.metrics.coco_bootstrap import Matches, by_image, class_intervals, class_matches
from evaluate.openmmlab.samples import Augmentation, instance_samples
from evaluate.openmmlab.training import Schedule, Training, own_randomness
from evaluate.overlay import Tile, blend, named_boxes, sheet
from evaluate.partial import Partial
from evaluate.tasks._heads import HeadTask, budget, curve_files, kept_at
from evaluate.tasks.base import Result, Score, Subject, Unavailable
from pretrain.datasets import ImageError
from pretrain.datasets.instances import InstanceData, has_mask

IOU_TYPES = {"box": "bbox", "mask": "segm"}
TRUTH = (80, 255, 80)
FOUND = (255, 60, 60)
PAIRS = 3  # images in a row of the sheet, each with annotation and result


class Detection(HeadTask):
    """COCO AP of boxes and, where the head gives them, of masks; a record keeps AP of single images and all matches.

    epochs, milestones, batch_size, lr, weight_decay, warmup: AdamW, linear warm-up over iterations, a tenth of the rate
    from each milestone on, in epochs; iterations, if given, replace `epochs` and the milestones keep their shares.
    size: shorter and longer side in pixels that images are brought to, in training times a factor `jitter`; crop:
    height and width in pixels, null for none. frozen, layer_decay, checkpointing: of the backbone; strides: of the
    pyramid, in pixels; channels, hidden: widths of the pyramid and of the layers that classify a region; anchor: side
    of an anchor in strides; convs: layers of RetinaNet's head, or of that for masks, before the outputs; standardise:
    batch norm of the backbone's map before the pyramid; regions: of an image that the second stage is trained on;
    proposals, detections: kept of an image, at most; train, test: splits; pictures: images on the sheet.
    """

    library = "mmdet"
    masks = True

    def __init__(
        self,
        epochs: float = 12,
        milestones: Sequence[float] = (8, 11),
        iterations: int | None = None,
        batch_size: int = 16,
        lr: float = 1e-4,
        weight_decay: float = 0.1,
        warmup: int = 500,
        size: Sequence[int] = (1024, 1024),
        jitter: Sequence[float] = (0.1, 2.0),
        crop: Sequence[int] | None = (1024, 1024),
        frozen: bool = False,
        layer_decay: float = 0.75,
        strides: Sequence[int] = (4, 8, 16, 32),
        channels: int = 256,
        hidden: int = 1024,
        anchor: int = 8,
        convs: int = 4,
        standardise: bool = False,
        regions: int = 512,
        proposals: int = 1000,
        detections: int = 100,
        checkpointing: bool = False,
        train: str = "instances_train",
        test: str = "instances",
        pictures: int = 12,
    ):
        if (
            epochs <= 0
            or min(*size, *(crop or size), channels, hidden, anchor, convs, regions, proposals, detections) < 1
            or pictures < 0
        ):
            raise ValueError(
                f"epochs={epochs}, size={list(size)}, crop={crop} and channels={channels} must be positive"
            )
        if not strides or any(stride < 2 or stride & (stride - 1) for stride in strides):
            raise ValueError(f"strides={list(strides)} must be powers of two")
        self.epochs, self.milestones, self.iterations = epochs, tuple(milestones), iterations
        self.optimizer = {"batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "warmup": warmup}
        box = None if crop is None else (int(crop[0]), int(crop[1]))
        self.augmentation = Augmentation((int(size[0]), int(size[1])), (jitter[0], jitter[1]), box)
        self.frozen, self.layer_decay, self.pictures = frozen, layer_decay, pictures
        self.network = {
            "strides": [int(s) for s in strides], "channels": channels, "hidden": hidden, "anchor": anchor,
            "convs": convs, "standardise": standardise,
            "regions": regions, "proposals": proposals, "detections": detections,
        }  # fmt: skip
        self.checkpointing, self.train_split, self.test_split = checkpointing, train, test

    def main(self, subject: Subject) -> str:
        """AP of masks, or of boxes where there are no masks."""
        return "mask_ap" if self.masks else "box_ap"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Budget, augmentation, pyramid and the rules of the metric."""
        return self.training_protocol(subject) | {"ap": "COCO, 100 detections", "test": self.test_split}

    def training_protocol(self, subject: Subject) -> dict[str, Any]:
        """What the trained head depends on."""
        shared = super().training_protocol(subject) | {"schedule": self.schedule(subject).protocol()}
        return shared | {
            "augmentation": self.augmentation.protocol(),
            "pyramid": self.network,
            "train": self.train_split,
        }

    def schedule(self, subject: Subject) -> Schedule:
        """Epochs as iterations."""
        an_epoch = max(1, len(with_objects(subject.data.split(self.train_split))) // self.optimizer["batch_size"])
        total = self.iterations or max(1, round(self.epochs * an_epoch))
        steps = tuple(round(total * milestone / self.epochs) for milestone in self.milestones)
        options = self.optimizer | {"warmup": min(int(self.optimizer["warmup"]), total - 1)}
        return Schedule(iterations=total, start=0.001, milestones=steps, **options)  # type: ignore[arg-type]

    def check(self, subject: Subject) -> None:
        """Needs OpenMMLab, a network, and instances of the same categories in both splits, with masks for its head."""
        self.check_network(subject)
        train, test = (subject.data.split(split) for split in self.splits)
        if not isinstance(train, InstanceData) or not isinstance(test, InstanceData):
            raise Unavailable(f"{train.name} has no instances", "use a dataset with boxes or masks of objects")
        if differ := differing(train, test):
            raise Unavailable(
                f"training and test images of {train.name} differ in {differ}", "use one list of categories"
            )
        if not with_objects(train):
            raise Unavailable(f"no training image of {train.name} has an object", "annotate some, or use another split")
        lacking = [a for data in (train, test) for a in data.truth["annotations"] if not has_mask(a)]
        if self.masks and lacking:
            raise Unavailable(
                f"annotations of {train.name} have no masks", "use task=detection_retinanet, for boxes alone"
            )

    def trained(self, subject: Subject) -> Training:
        """A detector trained to the end of its schedule."""
        self.load()
        from evaluate.openmmlab.detectors import build_detector
        from evaluate.openmmlab.wrapper import parameter_groups

        train: Any = subject.data.split(self.train_split)
        schedule = self.schedule(subject)
        with own_randomness(subject.device):
            torch.manual_seed(subject.seed)
            options: dict[str, Any] = {"frozen": self.frozen, "checkpointing": self.checkpointing, **self.network}
            model = build_detector(subject.backbone, self.head, len(train.classes), **options)
        training = Training(
            model, schedule, kept_at(subject, self.training_protocol(subject), self.train_split),
            instance_samples(train, self.augmentation, subject.seed, self.masks), with_objects(train),
            parameter_groups(model, schedule.lr, schedule.weight_decay, self.layer_decay),
            subject.store, subject.seed, f"{self.name} on {subject.data.name}",
        )  # fmt: skip
        training.run()
        model.eval()
        return training

    def run(self, subject: Subject) -> Result:
        """Train, detect in the test images, and score."""
        test: Any = subject.data.split(self.test_split)
        training = self.trained(subject)
        kept = self.predict(subject, training, range(len(test)))
        rows = [row for row in range(len(test)) if kept[str(row)] is not None]
        rows.sort(key=test.ids.__getitem__)  # equal scores rank by image id
        found = [detection for row in rows for detection in kept[str(row)]]
        listed = {test.ids[row] for row in rows}
        truth = test.truth | {"images": [test.truth["images"][row] for row in rows]}
        truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] in listed]
        result = Result({}, {"sample_id": np.array([test.paths[row] for row in rows])})
        for region in ("box", "mask") if self.masks else ("box",):
            classes = class_matches(truth, found, iou_type=IOU_TYPES[region])
            result.scores |= region_scores(truth, found, region, classes)
            single = coco_image_ap(truth, found, iou_type=IOU_TYPES[region])
            result.outcomes[f"{region}_ap"] = np.array([single[test.ids[row]] for row in rows])
            if classes and f"{region}_ap" == self.main(subject):
                result.outcomes |= by_image(classes)
        result.skipped = {"test images": len(test) - len(rows), "training images": len(training.damaged)}
        empty = len(subject.data.split(self.train_split)) - len(training.rows)
        result.notes = [budget(training.schedule, len(training.rows))]
        result.notes += [f"{empty} training images without an object left out"] if empty else []
        result.files = curve_files(training.title, training.history) | {"detections.json": json.dumps(found).encode()}
        if self.pictures and rows:
            result.files["detections.png"] = overlays(test, kept, rows, self.pictures, self.masks)
        return result

    def predict(self, subject: Subject, training: Training, rows: Sequence[int]) -> Partial:
        """Detections in test images as COCO results, None for a damaged image: {row: [...]}."""
        from evaluate.openmmlab.detectors import detect

        test: Any = subject.data.split(self.test_split)
        settings = self.protocol(subject) | {"data": subject.data.fingerprint(self.splits)}
        kept = Partial(subject.store, subject.backbone, self.name, settings, test.name)
        samples = instance_samples(test, self.augmentation, subject.seed, masks=False)
        categories = [category["id"] for category in test.truth["categories"]]
        with subject.store.progress(f"{self.name}: objects of {test.name}", len(rows)) as bar:
            for row in rows:
                if str(row) not in kept:
                    kept.add(str(row), self.detections(training, samples, row, categories, detect, subject))
                bar.update()
        return kept

    def detections(
        self, training: Training, samples: Any, row: int, categories: list[int], detect: Any, subject: Subject
    ) -> list[dict[str, Any]] | None:
        """COCO results of one image; None for a damaged one where these are left out."""
        try:
            sample = samples[-1, row]
        except ImageError:
            if samples.images.skip_bad:
                return None
            raise
        return detect(training.model, sample, subject.store.precision, categories, samples.images.ids[row])


class DetectionMaskRCNN(Detection):
    """Boxes and masks in two stages."""

    name, head = "detection_mask_rcnn", "mask_rcnn"


class DetectionCascade(Detection):
    """Boxes in three stages of growing strictness, and masks."""

    name, head = "detection_cascade", "cascade"


class DetectionRetinaNet(Detection):
    """Boxes in one stage."""

    name, head, masks = "detection_retinanet", "retinanet", False


def with_objects(images: Any) -> list[int]:
    """Rows of the images with an object that is no crowd."""
    return [row for row, objects in enumerate(images.objects) if objects]


def differing(train: InstanceData, test: InstanceData) -> str:
    """What the category lists of two splits disagree on, if anything."""
    lists = [{c["id"]: c["name"] for c in data.truth["categories"]} for data in (train, test)]
    ids = sorted(key for key in set(lists[0]) | set(lists[1]) if lists[0].get(key) != lists[1].get(key))
    return ", ".join(f"category {key} ({lists[0].get(key)}, {lists[1].get(key)})" for key in ids[:3])


def region_scores(
    truth: dict[str, Any], found: list[dict[str, Any]], region: str, classes: Sequence[Matches]
) -> dict[str, Score]:
    """AP, AP50 and AP75 of boxes or masks with intervals over images, and AP by size; undefined ones are NaN."""
    stats = coco_ap(truth, found, iou_type=IOU_TYPES[region])
    stats = np.where(stats > -1, stats, np.nan)
    ends = class_intervals(classes)[1]
    n = len(truth["images"])
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    ends += [(None, None)] * 3
    return {
        f"{region}_{name}": Score(float(value), *limits, n, "image")
        for name, value, limits in zip(names, stats, ends, strict=False)
        if np.isfinite(value) or name == "ap"
    }


def overlays(data: InstanceData, kept: Partial, rows: list[int], count: int, masks: bool) -> bytes:
    """Sheet of evenly spaced images, annotation beside as many of the best detections as there are objects."""
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    names = {category["id"]: str(category["name"]) for category in data.truth["categories"]}
    tiles: list[Tile] = []
    for row in chosen:
        image, objects = np.asarray(data.image(row)), data.objects[row]
        best = sorted(kept[str(row)], key=lambda one: -one["score"])[: max(1, len(objects))]
        captions = [names[one["category_id"]] for one in objects]
        truth = named_boxes(image, data.boxes(row), captions, TRUTH)
        shown = image
        if masks:
            labels = np.zeros(image.shape[:2], np.uint8)
            for place, one in reversed(list(enumerate(best))):
                labels[decode_mask(one["segmentation"])] = place % 250 + 1
            shown = blend(image, labels)
        captions = [f"{names[one['category_id']]} {one['score']:.2f}" for one in best]
        shown = named_boxes(shown, np.array([one["bbox"] for one in best]), captions, FOUND)
        tiles += [(truth, data.paths[row].rpartition("/")[2]), (shown, f"the best {len(best)} found")]
    return sheet([tiles[i : i + 2 * PAIRS] for i in range(0, len(tiles), 2 * PAIRS)])
