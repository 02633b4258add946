"""Detection heads: scores from saved detections, a frozen backbone, resuming, and what annotations may not hold."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import save_tiny_run, subject
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store
from evaluate.metrics.coco import coco_ap, encode_mask, region_mask
from evaluate.metrics.coco_bootstrap import class_intervals, class_matches
from evaluate.openmmlab import training
from evaluate.openmmlab.sizes import base_stride
from evaluate.run import load_task
from evaluate.tasks.base import Data, Unavailable
from pretrain.checkpoint import weights_digest
from pretrain.datasets import ImageError
from pretrain.datasets.instances import CocoInstances, VOCBoxes

COLOURS = [(230, 40, 40), (40, 60, 230)]
SHORT: dict[str, Any] = {
    "iterations": 4, "batch_size": 2, "warmup": 1, "lr": 0.002, "size": [32, 32], "jitter": [0.8, 1.2], "pictures": 2,
    "crop": [32, 32], "frozen": True, "strides": [8, 16], "channels": 8, "hidden": 16, "anchor": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


def write(root: Path, split: str, count: int, masks: bool = True, **changes: Any) -> None:
    """Images of 32 pixels with one square each, red or blue, and their COCO file; the last image is empty."""
    rng = np.random.default_rng(len(split))
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
    (root / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels, (x, y) = rng.integers(0, 30, (32, 32, 3)), rng.integers(2, 14, 2)
        truth["images"].append({"id": 10 + i, "file_name": f"{i}.png", "width": 32, "height": 32})
        if i < count - 1:
            pixels[y : y + 14, x : x + 14] = COLOURS[i % 2]
            mask = np.zeros((32, 32), bool)
            mask[y : y + 14, x : x + 14] = True
            one = {"id": i + 1, "image_id": 10 + i, "category_id": (3, 7)[i % 2], "iscrowd": 0, "area": 196}
            one |= {"bbox": [int(x), int(y), 14, 14]} | ({"segmentation": encode_mask(mask)} if masks else {})
            truth["annotations"].append(one)
        Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{i}.png")
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "set", "train", 7)
    write(tmp_path / "set", "val", 5)
    return tmp_path / "set"


def squares(root: Path) -> Data:
    splits = {"instances_train": "train", "instances": "val"}
    return Data("squares", {name: (lambda s=s: CocoInstances(root, s, folder="")) for name, s in splits.items()})


def task(name: str = "detection_mask_rcnn", **settings: Any) -> Any:
    return load_task(name, **SHORT | settings)


def official(truth: Path, found: list[dict[str, Any]], iou_type: str) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(truth))
        evaluator = COCOeval(reference, reference.loadRes(found), iou_type)
        evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
    return evaluator.stats


def test_a_record_holds_the_ap_of_the_saved_detections_as_pycocotools_has_it(root, run, tmp_path):
    store = Store(tmp_path / "cache", workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda name: squares(root), quiet=True)
    bench.evaluate({str(run): [Item(task(), "squares")]})
    assert bench.unfit == []
    [record] = bench.written
    files = {Path(file).name: tmp_path / file for file in record.provenance["files"]}
    assert set(files) == {"curve.csv", "curve.png", "detections.json", "detections.png"}
    found = json.loads(files["detections.json"].read_text())
    assert found, "nothing was detected: the comparison would be empty"
    for region, iou_type in (("box", "bbox"), ("mask", "segm")):
        boxless = [{k: v for k, v in one.items() if iou_type == "bbox" or k != "bbox"} for one in found]
        stats = official(root / "annotations" / "instances_val.json", boxless, iou_type)
        for name, value in zip(("ap", "ap50", "ap75"), stats, strict=False):
            assert record.scores[f"{region}_{name}"].value == pytest.approx(value, abs=1e-9)
    assert record.main == "mask_ap" and len(record.main_outcomes()) == 5 and np.isnan(record.main_outcomes()[-1])
    assert record.protocol["schedule"]["iterations"] == 4 and "1 training images without an object" in record.notes[1]
    bench.evaluate({str(run): [Item(task(), "squares")]})
    assert bench.current == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detection_mask_rcnn", "detection_cascade", "detection_retinanet"])
def test_a_short_training_finds_squares_and_a_frozen_backbone_stays_as_it_was(root, run, tmp_path, name):
    given = subject(run, squares(root), tmp_path)
    before = weights_digest(given.backbone)
    result = task(name, iterations=80, lr=0.005, batch_size=4, jitter=[1.0, 1.0], convs=1, standardise=True).run(given)
    assert weights_digest(given.backbone) == before
    assert result.scores["box_ap50"].value > 0.3
    losses = [float(line.split(",")[2]) for line in result.files["curve.csv"].decode().splitlines()[1:]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("frozen", [True, False])
def test_an_interrupted_training_ends_with_the_weights_of_one_that_was_not(root, run, tmp_path, monkeypatch, frozen):
    whole = task("detection_retinanet", frozen=frozen).trained(subject(run, squares(root), tmp_path / "a"))
    again = subject(run, squares(root), tmp_path / "b")
    original = training.Training.note

    def stop(self: Any, values: Any, share: float) -> None:
        original(self, values, share)
        if self.iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of an iteration

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "note", stop)
        task("detection_retinanet", frozen=frozen).trained(again)
    resumed = task("detection_retinanet", frozen=frozen).trained(again)
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    before = weights_digest(again.backbone)
    assert (weights_digest(whole.model.backbone.network) == before) is frozen


def test_the_pyramid_has_its_strides_and_is_contiguous(run):
    from evaluate.openmmlab import library

    library.load("mmdet")
    from evaluate.openmmlab.pyramid import SimplePyramid

    maps = torch.randn(1, 16, 8, 6)  # of an image of 64 x 48 pixels at stride 8
    for given in (maps, maps.contiguous(memory_format=torch.channels_last)):
        levels = SimplePyramid(16, 8, 8, (2, 4, 8, 16, 32))((given,))
        assert [level.shape[-2:] for level in levels] == [(32, 24), (16, 12), (8, 6), (4, 3), (2, 2)]
        assert all(level.is_contiguous() and level.shape[1] == 8 for level in levels)


@pytest.mark.parametrize(("head", "name"), [("retinanet", "bbox_head"), ("mask_rcnn", "rpn_head")])
def test_heads_start_with_the_published_gain_at_any_width(root, run, tmp_path, head, name):
    from evaluate.openmmlab import library

    library.load("mmdet")
    from evaluate.openmmlab.detectors import build_detector

    network = subject(run, squares(root), tmp_path).backbone
    for channels in (16, 256):
        torch.manual_seed(0)
        model: Any = build_detector(network, head, 2, strides=[8], frozen=True, channels=channels, hidden=8, convs=2)
        own = [layer for layer in getattr(model, name).modules() if isinstance(layer, torch.nn.Conv2d)]
        weights = next(layer.weight for layer in own if layer.weight.shape[:2] == (channels, channels))
        assert float(weights.detach().std()) * channels**0.5 == pytest.approx(0.16, rel=0.05)  # 0.01 at 256 channels
        if head == "retinanet":
            assert len(model.bbox_head.cls_convs) == len(model.bbox_head.reg_convs) == 2
            bias = model.bbox_head.retina_cls.bias.detach()
            assert torch.allclose(bias.sigmoid(), torch.full_like(bias, 0.01))  # the prior of arXiv 1708.02002
        else:
            assert len(model.roi_head.mask_head.convs) == 2


def test_a_standardised_pyramid_does_not_see_what_all_patches_share():
    from evaluate.openmmlab import library

    library.load("mmdet")
    from evaluate.openmmlab.pyramid import SimplePyramid

    maps, shared = torch.randn(4, 16, 8, 6), 100 * torch.randn(16, 1, 1)
    for standardise, same in ((True, True), (False, False)):
        torch.manual_seed(0)
        pyramid = SimplePyramid(16, 8, 8, (8, 16), standardise)
        for one, other in zip(pyramid((maps,)), pyramid((maps + shared,)), strict=True):
            assert torch.allclose(one, other, atol=1e-3) is same
    assert not list(SimplePyramid(16, 8, 8, (8,), True).first.parameters())


def test_the_base_of_the_pyramid_is_the_power_of_two_nearest_to_the_patch():
    assert [base_stride(patch) for patch in (4, 8, 14, 16, 32)] == [4, 8, 16, 16, 32]


# ---- bad input


def test_what_cannot_run_is_said_before_any_work(root, run, tmp_path):
    given = subject(run, squares(root), tmp_path)
    task().check(given)
    with pytest.raises(Unavailable, match="raw pixels have no network"):
        task().check(subject(f"pixels:{run}", squares(root), tmp_path))
    write(root, "val", 3, categories=[{"id": 3, "name": "red"}, {"id": 7, "name": "green"}])
    with pytest.raises(Unavailable, match=r"differ in category 7 \(blue, green\)"):
        task().check(subject(run, squares(root), tmp_path))
    write(root, "val", 3, masks=False)
    with pytest.raises(Unavailable, match="have no masks; use task=detection_retinanet"):
        task().check(subject(run, squares(root), tmp_path))
    task("detection_retinanet").check(subject(run, squares(root), tmp_path))
    write(root, "train", 3, annotations=[])
    with pytest.raises(Unavailable, match="no training image of .* has an object"):
        task("detection_retinanet").check(subject(run, squares(root), tmp_path))
    with pytest.raises(ValueError, match="powers of two"):
        task(strides=[4, 6])


@pytest.mark.parametrize(
    "change, says",
    [
        ({"image_id": 99}, "annotation 1 names image id 99"),
        ({"category_id": 4}, "annotation 1 names category id 4"),
        ({"bbox": [40, 2, 5, 5]}, r"annotation 1 has box \[40, 2, 5, 5\] outside its image of 32 x 32 pixels"),
    ],
)
def test_a_wrong_annotation_is_named(root, change, says):
    file = root / "annotations" / "instances_val.json"
    truth = json.loads(file.read_text())
    truth["annotations"][0] |= change
    file.write_text(json.dumps(truth))
    with pytest.raises(ImageError, match=says):
        CocoInstances(root, "val", folder="")


def test_labels_of_training_and_ids_of_results_agree_whatever_the_order_of_either_file(root, run, tmp_path):
    from evaluate.openmmlab.samples import Truth

    listed = [{"id": 7, "name": "blue"}, {"id": 3, "name": "red"}]
    write(root, "train", 7, categories=listed)
    given = subject(run, squares(root), tmp_path)
    task("detection_retinanet").check(given)
    train, test = (given.data.split(split) for split in ("instances_train", "instances"))
    assert train.classes == test.classes == ["red", "blue"]
    assert Truth(train, masks=False).label == Truth(test, masks=False).label == {3: 0, 7: 1}


def test_empty_lists_of_polygons_are_no_masks(root, run, tmp_path):
    write(root, "val", 5, masks=False)
    file = root / "annotations" / "instances_val.json"
    truth = json.loads(file.read_text())
    for annotation in truth["annotations"]:
        annotation["segmentation"] = []
    file.write_text(json.dumps(truth))
    with pytest.raises(Unavailable, match="have no masks; use task=detection_retinanet"):
        task().check(subject(run, squares(root), tmp_path))
    with pytest.raises(ValueError, match="annotation 1 of .* has no segmentation"):
        coco_ap(file, [], iou_type="segm")


def test_an_empty_annotation_file_is_named(root):
    (root / "annotations" / "instances_val.json").write_text("")
    with pytest.raises(FileNotFoundError, match=r"instances_val\.json, or an empty one; expected annotations/"):
        CocoInstances(root, "val", folder="")


@pytest.mark.thorough
def test_an_image_of_another_size_than_its_annotations_is_named_or_left_out(root, run, tmp_path):
    Image.new("RGB", (20, 32)).save(root / "val" / "1.png")
    given = subject(run, squares(root), tmp_path)
    with pytest.raises(ImageError, match=r"1\.png has 20 x 32 pixels, its annotations are for 32 x 32"):
        task("detection_retinanet", iterations=1, warmup=0).run(given)
    given.data.split("instances").skip_bad = True
    result = task("detection_retinanet", iterations=1, warmup=0).run(given)
    assert result.skipped == {"test images": 1, "training images": 0} and len(result.outcomes["sample_id"]) == 4
    Image.new("RGB", (20, 32)).save(root / "train" / "1.png")
    given = subject(run, squares(root), tmp_path / "again")
    given.data.split("instances").skip_bad = given.data.split("instances_train").skip_bad = True
    counted = task("detection_retinanet", iterations=4).run(given).skipped
    assert counted == {"test images": 1, "training images": 1}


def test_objects_of_pascal_voc_get_their_classes(tmp_path):
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / "BCCD" / part).mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "BCCD" / "JPEGImages" / "a.jpg")
    (tmp_path / "BCCD" / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>6</xmax><ymax>5</ymax></bndbox>"
    body = f"<size><width>20</width><height>10</height></size><object><name>WBC</name>{box}</object>"
    (tmp_path / "BCCD" / "Annotations" / "a.xml").write_text(f"<annotation>{body}</annotation>")
    options: dict[str, Any] = {"folder": ["BCCD", "bccd"], "name": "bccd"}
    data = VOCBoxes(tmp_path, "train", classes=["RBC", "WBC"], **options)
    assert data.classes == ["RBC", "WBC"] and data.objects[0][0]["category_id"] == 2
    assert data.objects[0][0]["bbox"] == [0, 1, 6, 4]
    assert VOCBoxes(tmp_path, "train", **options).classes == ["object"]
    with pytest.raises(ImageError, match=r"a\.xml: 'WBC' is none of RBC"):
        VOCBoxes(tmp_path, "train", classes=["RBC"], **options)


# ---- metrics


def test_regions_are_read_from_polygons_and_from_both_kinds_of_run_lengths():
    wanted = np.zeros((6, 8), bool)
    wanted[1:4, 2:6] = True
    compressed = encode_mask(wanted)
    flat = np.concatenate([[False], wanted.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [wanted.size]])).tolist()
    for region in (compressed, {"size": [6, 8], "counts": counts}, [[2, 1, 6, 1, 6, 4, 2, 4]]):
        np.testing.assert_array_equal(region_mask(region, 6, 8), wanted)
    with pytest.raises(ValueError, match=r"size \[6, 8\] for an image of \[8, 6\]"):
        region_mask(compressed, 8, 6)


def test_class_aware_ap_with_its_interval_is_the_coco_ap():
    rng, truth = np.random.default_rng(0), {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": c, "name": str(c)} for c in (1, 2, 5)]  # nothing is annotated as 5
    found = []
    for image in range(1, 25):
        truth["images"].append({"id": image, "width": 100, "height": 100})
        for _ in range(rng.integers(0, 4)):
            x, y = rng.integers(0, 60, 2).tolist()
            category = int(rng.integers(1, 3))
            one = {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category, "iscrowd": 0}
            truth["annotations"].append(one | {"bbox": [x, y, 30, 20], "area": 600})
            shift = rng.integers(-6, 7, 2)
            box = [int(x + shift[0]), int(y + shift[1]), 30, 20]
            found.append({"image_id": image, "category_id": category, "bbox": box, "score": float(rng.random())})
        found.append({"image_id": image, "category_id": 1, "bbox": [0, 0, 9, 9], "score": float(rng.random())})
    values, ends = class_intervals(class_matches(truth, found, iou_type="bbox"))
    np.testing.assert_allclose(values, coco_ap(truth, found, iou_type="bbox")[:3], atol=1e-9)
    assert all(low < value < high for value, (low, high) in zip(values, ends, strict=True))
    empty, unknown = class_intervals(class_matches(truth | {"annotations": []}, found, iou_type="bbox"))
    assert np.isnan(empty).all() and unknown == [(None, None)] * 3
