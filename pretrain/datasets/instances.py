"""Images with object instances: COCO instances files, and the boxes of PASCAL VOC annotations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pretrain.datasets.base import ImageData, Images
from pretrain.datasets.indexed import image_size
from pretrain.datasets.sources import ImageError, Source, locate, read_lines

SECTIONS = ("images", "annotations", "categories")


class InstanceData(ImageData):
    """An ordered set of images with the objects in each.

    `truth` is a dictionary in the layout of a COCO instances file; `ids` are its image ids, in the order of `paths`.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        paths: Sequence[str],
        truth: dict[str, Any],
        *,
        skip_bad: bool = False,
    ):
        classes = [str(category["name"]) for category in truth["categories"]]
        super().__init__(name, source, paths, classes=classes, skip_bad=skip_bad)
        self.truth = truth
        self.ids = [int(image["id"]) for image in truth["images"]]

    @cached_property
    def objects(self) -> list[list[dict[str, Any]]]:
        """Annotations of every image that are no crowds."""
        place = {image: i for i, image in enumerate(self.ids)}
        found: list[list[dict[str, Any]]] = [[] for _ in self.ids]
        for annotation in self.truth["annotations"]:
            if annotation["image_id"] in place and not annotation.get("iscrowd", 0):
                found[place[annotation["image_id"]]].append(annotation)
        return found

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels of image `index`, as annotated."""
        image = self.truth["images"][index]
        return int(image["height"]), int(image["width"])

    def boxes(self, index: int) -> np.ndarray:
        """Boxes (n, 4) as x, y, width, height in pixels of the objects in image `index`, crowds left out."""
        return np.array([annotation["bbox"] for annotation in self.objects[index]], np.float64).reshape(-1, 4)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all names and file sizes of images, and of all that is annotated."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path}\0{self.source.size(path)}\n".encode())
        kept = {section: self.truth[section] for section in SECTIONS}
        digest.update(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())
        return digest.hexdigest()[:16]


class CocoInstances(InstanceData):
    """COCO: `annotations/instances_<split>.json` and the images that it names, in `<split>/`.

    split: "val2017" and the like; `annotations` and `images` replace the two places where a dataset has others.
    Images without an object take part. Raises FileNotFoundError naming the layout, and ImageError for a file that is
    no COCO instances file.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str = "coco",
        name: str = "",
        annotations: str = "",
        images: str = "",
        skip_bad: bool = False,
    ):
        file, place = annotations or f"annotations/instances_{split}.json", images or split
        layout = f"annotations/ with {file}, and {place}/<file_name>"
        source = locate(root, folder, layout, file.partition("/")[0])
        if source.size(file) == 0:
            raise FileNotFoundError(f"no instances file {source.root}/{file}; expected {layout}")
        truth = read_instances(source.read(file), f"{source.root}/{file}")
        truth["images"] = sorted(truth["images"], key=lambda image: image["id"])
        paths = [f"{place}/{image['file_name']}" for image in truth["images"]]
        super().__init__(name or folder or source.root.name, source, paths, truth, skip_bad=skip_bad)


