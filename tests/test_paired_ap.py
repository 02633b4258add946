"""The paired test of a COCO AP: equal to ranking everything anew, calibrated where nothing differs."""

from itertools import product

import numpy as np
import pytest
from example_records import record

from evaluate.leaderboard.compare import compare_records
from evaluate.metrics.coco import coco_ap
from evaluate.metrics.coco_bootstrap import by_image, class_matches
from evaluate.metrics.paired_ap import Side, paired_ap, set_ap
from evaluate.records import Score

CLASSES = (1, 4)


def world(images: int, seed: int = 0) -> dict:
    """Ground truth of two classes, some images without an object, one object a crowd."""
    rng = np.random.default_rng(seed)
    truth = {"images": [{"id": i, "width": 90, "height": 90} for i in range(1, images + 1)], "annotations": []}
    truth["categories"] = [{"id": c, "name": str(c)} for c in CLASSES]
    for image in truth["images"]:
        for _ in range(rng.integers(0, 4)):
            x, y = rng.integers(0, 60, 2).tolist()
            one = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0, "area": 600}
            truth["annotations"].append(one | {"category_id": int(rng.choice(CLASSES)), "bbox": [x, y, 30, 20]})
    truth["annotations"][0]["iscrowd"] = 1
    return truth


def detector(truth: dict, seed: int, blur: float) -> list[dict]:
    """Boxes moved by `blur` pixels and some false ones; scores of two digits, so that many are equal."""
    rng, found = np.random.default_rng(seed), []
    for one in truth["annotations"]:
        x, y, width, height = one["bbox"]
        box = [float(x + blur * rng.normal()), float(y + blur * rng.normal()), width, height]
        same = {"image_id": one["image_id"], "category_id": one["category_id"]}
        found.append(same | {"bbox": box, "score": round(float(rng.random()), 1)})
    for image in truth["images"]:
        false = {"image_id": image["id"], "category_id": int(rng.choice(CLASSES)), "bbox": [1, 1, 9, 9]}
        found.append(false | {"score": round(float(rng.random()), 1)})
    return found


def side(truth: dict, found: list[dict]) -> Side:
    kept = by_image(class_matches(truth, found, iou_type="bbox"))
    return Side(kept["ap_matches"], kept["ap_objects"])


def ap(truth: dict, found: list[dict]) -> float:
    return coco_ap(truth, found, iou_type="bbox")[0]


def test_what_is_kept_gives_the_ap_of_the_set():
    truth = world(30)
    for seed in range(3):
        found = detector(truth, seed, 3.0)
        stats = coco_ap(truth, found, iou_type="bbox")
        assert set_ap(side(truth, found)) == pytest.approx(stats[0], abs=1e-9)
        assert set_ap(side(truth, found), 1) == pytest.approx(stats[1], abs=1e-9)
    assert set_ap(side(truth, [])) == 0


def test_the_p_value_is_that_of_all_exchanges_by_hand():
    truth = world(5, seed=1)
    a, b = detector(truth, 0, 1.0), detector(truth, 1, 6.0)
    observed, extreme = ap(truth, a) - ap(truth, b), 0
    for swap in product((False, True), repeat=5):
        sides = [
            [d for d in one if not swap[d["image_id"] - 1]] + [d for d in two if swap[d["image_id"] - 1]]
            for one, two in ((a, b), (b, a))
        ]
        extreme += abs(ap(truth, sides[0]) - ap(truth, sides[1])) >= abs(observed) - 1e-12
    found = paired_ap(side(truth, a), side(truth, b), samples=1000)
    assert found.difference == pytest.approx(observed, abs=1e-9)
    assert found.low < found.difference < found.high
    assert found.p_value == pytest.approx(extreme / 2**5, abs=0.06), "1,000 draws: one standard error is 0.016 at most"


@pytest.mark.thorough
def test_equal_detectors_do_not_differ_and_the_level_is_kept():
    truth = world(12)
    a = side(truth, detector(truth, 0, 3.0))
    assert paired_ap(a, a, samples=50) == (0, 0, 0, 1)
    rejected = 0
    for i in range(40):
        pair = (side(truth, detector(truth, 2 * i, 3.0)), side(truth, detector(truth, 2 * i + 1, 3.0)))
        rejected += paired_ap(*pair, thresholds=1, samples=60).p_value <= 0.05
    assert rejected <= 7, "5 % of 40, and what chance adds in all but one of a thousand"


def test_other_objects_and_a_single_image_are_named():
    truth = world(4)
    one = side(truth, detector(truth, 0, 3.0))
    with pytest.raises(ValueError, match="same objects"):
        paired_ap(one, Side(one.matches, one.objects + 1))
    with pytest.raises(ValueError, match="two or more"):
        paired_ap(*[Side(one.matches[:1], one.objects[:1])] * 2)


def detected(name: str, seed: int, blur: float, order=slice(None), **changes):
    truth = world(40)
    found = detector(truth, seed, blur)
    kept = by_image(class_matches(truth, found, iou_type="bbox"))
    outcomes = {"sample_id": np.arange(40), "box_ap": np.random.default_rng(seed).random(40)} | kept
    outcomes = {key: values[order] for key, values in outcomes.items()}
    fields = {"task": "detection_retinanet", "main": "box_ap", "outcomes": outcomes}
    fields["scores"] = {"box_ap": Score(ap(truth, found), None, None, 40)}
    return record(name, **fields | changes)


def test_detectors_are_compared_by_the_score_itself_in_whatever_order_their_images_lie():
    a, b = detected("a", 0, 1.0), detected("b", 1, 8.0)
    found = compare_records(a, b, samples=300)
    assert found.test == "permutation of images" and found.p_value < 0.01 and found.note == ""
    assert found.mean_difference == pytest.approx(found.difference)
    assert found.low < found.difference < found.high < 0
    shuffled = detected("b", 1, 8.0, np.random.default_rng(3).permutation(40))
    assert compare_records(a, shuffled, samples=300).mean_difference == pytest.approx(found.difference)
    other = detected("b", 1, 8.0, scores={"box_ap": Score(0.1, None, None, 40)})
    assert "not of the score itself" in compare_records(a, other, samples=300).note, "matches of something else"
