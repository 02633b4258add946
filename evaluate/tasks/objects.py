"""Objects without supervision: MaskCut on a frozen backbone, scored as class-agnostic COCO detection.

Wang et al. 2023, "Cut and Learn for Unsupervised Object Detection and Instance Segmentation" (CutLER), whose masks are
scored here as they are, without the detector that CutLER trains on them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from evaluate.cuts import Cut, alike, check_cuts, cut_images, cut_protocol
from evaluate.metrics.coco import decode_mask
from evaluate.metrics.coco_bootstrap import Matches, agnostic_matches, by_image, interval
from evaluate.metrics.graph_cut import maskcut, maskcut_batch, masks_to_detections, refined_detections
from evaluate.overlay import Tile, blend, outline, sheet
from evaluate.partial import Partial
from evaluate.tasks.base import Result, Score, Subject, Task, Unavailable
from pretrain.datasets.instances import InstanceData, has_mask

__all__ = ["Objects", "maskcut", "maskcut_batch", "masks_to_detections"]

REGIONS = {"box": "bbox", "mask": "segm"}  # iou_type
MEASURES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
TRUTH = (80, 255, 80)
FOUND = (255, 60, 60)
COLUMNS = 6  # of the sheet


class Objects(Task):
    """COCO AP of the masks and boxes that MaskCut finds, all categories merged into one.

    tau: cosine above which two patches are joined; stages: masks an image, at most; size: side of the square input in
    pixels; feature: "keys" of the last attention or "patches"; center: whether the mean of an image's patches is taken
    off them first; crf: whether a dense CRF draws the masks to the edges of the image, as published; pictures: images
    on the overlay sheet. MaskCut has no scores: stage t counts 1/t. A record keeps AP of single images and, for paired
    tests of the AP of the whole set, what each detection matched.
    """

    name = "objects"

    def __init__(
        self,
        tau: float = 0.15,
        stages: int = 3,
        size: int = 480,
        feature: str = "keys",
        center: bool = False,
        crf: bool = False,
        pictures: int = 18,
    ):
        check_cuts(tau, size, feature)
        if stages < 1 or pictures < 0:
            raise ValueError(f"stages={stages} must be at least 1 and pictures={pictures} not negative")
        self.tau, self.stages, self.size, self.feature = tau, stages, size, feature
        self.center, self.crf, self.pictures = center, crf, pictures

    @property
    def splits(self) -> tuple[str, ...]:
        """Images with instances."""
        return ("instances",)

    def main(self, subject: Subject) -> str:
        """AP of boxes at an IoU of 0.50."""
        return "box_ap50"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Input, graph, masks and the rules of the metric."""
        shared = cut_protocol(subject, self.tau, self.size, self.feature, self.center)
        shared |= {"method": "MaskCut", "stages": self.stages, "crf": self.crf, "fill_holes": True, "scores": "1/stage"}
        return shared | {"ap": "COCO, class-agnostic, 100 detections", "features": self.feature}

    def check(self, subject: Subject) -> None:
        """Needs instances, and a backbone with the features that it cuts."""
        images(subject, self.feature)

    def prepare(self, subject: Subject) -> None:
        """Cut this process's share of the images."""
        data = images(subject, self.feature)
        self.cut(subject, data, subject.store.share(range(len(data))))

    def cut(self, subject: Subject, data: InstanceData, rows: list[int]) -> Partial:
        """Detections of images, from earlier runs where they were kept: {row: COCO results, or None if damaged}."""
        settings = self.protocol(subject) | {"data": data.fingerprint}
        kept = Partial(subject.store, subject.backbone, self.name, settings, data.name)
        todo = [row for row in rows if str(row) not in kept]
        for cut in cut_images(subject, data, todo, self.tau, self.size, self.feature, self.stages, self.center):
            kept.add(str(cut.row), None if cut.masks is None else self.detections(cut, data))
        return kept

    def detections(self, cut: Cut, data: InstanceData) -> list[dict[str, Any]]:
        """COCO results of one image."""
        assert cut.masks is not None
        size, image_id = data.size(cut.row), data.ids[cut.row]
        if not self.crf:
            return masks_to_detections(cut.masks, size, image_id=image_id, input_size=cut.size)
        assert cut.image is not None
        return refined_detections(cut.masks, cut.image, size, image_id=image_id)

    def run(self, subject: Subject) -> Result:
        """Cut what is not cut yet, and score."""
        data = images(subject, self.feature)
        kept = self.cut(subject, data, list(range(len(data))))
        rows = [row for row in range(len(data)) if kept[str(row)] is not None]
        rows.sort(key=data.ids.__getitem__)  # equal scores rank by image id
        found = [detection for row in rows for detection in kept[str(row)]]
        truth = data.truth | {"images": [data.truth["images"][row] for row in rows]}
        listed = set(data.ids[row] for row in rows)
        truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] in listed]
        scores: dict[str, Score] = {}
        outcomes = {"sample_id": np.array([data.paths[row] for row in rows])}
        masks = all(map(has_mask, truth["annotations"]))
        for region, iou_type in REGIONS.items():
            if region == "box" or masks:
                matches = agnostic_matches(truth, found, iou_type=iou_type)
                scores |= region_scores(matches, region)
                single = matches.by_image()
                outcomes |= {f"{region}_ap": single.mean(axis=0), f"{region}_ap50": single[0]}
                outcomes |= by_image([matches]) if region == "box" else {}
        count = np.array([len(kept[str(row)]) for row in rows])
        outcomes["detections"] = count
        notes = [f"{count.sum() / max(len(rows), 1):.2f} objects found an image"]
        if empty := int((count == 0).sum()):
            notes.append(f"{empty} images without: {alike(self.tau, self.center)}")
        files = {"detections.json": json.dumps(found).encode()}
        if self.pictures and rows:
            files["masks.png"] = overlays(data, kept, rows, self.pictures)
        return Result(scores, outcomes, {"images": len(data) - len(rows)}, notes, files)


