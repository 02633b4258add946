"""Cityscapes: images of 50 cities with semantic masks of 19 classes (Cordts et al. 2016, arXiv 1604.01685)."""

from __future__ import annotations

from pathlib import Path

from pretrain.datasets.base import is_image
from pretrain.datasets.masks import MaskData
from pretrain.datasets.sources import locate

CLASSES = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
]  # fmt: skip
IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"


class Cityscapes(MaskData):
    """Cityscapes: `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/.../*_gtFine_labelTrainIds.png`, 255 void.

    The masks with train ids are those that the publisher's `csCreateTrainIdLabelImgs` writes. Raises FileNotFoundError
    naming the layout.
    """

    def __init__(self, root: str | Path, split: str, *, name: str = "cityscapes", skip_bad: bool = False):
        layout = f"leftImg8bit/{split}/<city>/<name>{IMAGE} and gtFine/{split}/<city>/<name>{MASK}"
        source = locate(root, ("cityscapes", "Cityscapes"), layout)
        paths = [path for path in source.names(f"leftImg8bit/{split}") if is_image(path) and path.endswith(IMAGE)]
        if not paths:
            raise FileNotFoundError(f"no image in {source.root}/leftImg8bit/{split}; expected {layout}")
        masks = ["gtFine" + path.removeprefix("leftImg8bit").removesuffix(IMAGE) + MASK for path in paths]
        super().__init__(name, source, paths, masks, CLASSES, skip_bad=skip_bad)
