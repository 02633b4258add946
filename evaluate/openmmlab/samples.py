"""Images of our readers, augmented by mmseg's and mmdet's transforms, as samples that their models take.

What is drawn for a sample follows from (seed, draw) alone, whatever the number of processes and wherever training was
interrupted. Pictures are blue, green, red here, as these transforms expect.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from evaluate.metrics.coco import region_mask
from evaluate.openmmlab.library import building
from pretrain.datasets import ImageError
from pretrain.datasets.instances import InstanceData
from pretrain.datasets.masks import VOID, MaskData

ATTEMPTS = 10  # at a crop with something in it

Sample = dict[str, Any]  # "inputs" (3, H, W) uint8 and "data_samples"


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, sizes in pixels as (height, width).

    size: an image is brought into this box, its ratio kept (the longer side to the longer, the shorter to the
    shorter), times a factor drawn from `ratio`; crop: then cut to this size, None for not at all; flip: share of
    images mirrored; distort: random brightness, contrast, saturation and hue.
    """

    size: tuple[int, int]
    ratio: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    flip: float = 0.5
    distort: bool = False

    def protocol(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


class Samples(Dataset):
    """(draw, row) -> a training sample of image `row`, or with draw -1 a test sample without annotation.

    make: image `row` as the dictionary that the transforms work on. With `images.skip_bad` the next image stands in
    for a damaged one in training, whose row is then among "damaged" of the sample.
    """

    def __init__(self, images: Any, make: Callable[[int], Sample], steps: list, plain: list, test: list, seed: int):
        self.images, self.make, self.seed = images, make, seed
        self.steps, self.plain, self.test = steps, plain, test

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Raises ImageError naming a damaged image or annotation."""
        draw, row = key
        if draw < 0:
            return transformed(self.make(row), self.test) or {}
        damaged: list[int] = []
        for step in range(len(self.images) if self.images.skip_bad else 1):
            place = (row + step) % len(self.images)
            try:
                return self.drawn(draw, place) | {"damaged": damaged}
            except ImageError:
                if not self.images.skip_bad:
                    raise
                damaged.append(place)
        raise ImageError(f"no image of {self.images.name} can be used")

    def drawn(self, draw: int, row: int) -> Sample:
        """An augmented sample; the whole image where several crops in turn hold no object."""
        for attempt in range(ATTEMPTS):
            reseed(self.seed, draw, attempt)
            if found := transformed(self.make(row), self.steps):
                return found
        return transformed(self.make(row), self.plain) or {}


def transformed(results: Sample | None, steps: Sequence[Callable]) -> Sample | None:
    """What a chain of transforms makes of an image; None where one of them found nothing left of it."""
    for step in steps:
        if results is None:
            return None
        results = step(results)
    return results


def reseed(*key: int) -> None:
    """Seed the generators that the transforms draw from."""
    value = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)


def mask_samples(images: MaskData, augmentation: Augmentation, seed: int) -> Samples:
    """Samples for mmseg, void pixels 255."""
    from mmseg.registry import TRANSFORMS

    sides = _sides(augmentation.size)
    fitted: Sample = {"type": "Resize", "scale": sides, "keep_ratio": True}
    steps: list[Sample] = [
        {"type": "RandomResize", "scale": sides, "ratio_range": augmentation.ratio, "keep_ratio": True}
    ]
    if augmentation.crop:
        crop = {"type": "RandomCrop", "crop_size": augmentation.crop, "cat_max_ratio": 0.75, "ignore_index": VOID}
        steps.append(crop)
    steps.append({"type": "RandomFlip", "prob": augmentation.flip})
    steps += [{"type": "PhotoMetricDistortion"}] if augmentation.distort else []

    def make(row: int) -> Sample:
        image, mask = images.pair(row)
        return picture(image) | {"gt_seg_map": mask, "seg_fields": ["gt_seg_map"], "reduce_zero_label": False}

    pack = [{"type": "PackSegInputs"}]
    with building("mmseg"):
        chains = [[TRANSFORMS.build(step) for step in [*chain, *pack]] for chain in (steps, [fitted], [fitted])]
    drawn, plain, test = chains
    return Samples(images, make, drawn, plain, test, seed)


def instance_samples(images: InstanceData, augmentation: Augmentation, seed: int, masks: bool) -> Samples:
    """Samples for mmdet with boxes and, if asked for, masks; crowds are marked to be ignored.

    A sample of an image of another size than its annotations are for raises ImageError naming it.
    """
    from mmdet.registry import TRANSFORMS

    sides = _sides(augmentation.size)
    fitted: Sample = {"type": "Resize", "scale": sides, "keep_ratio": True}
    steps: list[Sample] = [
        {"type": "RandomResize", "scale": sides, "ratio_range": augmentation.ratio, "keep_ratio": True}
    ]
    if augmentation.crop:
        crop = {"type": "RandomCrop", "crop_size": augmentation.crop, "crop_type": "absolute"}
        steps.append(crop | {"recompute_bbox": masks, "allow_negative_crop": False})
    steps.append({"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "by_mask": masks})
    steps.append({"type": "RandomFlip", "prob": augmentation.flip})
    steps += [{"type": "PhotoMetricDistortion"}] if augmentation.distort else []
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
    pack = [{"type": "PackDetInputs", "meta_keys": keys}]
    truth = Truth(images, masks)

    def make(row: int) -> Sample:
        image = images.image(row)
        return picture(image) | truth.of(row, image) | {"img_id": images.ids[row], "img_path": images.paths[row]}

    with building("mmdet"):
        chains = [[TRANSFORMS.build(step) for step in [*chain, *pack]] for chain in (steps, [fitted], [fitted])]
    drawn, plain, test = chains
    return Samples(images, make, drawn, plain, test, seed)


class Truth:
    """Annotations of an instance set in mmdet's terms; classes are categories by ascending id."""

    def __init__(self, images: InstanceData, masks: bool):
        self.images, self.masks = images, masks
        self.label = {category["id"]: i for i, category in enumerate(images.truth["categories"])}
        self.listed = images.truth["images"]
        self.by_image: dict[int, list[dict[str, Any]]] = {image: [] for image in images.ids}
        for annotation in images.truth["annotations"]:
            self.by_image.setdefault(annotation["image_id"], []).append(annotation)

    def of(self, row: int, image: Image.Image) -> Sample:
        """Boxes as x1, y1, x2, y2 within the image, classes, crowd flags and masks of image `row`."""
        from mmdet.structures.bbox import HorizontalBoxes
        from mmdet.structures.mask import BitmapMasks

        found = self.by_image[self.images.ids[row]]
        width, height = image.size
        listed = self.listed[row].get("width", width), self.listed[row].get("height", height)
        if listed != (width, height):
            raise ImageError(
                f"{self.images.source.root}/{self.images.paths[row]} has {width} x {height} pixels, its annotations "
                f"are for {listed[0]} x {listed[1]}; use the image that was annotated"
            )
        corners: Any = np.array([a["bbox"] for a in found], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        corners = corners.clip(0, [width, height, width, height])
        results: Sample = {
            "gt_bboxes": HorizontalBoxes(corners, dtype=None),
            "gt_bboxes_labels": np.array([self.label[a["category_id"]] for a in found], np.int64),
            "gt_ignore_flags": np.array([bool(a.get("iscrowd", 0)) for a in found], bool),
        }
        if self.masks:
            regions = [region_mask(a["segmentation"], height, width).astype(np.uint8) for a in found]
            results["gt_masks"] = BitmapMasks(regions, height, width)
        return results


def picture(image: Image.Image) -> Sample:
    """An RGB image as the transforms expect it."""
    pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])
    return {"img": pixels, "img_shape": pixels.shape[:2], "ori_shape": pixels.shape[:2]}


def _sides(size: tuple[int, int]) -> tuple[int, int]:
    """mmcv's order: width, height; with the ratio kept it takes the longer and the shorter, whichever is which."""
    return size[1], size[0]
