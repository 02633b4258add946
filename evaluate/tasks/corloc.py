"""Single-object discovery: TokenCut on a frozen backbone, scored by CorLoc (correct localisation).

Wang et al. 2022, "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from evaluate.cuts import alike, check_cuts, cut_images, cut_protocol
from evaluate.metrics.masks import nearest_resize, tight_box
from evaluate.overlay import Tile, outline, sheet
from evaluate.partial import Partial
from evaluate.tasks.base import Result, Subject, Task, Unavailable, accuracy
from pretrain.datasets.instances import InstanceData

OVERLAP = 0.5  # IoU from which on a box is correct
TRUTH, FOUND = (80, 255, 80), (255, 60, 60)
COLUMNS = 6


class CorLoc(Task):
    """Share of images in which the one box found overlaps some annotated object with an IoU of 0.5 or more.

    tau, size, feature, center and pictures as in `objects`; the method's own tau is 0.2. Images without an object are
    left out. The image is resized to a square, where the paper keeps its size.
    """

    name = "corloc"

    def __init__(
        self, tau: float = 0.2, size: int = 480, feature: str = "keys", center: bool = False, pictures: int = 18
    ):
        check_cuts(tau, size, feature)
        self.tau, self.size, self.feature, self.center, self.pictures = tau, size, feature, center, pictures

    @property
    def splits(self) -> tuple[str, ...]:
        """Images with boxes."""
        return ("instances",)

    def main(self, subject: Subject) -> str:
        """CorLoc."""
        return "corloc"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Input, graph and the overlap that counts."""
        shared = cut_protocol(subject, self.tau, self.size, self.feature, self.center)
        return shared | {"method": "TokenCut", "features": self.feature, "iou": OVERLAP, "images": "with an object"}

    def check(self, subject: Subject) -> None:
        """Needs boxes, and a backbone with the features that it cuts."""
        if not isinstance(data := subject.data.split("instances"), InstanceData):
            raise Unavailable(f"{data.name} has no instances", "use a dataset with boxes or masks of objects")
        if self.feature == "keys" and not hasattr(subject.backbone, "keys"):
            remedy = "evaluate a vision transformer, or set feature=patches"
            raise Unavailable("the checkpoint has no attention, hence no keys", remedy)
        if not any(data.objects):
            raise Unavailable(f"{data.name} has no annotated object", "use a dataset with boxes of objects")

    def prepare(self, subject: Subject) -> None:
        """Cut this process's share of the images."""
        self.cut(subject, subject.store.share(self.rows(subject)))

    def rows(self, subject: Subject) -> list[int]:
        """Images with an object."""
        objects = subject.data.split("instances").objects  # type: ignore[attr-defined]
        return [row for row, annotations in enumerate(objects) if annotations]

    def cut(self, subject: Subject, rows: list[int]) -> Partial:
        """Boxes of images, from earlier runs where they were kept: {row: x, y, width, height or None if damaged}."""
        data: Any = subject.data.split("instances")
        settings = self.protocol(subject) | {"data": data.fingerprint}
        kept = Partial(subject.store, subject.backbone, self.name, settings, data.name)
        todo = [row for row in rows if str(row) not in kept]
        for cut in cut_images(subject, data, todo, self.tau, self.size, self.feature, 1, self.center, corners=False):
            box = None if cut.masks is None else found_box(cut.masks[0], cut.size, data.size(cut.row))
            kept.add(str(cut.row), box)
        return kept

    def run(self, subject: Subject) -> Result:
        """Cut what is not cut yet, and score."""
        data: Any = subject.data.split("instances")
        kept, wanted = self.cut(subject, self.rows(subject)), self.rows(subject)
        rows = [row for row in wanted if kept[str(row)] is not None]
        best = np.array([box_iou(np.array(kept[str(row)]), data.boxes(row)).max() for row in rows])
        correct = best >= OVERLAP
        outcomes = {"sample_id": np.array([data.paths[row] for row in rows]), "correct": correct, "best_iou": best}
        skipped = {"images": len(wanted) - len(rows), "images without an object": len(data) - len(wanted)}
        files = {"boxes.png": overlays(data, kept, rows, self.pictures)} if self.pictures and rows else {}
        empty = sum(not any(kept[str(row)]) for row in rows)
        notes = [f"{empty} images without a box: {alike(self.tau, self.center)}"] if empty else []
        return Result({"corloc": accuracy(correct, "image")}, outcomes, skipped, notes, files)


def found_box(grid: Tensor, side: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Box (x, y, width, height) in pixels of the original image around a mask on the patch grid; zeros for none."""
    return tight_box(nearest_resize(nearest_resize(grid, side), size).numpy())


def box_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one box (4,) with others (n, 4), as x, y, width, height: (n,)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=1)
    return inside / np.maximum(box[2:].prod() + others[:, 2:].prod(axis=1) - inside, 1e-12)


def overlays(data: InstanceData, kept: Partial, rows: list[int], count: int) -> bytes:
    """Sheet of evenly spaced images with the box found in red and the annotated boxes in green."""
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    tiles: list[Tile] = []
    for row in chosen:
        picture = outline(np.asarray(data.image(row)), data.boxes(row), TRUTH)
        tiles.append((outline(picture, np.array([kept[str(row)]]), FOUND), data.paths[row].rpartition("/")[2]))
    return sheet([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)])
