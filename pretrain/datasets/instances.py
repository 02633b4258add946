"""Images with object instances: COCO instances files, and the boxes of PASCAL VOC annotations."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pretrain.datasets.base import ImageData, Images
from pretrain.datasets.indexed import image_size
from pretrain.datasets.sources import ImageError, Source, locate, read_lines, require

SECTIONS = ("images", "annotations", "categories")
SIDES = {"width", "height"}
IMAGE: dict[str, tuple[Any, str]] = {
    "id": (int, "a whole number"),
    "file_name": (str, "a path"),
    **dict.fromkeys(("width", "height"), (int, "a positive number of pixels")),
}
CATEGORY: dict[str, tuple[Any, str]] = {"id": (int, "a whole number"), "name": (str | int, "text")}


class InstanceData(ImageData):
    """An ordered set of images with the objects in each.

    `truth` is a dictionary in the layout of a COCO instances file with its categories by ascending id, the order of
    `classes`; `ids` are its image ids, in the order of `paths`.
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
        truth = truth | {"categories": sorted(truth["categories"], key=lambda category: category["id"])}
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
            digest.update(f"{path}\0{self.source.size(path)}\n".encode(errors="surrogateescape"))
        kept = {section: self.truth[section] for section in SECTIONS}
        digest.update(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())
        return digest.hexdigest()[:16]


class CocoInstances(InstanceData):
    """COCO: `annotations/instances_<split>.json` and the images that it names, in `<split>/`.

    split: "val2017" and the like; `annotations` and `images` replace the two places where a dataset has others.
    Images without an object take part. Raises FileNotFoundError naming the layout, and ImageError for a file that is
    no COCO instances file, naming the entry that is wrong.
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
            raise FileNotFoundError(f"no instances file {source.root}/{file}, or an empty one; expected {layout}")
        require(source, place, layout)
        truth = read_instances(source.read(file), f"{source.root}/{file}")
        truth["images"] = sorted(truth["images"], key=lambda image: image["id"])
        paths = [f"{place}/{image['file_name']}" for image in truth["images"]]
        super().__init__(name or folder or source.root.name, source, paths, truth, skip_bad=skip_bad)


class VOCBoxes(InstanceData):
    """PASCAL VOC: `ImageSets/Main/<split>.txt`, `JPEGImages/<id>.jpg` and the boxes of `Annotations/<id>.xml`.

    All objects count, difficult ones too (`difficult=false` leaves these out). classes: names of the objects, in the
    order of the classes; without them all are one class, "object". `root` as in `VOCMasks`; `folder` replaces the
    places that are looked in. Raises FileNotFoundError naming the layout or the annotation that is missing, ImageError
    naming an annotation that cannot be read, a box outside its image or inside out, or an object of no class.
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
            require(source, where, layout)
            size, boxes, found = read_voc_boxes(source.read(where), f"{source.root}/{where}", difficult)
            if wrong := [name for name in found if classes and name not in names]:
                raise ImageError(f"{source.root}/{where}: {wrong[0]!r} is none of {', '.join(names)}")
            truth["images"].append({"id": number, "file_name": f"{image}.jpg", "width": size[0], "height": size[1]})
            for (x, y, w, h), object_name in zip(boxes, found, strict=True):
                item: dict[str, Any] = {"id": len(truth["annotations"]) + 1, "image_id": number, "iscrowd": 0}
                item["category_id"] = names[object_name] if classes else 1
                item |= {"bbox": [x, y, w, h], "area": w * h}
                if outside := _outside(item["bbox"], *size):
                    raise ImageError(f"{source.root}/{where}: an object {object_name!r} {outside}")
                truth["annotations"].append(item)
        super().__init__(name, source, [f"JPEGImages/{image}.jpg" for image in ids], truth, skip_bad=skip_bad)


class Unannotated(InstanceData):
    """Every image below a folder (or in a tar archive) as a set without annotations: to look at what is found in them.

    The size of every image is read when the set is opened; raises ImageError naming one that is no image (`skip_bad`
    keeps it, of no size, to be counted when it is read), and otherwise as `pretrain.datasets.Images`.
    """

    def __init__(self, root: str | Path, *, folder: str = "", name: str = "", skip_bad: bool = False):
        images = Images(root, folder=folder, name=name)
        truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
        for number, path in enumerate(images.paths, start=1):
            try:
                width, height = image_size(images.source.read(path), f"{images.source.root}/{path}")
            except ImageError:
                if not skip_bad:
                    raise
                width, height = 0, 0
            truth["images"].append({"id": number, "file_name": path, "width": width, "height": height})
        super().__init__(images.name, images.source, images.paths, truth, skip_bad=skip_bad)


def has_mask(annotation: dict[str, Any]) -> bool:
    """Whether an annotation has run lengths or a polygon; exports of boxes alone leave an empty list of polygons."""
    region = annotation.get("segmentation")
    return any(region) if isinstance(region, list) else bool(region)


