"""Images with semantic masks: PASCAL VOC 2012, ADE20K, CamVid, or any folder of images beside a folder of masks.

A mask is an indexed PNG (grey or palette) of its image's size whose pixel values are class indices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pretrain.datasets.base import ImageData, is_image
from pretrain.datasets.indexed import decode_labels
from pretrain.datasets.sources import ImageError, Source, locate, read_lines

VOID = 255  # label of pixels that do not count
VOC = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
VOC_FOLDERS = ("VOCdevkit/VOC2012", "VOC2012", "voc/VOCdevkit/VOC2012", "voc/VOC2012", "voc")
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
ADE20K_CLASSES = 150


class MaskData(ImageData):
    """An ordered set of images with a mask each; `classes` names the labels 0..C-1.

    masks: relative names, in the order of `paths`. A stored value is lowered by `shift`; what then lies below 0, and
    the stored values of `void` and 255, are void (255). Raises FileNotFoundError naming a mask that is missing, and
    ValueError for more than 255 classes.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        paths: Sequence[str],
        masks: Sequence[str],
        classes: Sequence[str],
        *,
        void: int = VOID,
        shift: int = 0,
        skip_bad: bool = False,
    ):
        super().__init__(name, source, paths, classes=classes, skip_bad=skip_bad)
        if len(classes) > VOID:
            raise ValueError(
                f"{name} has {len(classes)} classes, but masks hold at most {VOID} (0..{VOID - 1}, void {VOID}); "
                "merge some of them"
            )
        known = set(source.names())
        if missing := [mask for mask in masks if mask not in known]:
            raise FileNotFoundError(f"{len(missing)} images of {name} have no mask, first {source.root}/{missing[0]}")
        self.masks, self.void, self.shift = list(masks), void, shift

    def mask(self, index: int) -> np.ndarray:
        """Class indices of every pixel of image `index`, 255 void: (H, W) uint8.

        Raises ImageError naming the file when it is damaged, in colour, of another size than its image, or holds a
        label that is no class.
        """
        return self.pair(index)[1]

    def pair(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image and mask `index`; raises as `image` and `mask` do."""
        image, where = self.image(index), f"{self.source.root}/{self.masks[index]}"
        stored = decode_labels(self.source.read(self.masks[index]), where)
        if stored.shape != (image.height, image.width):
            raise ImageError(
                f"mask {where} has {stored.shape[1]} x {stored.shape[0]} pixels, its image {image.width} x "
                f"{image.height}; make it again at the size of the image"
            )
        labels = stored.astype(np.int64) - self.shift
        void = (stored == self.void) | (stored == VOID) | (labels < 0)
        classes = labels[~void]
        if classes.size and (largest := int(classes.max())) >= len(self.classes):
            raise ImageError(
                f"mask {where} holds label {largest + self.shift}, but {self.name} has {len(self.classes)} classes "
                f"({self.shift}..{len(self.classes) - 1 + self.shift}) and void {self.void}"
            )
        return image, np.where(void, VOID, labels).astype(np.uint8)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all names and file sizes of images and masks, and of what the stored values mean."""
        digest = hashlib.sha256(f"{len(self.classes)} {self.void} {self.shift}\n".encode())
        for pair in zip(self.paths, self.masks, strict=True):
            line = "\0".join(f"{path}\0{self.source.size(path)}" for path in pair)
            digest.update(f"{line}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


class Masks(MaskData):
    """Any two folders with files of equal names: `root/<images>/<name>.jpg` and `root/<masks>/<name>.png`.

    classes: their number or their names; without either, the lines of `root/classes.txt`, or where there is no such
    file as many as the largest label in any mask below the first folder of `masks` asks for. An image without a mask is
    an error (`allow_unmasked` leaves it out); a mask without an image is not looked at. Raises FileNotFoundError naming
    the expected layout.
    """

    def __init__(
        self,
        root: str | Path,
        images: str,
        masks: str,
        classes: int | Sequence[str] | None = None,
        *,
        folder: str = "",
        name: str = "",
        void: int = VOID,
        shift: int = 0,
        allow_unmasked: bool = False,
        skip_bad: bool = False,
    ):
        layout = f"{images}/<name>.jpg and {masks}/<name>.png"
        source = locate(root, folder, layout)
        names = source.names()
        paths = [path for path in names if path.startswith(f"{images}/") and is_image(path)]
        if not paths or not any(path.startswith(f"{masks}/") for path in names):
            raise FileNotFoundError(f"no images or no masks in {source.root}; expected {layout}")
        stored = set(names)
        pairs = [(path, f"{masks}/{PurePosixPath(path[len(images) + 1 :]).with_suffix('.png')}") for path in paths]
        if allow_unmasked:
            pairs = [pair for pair in pairs if pair[1] in stored]
        if classes is None:
            listed = source.holds("classes.txt")
            classes = (
                read_lines(source, "classes.txt", layout)
                if listed
                else largest_label(source, masks, void, shift, skip_bad=skip_bad) + 1
            )
        labels = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        options = {"void": void, "shift": shift, "skip_bad": bool(skip_bad)}
        super().__init__(name or folder or source.root.name, source, *_split(pairs), labels, **options)  # type: ignore[arg-type]


def largest_label(source: Source, masks: str, void: int, shift: int, *, skip_bad: bool = False) -> int:
    """Largest class in the masks below the first folder of `masks`, so that all splits agree.

    Raises ImageError for a damaged mask, which `skip_bad` passes over.
    """
    largest = 0
    for path in source.names(masks.split("/")[0]):
        if is_image(path):
            try:
                stored = decode_labels(source.read(path), f"{source.root}/{path}")
            except ImageError:
                if not skip_bad:
                    raise
                continue
            labels = stored[(stored != void) & (stored != VOID)].astype(np.int64) - shift
            largest = max(largest, int(labels.max(initial=0)))
    return largest


class VOCMasks(MaskData):
    """PASCAL VOC 2012: `ImageSets/Segmentation/<split>.txt`, `JPEGImages/`, `SegmentationClass/`; 21 classes, 255 void.

    The split `trainaug` reads its masks from `SegmentationClassAug/` (Hariharan et al. 2011). `root` is the folder
    VOC2012, VOCdevkit, or a parent of either. Raises FileNotFoundError naming the expected layout.
    """

    def __init__(self, root: str | Path, split: str, *, name: str = "voc", skip_bad: bool = False):
        layout = "JPEGImages/<id>.jpg, SegmentationClass/<id>.png, ImageSets/Segmentation/<split>.txt"
        source = locate(root, VOC_FOLDERS, layout)
        masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
        ids = read_lines(source, f"ImageSets/Segmentation/{split}.txt", layout)
        # Some distributions of trainaug.txt give two paths a line instead of an id.
        ids = [PurePosixPath(line.split()[0]).stem for line in ids]
        pairs = [(f"JPEGImages/{i}.jpg", f"{masks}/{i}.png") for i in ids]
        super().__init__(name, source, *_split(pairs), VOC, skip_bad=skip_bad)


class ADE20K(MaskData):
    """ADE20K: `images/<split>/` and `annotations/<split>/`, splits training and validation; 150 classes.

    Stored values are one higher than class indices; 0 ("other") is void. Raises FileNotFoundError naming the layout.
    """

    def __init__(self, root: str | Path, split: str, *, name: str = "ade20k", skip_bad: bool = False):
        layout = f"images/{split}/<id>.jpg and annotations/{split}/<id>.png"
        source = locate(root, ("ADEChallengeData2016", "ade20k/ADEChallengeData2016", "ade20k"), layout)
        paths = [path for path in source.names() if path.startswith(f"images/{split}/") and is_image(path)]
        if not paths:
            raise FileNotFoundError(f"no image in {source.root}/images/{split}; expected {layout}")
        pairs = [(path, f"annotations/{split}/{PurePosixPath(path).stem}.png") for path in paths]
        classes = [str(i) for i in range(ADE20K_CLASSES)]
        super().__init__(name, source, *_split(pairs), classes, shift=1, skip_bad=skip_bad)


class CamVid(MaskData):
    """CamVid as SegNet distributes it: `<split>.txt` with an image and a mask a line, 11 classes, 11 void.

    The lists give paths of another machine; their last two components are kept and looked for below the dataset.
    Without a list, `<split>/` and `<split>annot/` are paired by name. Raises FileNotFoundError naming the layout.
    """

    def __init__(self, root: str | Path, split: str, *, name: str = "camvid", skip_bad: bool = False):
        layout = f"{split}/<name>.png and {split}annot/<name>.png"
        source = locate(root, ("CamVid", "camvid"), layout, (split, f"{split}.txt"))
        if source.holds(f"{split}.txt"):
            lines = [line.split() for line in read_lines(source, f"{split}.txt", layout)]
            if wrong := [line for line in lines if len(line) != 2]:
                raise ImageError(f"{source.root}/{split}.txt: expected an image and a mask a line, got {wrong[0]}")
            pairs = [("/".join(PurePosixPath(a).parts[-2:]), "/".join(PurePosixPath(b).parts[-2:])) for a, b in lines]
        else:
            paths = [path for path in source.names() if path.startswith(f"{split}/") and is_image(path)]
            pairs = [(path, f"{split}annot/{PurePosixPath(path).stem}.png") for path in paths]
        super().__init__(name, source, *_split(pairs), CAMVID, void=len(CAMVID), skip_bad=skip_bad)


def _split(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [image for image, _ in pairs], [mask for _, mask in pairs]