def images(subject: Subject, feature: str) -> InstanceData:
    """The split with instances; raises Unavailable where there is none, or where the backbone has no such features."""
    data = subject.data.split("instances")
    if not isinstance(data, InstanceData):
        raise Unavailable(f"{data.name} has no instances", "use a dataset with boxes or masks of objects")
    if feature == "keys" and not hasattr(subject.backbone, "keys"):
        raise Unavailable(
            "the checkpoint has no attention, hence no keys", "evaluate a vision transformer, or set feature=patches"
        )
    return data


def region_scores(matches: Matches, region: str) -> dict[str, Score]:
    """AP, AP50 and AP75 of boxes or masks with their intervals."""
    n = int((matches.objects > 0).sum())
    ends = interval(matches.precision(), matches.resampled(), n)
    values = ((measure, matches.stat(name)) for measure, name in MEASURES.items())
    return {
        f"{region}_{measure}": Score(value, low, high, n, "image")
        for (measure, value), (low, high) in zip(values, ends, strict=True)
    }


def overlays(data: InstanceData, kept: Partial, rows: list[int], count: int) -> bytes:
    """Sheet of evenly spaced images with the masks found, their boxes in red and the annotated boxes in green."""
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    tiles: list[Tile] = []
    for row in chosen:
        image, found = np.asarray(data.image(row)), kept[str(row)]
        labels = np.zeros(image.shape[:2], np.uint8)
        for stage in reversed(range(len(found))):
            labels[decode_mask(found[stage]["segmentation"])] = stage + 1
        picture = outline(blend(image, labels), data.boxes(row), TRUTH)
        picture = outline(picture, np.array([detection["bbox"] for detection in found]), FOUND)
        tiles.append((picture, f"{data.paths[row].rpartition('/')[2]}: {len(found)} found"))
    return sheet([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])