class VOCBoxes(InstanceData):
    """PASCAL VOC: `ImageSets/Main/<split>.txt`, `JPEGImages/<id>.jpg` and the boxes of `Annotations/<id>.xml`.

    All objects count, difficult ones too (`difficult=false` leaves these out). classes: names of the objects, in the
    order of the classes; without them all are one class, "object". `root` as in `VOCMasks`; `folder` replaces the
    places that are looked in. Raises FileNotFoundError naming the layout, ImageError naming an annotation that cannot
    be read or an object of no class.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        year: str = "VOC2012",
        difficult: bool = True,
        classes: Sequence[str] = (),
        folder: str | Sequence[str] = "",
        name: str = "voc",
        skip_bad: bool = False,
    ):
        layout = "JPEGImages/<id>.jpg, Annotations/<id>.xml and ImageSets/Main/<split>.txt"
        places = (f"VOCdevkit/{year}", year, f"voc/VOCdevkit/{year}", f"voc/{year}", "voc")
        source = locate(root, folder or places, layout)
        ids = [line.split()[0] for line in read_lines(source, f"ImageSets/Main/{split}.txt", layout)]
        truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        names = {name: i for i, name in enumerate(classes or ("object",), start=1)}
        truth["categories"] = [{"id": i, "name": name} for name, i in names.items()]
        for number, image in enumerate(ids, start=1):
            where = f"Annotations/{image}.xml"
            size, boxes, found = read_voc_boxes(source.read(where), f"{source.root}/{where}", difficult)
            if wrong := [name for name in found if classes and name not in names]:
                raise ImageError(f"{source.root}/{where}: {wrong[0]!r} is none of {', '.join(names)}")
            truth["images"].append({"id": number, "file_name": f"{image}.jpg", "width": size[0], "height": size[1]})
            for (x, y, w, h), object_name in zip(boxes, found, strict=True):
                item = {"id": len(truth["annotations"]) + 1, "image_id": number, "iscrowd": 0}
                item["category_id"] = names[object_name] if classes else 1
                truth["annotations"].append(item | {"bbox": [x, y, w, h], "area": w * h})
        super().__init__(name, source, [f"JPEGImages/{image}.jpg" for image in ids], truth, skip_bad=skip_bad)


class Unannotated(InstanceData):
    """Every image below a folder (or in a tar archive) as a set without annotations: to look at what is found in them.

    The size of every image is read when the set is opened; raises ImageError naming one that is no image, and otherwise
    as `pretrain.datasets.Images`.
    """

    def __init__(self, root: str | Path, *, folder: str = "", name: str = "", skip_bad: bool = False):
        images = Images(root, folder=folder, name=name)
        truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
        for number, path in enumerate(images.paths, start=1):
            width, height = image_size(images.source.read(path), f"{images.source.root}/{path}")
            truth["images"].append({"id": number, "file_name": path, "width": width, "height": height})
        super().__init__(images.name, images.source, images.paths, truth, skip_bad=skip_bad)


def read_instances(data: bytes, where: str) -> dict[str, Any]:
    """Content of a COCO instances file; raises ImageError naming the file and what it lacks."""
    try:
        truth = json.loads(data)
    except ValueError as error:
        raise ImageError(f"{where} is no JSON: {error}") from error
    missing = [key for key in SECTIONS if key not in truth] if isinstance(truth, dict) else list(SECTIONS)
    if missing:
        raise ImageError(f"{where} is no COCO instances file: it lacks {', '.join(missing)}")
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for annotation in truth["annotations"]:
        if problem := _wrong(annotation, images, categories):
            raise ImageError(f"{where}: annotation {annotation.get('id')} {problem}")
    return truth


def _wrong(annotation: dict[str, Any], images: dict[int, dict[str, Any]], categories: set[int]) -> str:
    """What is wrong with an annotation, if anything."""
    image, category = images.get(annotation["image_id"]), annotation.get("category_id")
    if image is None:
        return f"names image id {annotation['image_id']}, which is not listed"
    left, top, width, height = annotation["bbox"]
    if min(width, height) < 0:
        return f"has box {annotation['bbox']} of negative size"
    right, bottom = image.get("width", left + 1), image.get("height", top + 1)
    if left + width < 0 or top + height < 0 or left > right or top > bottom:
        return f"has box {annotation['bbox']} outside its image of {right} x {bottom} pixels"
    if category not in categories:
        return f"names category id {category}, which is not listed"
    return ""


def read_voc_boxes(
    data: bytes, where: str, difficult: bool
) -> tuple[tuple[int, int], list[tuple[float, ...]], list[str]]:
    """Width and height of an image, its boxes as x, y, width, height in pixels counted from 0, and their names.

    Raises ImageError naming the file when it is not such an annotation.
    """
    if b"<!" in data.replace(b"<!--", b""):  # a document type could define entities without end
        raise ImageError(f"{where}: an annotation needs no document type; remove it")
    try:
        root = ElementTree.fromstring(data)
        size = int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
        boxes: list[tuple[float, ...]] = []
        names: list[str] = []
        for item in root.iter("object"):
            if not difficult and item.findtext("difficult", "0").strip() == "1":
                continue
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append((left - 1, top - 1, right - left + 1, bottom - top + 1))  # pixels from 1, both ends inside
            names.append(item.findtext("name", "").strip())
        return size, boxes, names
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageError(f"{where} is no PASCAL VOC annotation: {error}") from error