def read_instances(data: bytes, where: str) -> dict[str, Any]:
    """Content of a COCO instances file; raises ImageError naming the file, the entry and what is wrong with it."""
    try:
        truth = json.loads(data)
    except ValueError as error:
        raise ImageError(f"{where} is no JSON: {error}") from error
    missing = [key for key in SECTIONS if key not in truth] if isinstance(truth, dict) else list(SECTIONS)
    if missing:
        raise ImageError(f"{where} is no COCO instances file: it lacks {', '.join(missing)}")
    for key in SECTIONS:
        if not isinstance(truth[key], list):
            raise ImageError(f"{where}: {key!r} is {truth[key]!r:.60}, expected a list of entries")
    images = _by_id(truth["images"], "image", IMAGE, where)
    categories = _by_id(truth["categories"], "category", CATEGORY, where)
    for place, annotation in enumerate(truth["annotations"]):
        if problem := _wrong(annotation, images, categories):
            raise ImageError(f"{where}: {_label('annotation', annotation, place)} {problem}")
    return truth


def _label(what: str, entry: Any, place: int) -> str:
    """An entry as messages name it: by its id, or by its place in the list where it has none."""
    if isinstance(entry, dict) and "id" in entry:
        return f"{what} {entry['id']!r}"
    return f"{what} at place {place} of the list"


def _by_id(entries: list[Any], what: str, fields: dict[str, tuple[Any, str]], where: str) -> dict[int, dict[str, Any]]:
    """Entries of a list by id; raises ImageError naming one that lacks a field, or an id that stands twice."""
    found: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        label = _label(what, entry, place)
        if not isinstance(entry, dict):
            raise ImageError(f"{where}: {label} is {entry!r:.60}, expected an object")
        for field, (kind, expected) in fields.items():
            if field not in entry:
                raise ImageError(f"{where}: {label} lacks {field}")
            value = entry[field]
            if not isinstance(value, kind) or isinstance(value, bool) or field in SIDES and value < 1:
                raise ImageError(f"{where}: {label} has {field} {value!r:.60}, expected {expected}")
        if entry["id"] in found:
            raise ImageError(f"{where}: {label} is listed twice; ids must differ")
        found[entry["id"]] = entry
    return found


def _finite(values: list[Any]) -> bool:
    """Whether all are finite numbers; their sum tells, many times faster than a look at each."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _wrong(annotation: Any, images: dict[int, dict[str, Any]], categories: dict[int, dict[str, Any]]) -> str:
    """What is wrong with an annotation, if anything."""
    if not isinstance(annotation, dict):
        return f"is {annotation!r:.60}, expected an object"
    if lacks := [field for field in ("image_id", "bbox") if field not in annotation]:
        return f"lacks {lacks[0]}"
    if problem := _unlisted(annotation, "image_id", images):
        return problem
    image, box = images[annotation["image_id"]], annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not _finite(box):
        return f"has bbox {box!r:.60}, expected four finite numbers: x, y, width, height"
    problem = _outside(box, image["width"], image["height"]) or _unlisted(annotation, "category_id", categories)
    return problem or _bad_region(annotation, image)


def _unlisted(annotation: dict[str, Any], field: str, known: dict[int, dict[str, Any]]) -> str:
    """Whether an annotation names an image or a category that its file does not list, in words."""
    if field not in annotation:
        return f"lacks {field}"
    value = annotation[field]
    if not isinstance(value, int | float) or value not in known:
        return f"names {field.replace('_', ' ')} {value!r:.60}, which is not listed"
    return ""


def _outside(box: Sequence[float], right: int, bottom: int) -> str:
    """What is wrong with a box x, y, width, height in an image of so many pixels, if anything."""
    left, top, width, height = box
    if min(width, height) < 0:
        return f"has box {list(box)} of negative size"
    if left + width < 0 or top + height < 0 or left > right or top > bottom:
        return f"has box {list(box)} outside its image of {right} x {bottom} pixels"
    return ""


def _bad_region(annotation: dict[str, Any], image: dict[str, Any]) -> str:
    """What is wrong with the mask of an annotation, if anything; none is no fault."""
    if not has_mask(annotation):
        return ""
    region, size = annotation["segmentation"], [image["height"], image["width"]]
    if isinstance(region, dict):
        if region.get("size") != size:
            return f"has a mask of size {region.get('size')!r:.60} for an image of {size} (height, width)"
        return "" if isinstance(region.get("counts"), str | list) else "has a mask without run lengths (counts)"
    if not isinstance(region, list) or not all(isinstance(polygon, list) for polygon in region):
        return f"has segmentation {region!r:.60}, expected polygons or run lengths"
    for polygon in region:
        if len(polygon) < 6 or len(polygon) % 2 or not _finite(polygon):
            return f"has polygon {polygon!r:.60}, expected x, y of at least three corners"
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
            if not right >= left or not bottom >= top:
                raise ValueError(f"box {[left, top, right, bottom]} ends before it begins (xmin, ymin, xmax, ymax)")
            boxes.append((left - 1, top - 1, right - left + 1, bottom - top + 1))  # pixels from 1, both ends inside
            names.append(item.findtext("name", "").strip())
        return size, boxes, names
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageError(f"{where} is no PASCAL VOC annotation: {error}") from error
