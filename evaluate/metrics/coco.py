"""COCO average precision of boxes and masks, class-aware or class-agnostic.

Lin et al. 2014 ("Microsoft COCO: Common Objects in Context") and the evaluator published with it define the numbers;
the matching itself is faster-coco-eval's. Around it stand the cases in which evaluators disagree or fail: equal
scores, empty results, results that carry both a box and a mask, annotation id 0.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_utils

STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
FIELDS = {"bbox": "bbox", "segm": "segmentation"}
IMAGES_AT_ONCE = 32  # per-image scores: the evaluator visits every pair of image and category

Annotation = dict[str, Any]
Truth = str | Path | Mapping[str, Any]


def coco_ap(
    truth_json: str | Path | Mapping[str, Any],
    detections: list[Annotation],
    *,
    iou_type: str,
    class_agnostic: bool = False,
) -> np.ndarray:
    """The 12 COCO summary numbers: AP, AP50, AP75, AP by object size (3), AR for 1, 10, 100 detections, AR by size (3).

    truth_json: an instances file (COCO layout) or its content; detections: result dictionaries with `image_id`,
    `category_id`, `score` and `bbox` (x, y, width, height in pixels) or `segmentation` (run lengths); iou_type: "bbox"
    or "segm".
    `class_agnostic` merges all categories into one and keeps the crowd flags. Equal scores keep the order of the list
    (class-agnostic: ascending category id, then the list, as the published evaluator reads them); a mask's area is
    that of the mask even if the result has a box too. Returns (12,) float64 in [0, 1]; -1 where no ground truth
    remains, 0 for no detections. Raises FileNotFoundError for a missing file, ValueError for an unknown image, a
    negative box side, a value that is not finite or a mask of another size than its image; in class-aware mode an
    unknown category is left out with a warning.
    """
    truth = _read_truth(truth_json, iou_type, class_agnostic)
    evaluator = _evaluate(truth, _read_detections(truth, detections, iou_type, class_agnostic), iou_type)
    evaluator.summarize()
    return np.array(evaluator.stats[:12], dtype=np.float64)


def coco_image_ap(
    truth_json: str | Path | Mapping[str, Any],
    detections: list[Annotation],
    *,
    iou_type: str,
    class_agnostic: bool = False,
) -> dict[int, float]:
    """AP (IoU 0.50:0.95) of every image on its own, for paired tests between two detectors.

    Arguments and errors as in `coco_ap`. Returns one value per image id, averaged over the categories annotated in
    that image; NaN for an image without ground truth. The mean of these values is not the AP of the set, which ranks
    all images together.
    """
    truth = _read_truth(truth_json, iou_type, class_agnostic)
    found = _read_detections(truth, detections, iou_type, class_agnostic)
    scores: dict[int, float] = {}
    for part, part_found in _image_chunks(truth, found):
        owners = _split_categories_by_image(part, part_found)
        precision = _evaluate(part, part_found, iou_type).eval["precision"][:, :, :, 0, -1]  # (IoU, recall, owners)
        by_owner = precision.mean(axis=(0, 1))
        for image in part["images"]:
            values = [v for v, owner in zip(by_owner, owners, strict=True) if owner == image["id"] and v > -1]
            scores[image["id"]] = float(np.mean(values)) if values else float("nan")
    return scores


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Run-length code of a mask as COCO result files hold it.

    mask (H, W) boolean; returns {"size": [H, W], "counts": str}, ready for JSON.
    """
    code = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = code["counts"]
    return {
        "size": [int(side) for side in code["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def decode_mask(code: Mapping[str, Any]) -> np.ndarray:
    """Mask (H, W) boolean of a run-length code, compressed or not."""
    height, width = code["size"]
    counts = mask_utils.frPyObjects(dict(code), height, width) if isinstance(code["counts"], list) else dict(code)
    return mask_utils.decode(counts).astype(bool)


def region_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Mask (height, width) boolean of an annotation's `segmentation`: polygons, or run lengths compressed or not.

    Raises ValueError for run lengths of another size.
    """
    if not isinstance(segmentation, dict):
        parts = mask_utils.frPyObjects(segmentation, height, width)
        return mask_utils.decode(mask_utils.merge(parts)).astype(bool)
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"a mask of size {list(segmentation['size'])} for an image of {[height, width]}")
    return decode_mask(segmentation)


def _evaluate(truth: dict, found: list[Annotation], iou_type: str) -> COCOeval_faster:
    # The evaluator needs one result at least: an empty box at score 0 matches nothing, so AP is 0 with ground truth.
    found = found or _placeholder(truth, iou_type)
    results = {key: truth[key] for key in ("images", "categories")} | {"annotations": found}
    for number, (detection, area) in enumerate(zip(found, _areas(found, iou_type), strict=True), start=1):
        detection |= {"id": number, "area": area, "iscrowd": 0}
    evaluator = COCOeval_faster(COCO(truth), COCO(results), iouType=iou_type, extra_calc=False, rle_iou_max_workers=1)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _areas(found: list[Annotation], iou_type: str) -> list[float]:
    if iou_type == "bbox":
        return [width * height for _, _, width, height in (detection["bbox"] for detection in found)]
    return [float(area) for area in mask_utils.area([detection["segmentation"] for detection in found])]


def _placeholder(truth: dict, iou_type: str) -> list[Annotation]:
    image = truth["images"][0]
    base = {"image_id": image["id"], "category_id": truth["categories"][0]["id"], "score": 0.0}
    if iou_type == "bbox":
        return [base | {"bbox": [0.0, 0.0, 0.0, 0.0]}]
    return [base | {"segmentation": encode_mask(np.zeros((image["height"], image["width"]), dtype=bool))}]


def _read_truth(source: Truth, iou_type: str, class_agnostic: bool) -> dict:
    if iou_type not in FIELDS:
        raise ValueError(f"unknown iou_type {iou_type!r}; available: bbox, segm")
    if isinstance(source, Mapping):
        path, truth = "the ground truth", dict(source)
        truth["annotations"] = [dict(annotation) for annotation in source.get("annotations", ())]
    elif not Path(source).is_file():
        raise FileNotFoundError(
            f"no instances file at {source}; expected COCO JSON with images, annotations, categories"
        )
    else:
        path, truth = str(source), json.loads(Path(source).read_text())
    if missing := [key for key in ("images", "annotations", "categories") if key not in truth]:
        raise ValueError(f"{path} is no COCO instances file: it lacks {', '.join(missing)}")
    if not truth["images"]:
        raise ValueError(f"{path} lists no images")
    for number, annotation in enumerate(truth["annotations"], start=1):
        if annotation.get(FIELDS[iou_type]) is None or not len(annotation[FIELDS[iou_type]]):
            raise ValueError(
                f"annotation {annotation.get('id', number)} of {path} has no {FIELDS[iou_type]}: {iou_type} needs it"
            )
        # The matching looks annotations up by id and marks "unmatched" with 0: ids must be unique and positive.
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        if class_agnostic:
            annotation["category_id"] = 1
    if class_agnostic:
        truth["categories"] = [{"id": 1, "name": "object"}]
    return truth


def _read_detections(
    truth: dict, detections: list[Annotation], iou_type: str, class_agnostic: bool
) -> list[Annotation]:
    """Checked copies that hold only what `iou_type` needs; a box beside a mask would set the mask's area."""
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    kept, unknown = [], set()
    for number, detection in enumerate(detections):
        image = images.get(detection["image_id"])
        if image is None:
            raise ValueError(f"detection {number} names image id {detection['image_id']}, which the ground truth lacks")
        category = 1 if class_agnostic else detection["category_id"]
        if category not in categories:
            unknown.add(category)
            continue
        if not np.isfinite(detection["score"]):
            raise ValueError(f"detection {number} (image {image['id']}) has score {detection['score']}")
        region = {FIELDS[iou_type]: _checked_region(detection, image, iou_type, number)}
        kept.append({"image_id": image["id"], "category_id": category, "score": float(detection["score"])} | region)
    if class_agnostic:
        # The evaluator without categories still gathers an image's results category by category; only equal scores
        # notice.
        kept = [kept[i] for i in sorted(range(len(kept)), key=lambda i: detections[i].get("category_id", 0))]
    if unknown:
        warnings.warn(f"ignored detections of unknown categories {sorted(unknown, key=str)}", stacklevel=3)
    return kept


def _checked_region(detection: Annotation, image: dict, iou_type: str, number: int) -> Any:
    where = f"detection {number} (image {image['id']})"
    if FIELDS[iou_type] not in detection:
        raise ValueError(f"{where} has no {FIELDS[iou_type]}: {iou_type} needs it")
    if iou_type == "bbox":
        box = [float(side) for side in detection["bbox"]]
        if not all(map(np.isfinite, box)) or box[2] < 0 or box[3] < 0:
            raise ValueError(f"{where} has box {box}; width and height must be finite and not negative")
        return box
    code = detection["segmentation"]
    if not isinstance(code, dict):
        raise ValueError(f"{where} has a mask that is not run-length coded; expected size and counts")
    height, width = image["height"], image["width"]
    if list(code["size"]) != [height, width]:
        raise ValueError(f"{where} has a mask of size {list(code['size'])}, but the image is {[height, width]}")
    return mask_utils.frPyObjects(code, height, width) if isinstance(code["counts"], list) else dict(code)


def _image_chunks(truth: dict, found: list[Annotation]) -> Iterator[tuple[dict, list[Annotation]]]:
    """The same ground truth and detections, a few images at a time."""
    chunk_of = {image["id"]: index // IMAGES_AT_ONCE for index, image in enumerate(truth["images"])}
    parts: list[tuple[dict, list]] = [
        ({"images": truth["images"][start : start + IMAGES_AT_ONCE], "annotations": []}, [])
        for start in range(0, len(truth["images"]), IMAGES_AT_ONCE)
    ]
    for annotation in truth["annotations"]:
        if annotation["image_id"] in chunk_of:
            parts[chunk_of[annotation["image_id"]]][0]["annotations"].append(annotation)
    for detection in found:
        parts[chunk_of[detection["image_id"]]][1].append(detection)
    return iter(parts)


def _split_categories_by_image(part: dict, found: list[Annotation]) -> list[int]:
    """Give every pair of image and category a category of its own, so that one run ranks each image separately.

    Changes the category ids in place and returns, in the order of the new ids, the image that each belongs to.
    """
    pairs = sorted({(item["image_id"], item["category_id"]) for item in part["annotations"] + found})
    pairs = pairs or [(part["images"][0]["id"], 1)]
    new_id = {pair: number for number, pair in enumerate(pairs, start=1)}
    for item in part["annotations"] + found:
        item["category_id"] = new_id[item["image_id"], item["category_id"]]
    part["categories"] = [{"id": number, "name": str(number)} for number in new_id.values()]
    return [image_id for image_id, _ in pairs]
