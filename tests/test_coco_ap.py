"""COCO AP against pycocotools, the published evaluator's golden numbers, and cases with a known answer."""

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate.metrics.coco import STAT_NAMES, coco_ap, coco_image_ap, encode_mask

GOLDEN = Path(__file__).parent / "golden" / "eval"
TRUTH = GOLDEN / "coco_gt.json"
MODES = [(iou_type, agnostic) for iou_type in ("bbox", "segm") for agnostic in (False, True)]


@pytest.fixture(scope="module")
def detections():
    return json.loads((GOLDEN / "coco_dets.json").read_text())


def published_evaluator(truth: dict, detections: list[dict], iou_type: str, agnostic: bool) -> np.ndarray:
    """pycocotools, with the field that would decide the area of a mask taken away."""
    truth, detections = copy.deepcopy(truth), copy.deepcopy(detections)
    for detection in detections:
        detection.pop("bbox" if iou_type == "segm" else "segmentation", None)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes(detections), iou_type)
        evaluator.params.useCats = int(not agnostic)
        evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
    return evaluator.stats


def scene(tmp_path, boxes, *, images=1, size=100, crowd=()):
    """An instances file with `boxes` = (image id, category id, box); returns its path."""
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": int(number in crowd),
            "segmentation": box_mask(box, size),
        }
        for number, (image, category, box) in enumerate(boxes)
    ]
    truth = {
        "images": [{"id": i, "height": size, "width": size, "file_name": f"{i}.jpg"} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(truth))
    return path


def box_mask(box, size=100) -> dict:
    x, y, width, height = box
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return encode_mask(mask)


def hit(box, *, image=1, category=1, score=0.5) -> dict:
    return {"image_id": image, "category_id": category, "score": score, "bbox": list(box)}


@pytest.mark.parametrize(("iou_type", "agnostic"), MODES)
def test_ap_equals_the_golden_values(detections, iou_type, agnostic):
    golden = np.load(GOLDEN / "coco_ap.npz")
    assert tuple(golden["stat_names"]) == STAT_NAMES
    ours = coco_ap(TRUTH, detections, iou_type=iou_type, class_agnostic=agnostic)
    expected = golden[f"{iou_type}_class_{'agnostic' if agnostic else 'aware'}"]
    np.testing.assert_allclose(ours, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("iou_type", "agnostic"), MODES)
@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_pycocotools_on_shuffled_tied_and_thinned_results(detections, iou_type, agnostic, seed):
    rng = np.random.default_rng(seed)
    results = [copy.deepcopy(detections[i]) for i in rng.permutation(len(detections))[: 210 - 60 * seed]]
    for result in results:
        result["score"] = round(result["score"], 1)  # long runs of equal scores
    expected = published_evaluator(json.loads(TRUTH.read_text()), results, iou_type, agnostic)
    ours = coco_ap(TRUTH, results, iou_type=iou_type, class_agnostic=agnostic)
    np.testing.assert_allclose(ours, expected, atol=1e-12, rtol=0)


def test_area_of_a_mask_result_comes_from_the_mask_even_beside_a_box(detections):
    huge = [detection | {"bbox": [0.0, 0.0, 500.0, 500.0]} for detection in detections]
    ours = coco_ap(TRUTH, huge, iou_type="segm", class_agnostic=False)
    np.testing.assert_array_equal(ours, coco_ap(TRUTH, detections, iou_type="segm", class_agnostic=False))


def test_inputs_are_not_modified(detections):
    before = copy.deepcopy(detections)
    coco_ap(TRUTH, detections, iou_type="segm", class_agnostic=True)
    assert detections == before


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_score_zero_and_no_ground_truth_minus_one(tmp_path, iou_type):
    nothing = coco_ap(scene(tmp_path, []), [], iou_type=iou_type, class_agnostic=True)
    np.testing.assert_array_equal(nothing, -np.ones(12))
    medium = scene(tmp_path, [(1, 1, (10, 10, 50, 50))])
    scores = dict(zip(STAT_NAMES, coco_ap(medium, [], iou_type=iou_type, class_agnostic=True), strict=True))
    assert scores["AP"] == scores["AP50"] == scores["APm"] == scores["AR100"] == 0.0
    assert scores["APs"] == scores["APl"] == -1.0


def test_detections_without_ground_truth_are_undefined(tmp_path):
    path = scene(tmp_path, [])
    np.testing.assert_array_equal(coco_ap(path, [hit((1, 1, 5, 5))], iou_type="bbox"), -np.ones(12))


def test_annotation_id_zero_counts_like_any_other(tmp_path):
    path = scene(tmp_path, [(1, 1, (10, 10, 50, 50))])  # the scene numbers annotations from 0
    assert coco_ap(path, [hit((10, 10, 50, 50))], iou_type="bbox")[0] == pytest.approx(1.0)


def test_agnostic_mode_merges_categories_and_keeps_crowds(tmp_path):
    path = scene(tmp_path, [(1, 2, (10, 10, 40, 40)), (1, 1, (60, 60, 30, 30))], crowd={1})
    wrong_class = [hit((10, 10, 40, 40), score=0.4), hit((62, 62, 10, 10), score=0.9)]
    assert coco_ap(path, wrong_class, iou_type="bbox", class_agnostic=True)[0] == pytest.approx(1.0)
    assert coco_ap(path, wrong_class, iou_type="bbox", class_agnostic=False)[0] == pytest.approx(0.0)


def test_equal_scores_keep_the_order_of_the_list(tmp_path):
    path = scene(tmp_path, [(1, 1, (10, 10, 40, 40))])
    right, wrong = hit((10, 10, 40, 40)), hit((60, 60, 20, 20))
    assert coco_ap(path, [right, wrong], iou_type="bbox")[0] == pytest.approx(1.0)
    assert coco_ap(path, [wrong, right], iou_type="bbox")[0] == pytest.approx(0.5)


def test_equal_scores_of_different_images_rank_by_image_id(tmp_path):
    path = scene(tmp_path, [(1, 1, (10, 10, 40, 40))], images=2)
    right, wrong = hit((10, 10, 40, 40), image=1), hit((60, 60, 20, 20), image=2)
    assert coco_ap(path, [wrong, right], iou_type="bbox")[0] == pytest.approx(1.0)


def test_bad_results_are_refused_with_the_reason(tmp_path):
    path = scene(tmp_path, [(1, 1, (10, 10, 40, 40))])
    with pytest.raises(ValueError, match="image id 77"):
        coco_ap(path, [hit((1, 1, 5, 5), image=77)], iou_type="bbox")
    with pytest.raises(ValueError, match="not negative"):
        coco_ap(path, [hit((10, 10, -4, 5))], iou_type="bbox")
    with pytest.raises(ValueError, match="not negative"):
        coco_ap(path, [hit((10, 10, 4, -5))], iou_type="bbox")
    with pytest.raises(ValueError, match="has score nan"):
        coco_ap(path, [hit((10, 10, 4, 5), score=float("nan"))], iou_type="bbox")
    with pytest.raises(ValueError, match=r"size \[50, 50\], but the image is \[100, 100\]"):
        coco_ap(path, [hit((1, 1, 5, 5)) | {"segmentation": box_mask((1, 1, 5, 5), 50)}], iou_type="segm")
    with pytest.raises(ValueError, match="has no segmentation"):
        coco_ap(path, [hit((1, 1, 5, 5))], iou_type="segm")
    with pytest.raises(ValueError, match="not run-length coded"):
        coco_ap(path, [hit((1, 1, 5, 5)) | {"segmentation": [[1, 1, 5, 1, 5, 5]]}], iou_type="segm")
    boxes_only = json.loads(path.read_text())
    del boxes_only["annotations"][0]["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes_only))
    with pytest.raises(ValueError, match="annotation 0 of .*boxes.json has no segmentation"):
        coco_ap(tmp_path / "boxes.json", [], iou_type="segm")
    with pytest.raises(ValueError, match="unknown iou_type 'keypoints'"):
        coco_ap(path, [], iou_type="keypoints")
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        coco_ap(tmp_path / "nowhere.json", [], iou_type="bbox")
    (tmp_path / "list.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="lacks annotations, categories"):
        coco_ap(tmp_path / "list.json", [], iou_type="bbox")


def test_unknown_categories_are_ignored_with_a_warning_unless_merged(tmp_path):
    path = scene(tmp_path, [(1, 1, (10, 10, 40, 40))])
    results = [hit((10, 10, 40, 40)), hit((60, 60, 20, 20), category=9, score=0.9)]
    with pytest.warns(UserWarning, match=r"unknown categories \[9\]"):
        assert coco_ap(path, results, iou_type="bbox")[0] == pytest.approx(1.0)
    assert coco_ap(path, results, iou_type="bbox", class_agnostic=True)[0] == pytest.approx(0.5)


def test_uncompressed_run_lengths_are_read(tmp_path):
    path = scene(tmp_path, [(1, 1, (0, 0, 10, 100))])
    result = hit((0, 0, 1, 1)) | {"segmentation": {"size": [100, 100], "counts": [0, 1000, 9000]}}
    assert coco_ap(path, [result], iou_type="segm")[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("iou_type", "agnostic"), MODES)
def test_image_ap_equals_evaluating_every_image_alone(tmp_path, detections, iou_type, agnostic, monkeypatch):
    monkeypatch.setattr("evaluate.metrics.coco.IMAGES_AT_ONCE", 7)
    truth = json.loads(TRUTH.read_text())
    scores = coco_image_ap(TRUTH, detections, iou_type=iou_type, class_agnostic=agnostic)
    assert list(scores) == [image["id"] for image in truth["images"]]
    assert np.isnan(list(scores.values())).any() and np.nanmax(list(scores.values())) > 0.2
    for image_id, score in scores.items():
        alone = truth | {
            "images": [image for image in truth["images"] if image["id"] == image_id],
            "annotations": [item for item in truth["annotations"] if item["image_id"] == image_id],
        }
        path = tmp_path / "one.json"
        path.write_text(json.dumps(alone))
        found = [item for item in detections if item["image_id"] == image_id]
        ap = coco_ap(path, found, iou_type=iou_type, class_agnostic=agnostic)[0]
        assert (np.isnan(score) and ap == -1) or score == pytest.approx(ap, abs=1e-12)
