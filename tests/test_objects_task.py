"""The tasks on unsupervised objects: MaskCut to COCO AP, TokenCut to CorLoc, resumable, with pictures; AP resampled."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import save_tiny_run, subject
from PIL import Image

from evaluate import dense
from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store
from evaluate.metrics import coco_ap, coco_bootstrap
from evaluate.metrics.coco import coco_image_ap, encode_mask
from evaluate.metrics.coco_bootstrap import Matches, agnostic_matches, interval
from evaluate.metrics.graph_cut import tokencut
from evaluate.overlay import blend, fitted
from evaluate.partial import Partial
from evaluate.run import load_task
from evaluate.tasks.base import Data, Subject, Unavailable
from evaluate.tasks.corloc import CorLoc, box_iou
from evaluate.tasks.objects import Objects
from pretrain.datasets import ImageError, ImageFolder
from pretrain.datasets.instances import CocoInstances, Unannotated

GOLDEN = Path(__file__).parent / "golden" / "eval"
SETTINGS: dict[str, Any] = {"size": 64, "tau": 0.2, "pictures": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of these tests need not be fine."""
    monkeypatch.setattr(coco_bootstrap, "RESAMPLES", 50)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images of 40 x 60 pixels, each with a bright square, and their COCO instances; the last one has none."""
    rng = np.random.default_rng(0)
    truth: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    for i in range(6):
        pixels, mask = rng.integers(0, 40, (40, 60, 3), dtype=np.uint8), np.zeros((40, 60), bool)
        mask[8:28, 6 * i : 6 * i + 20] = True
        pixels[mask] += 200
        Image.fromarray(pixels).save(tmp_path / "coco" / "val2017" / f"{i}.png")
        truth["images"].append({"id": 10 + i, "file_name": f"{i}.png", "height": 40, "width": 60})
        if i < 5:
            item = {"id": i + 1, "image_id": 10 + i, "category_id": 1, "iscrowd": 0, "area": 400}
            truth["annotations"].append(item | {"bbox": [6 * i, 8, 20, 20], "segmentation": encode_mask(mask)})
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    return tmp_path


def squares(root: Path) -> Data:
    return Data("squares", {"instances": lambda: CocoInstances(root, "val2017", name="squares")})


def square_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are alike where the image is bright: what a good backbone would give."""

    def features(store: Store, backbone: Any, pixels: torch.Tensor, kind: str = "patches", **_: Any) -> torch.Tensor:
        grid = torch.nn.functional.avg_pool2d(pixels.float(), backbone.patch_size)[:, 0] > 120  # (B, h, w)
        return torch.stack([grid, ~grid], dim=-1).float()

    monkeypatch.setattr("evaluate.cuts.dense_features", features)


def test_objects_that_features_tell_apart_are_found_at_the_original_size(root, run, tmp_path, monkeypatch):
    square_cut(monkeypatch)
    result = Objects(**SETTINGS | {"size": 160}).run(subject(run, squares(root), tmp_path))
    found = json.loads(result.files["detections.json"])
    assert [d["image_id"] for d in found if d["score"] == 1] == [10, 11, 12, 13, 14, 15]
    assert found[0]["segmentation"]["size"] == [40, 60]
    assert result.scores["box_ap50"].value > 0.99 and result.scores["mask_ap50"].value > 0.99
    assert result.outcomes["box_ap50"].shape == (6,) and np.isnan(result.outcomes["box_ap50"][5])
    assert result.scores["box_ap50"].n == 5 and result.outcomes["sample_id"][0] == "val2017/0.png"
    corloc = CorLoc(size=160).run(subject(run, squares(root), tmp_path))
    assert corloc.scores["corloc"].value == 1 and corloc.skipped["images without an object"] == 1


def test_boxes_with_empty_lists_of_polygons_have_no_ap_of_masks(root, run, tmp_path):
    file = root / "coco" / "annotations" / "instances_val2017.json"
    truth = json.loads(file.read_text())
    for annotation in truth["annotations"]:
        annotation["segmentation"] = []
    file.write_text(json.dumps(truth))
    scores = Objects(**SETTINGS).run(subject(run, squares(root), tmp_path)).scores
    assert {name.partition("_")[0] for name in scores} == {"box"}


@pytest.mark.thorough
def test_a_crf_draws_masks_to_the_edges_of_the_object(root, run, tmp_path, monkeypatch):
    square_cut(monkeypatch)
    coarse, fine = (
        Objects(**SETTINGS | {"size": 96, "stages": 1, "crf": crf}).run(subject(run, squares(root), tmp_path))
        for crf in (False, True)
    )
    assert fine.scores["mask_ap"].value > coarse.scores["mask_ap"].value + 0.1
    assert all(d["segmentation"]["size"] == [40, 60] for d in json.loads(fine.files["detections.json"]))


def test_a_sheet_shows_some_images_with_what_was_found(root, run, tmp_path, monkeypatch):
    square_cut(monkeypatch)
    files = Objects(**SETTINGS | {"size": 160}).run(subject(run, squares(root), tmp_path)).files
    picture = np.asarray(Image.open(io.BytesIO(files["masks.png"])))
    assert ((picture == (255, 60, 60)).all(-1)).sum() > 50 < ((picture == (80, 255, 80)).all(-1)).sum()
    assert "masks.png" not in Objects(**SETTINGS | {"pictures": 0}).run(subject(run, squares(root), tmp_path)).files


def test_scores_are_those_of_the_metric_on_the_detections_left_behind(root, run, tmp_path):
    result = Objects(feature="patches", size=64, tau=0.0).run(subject(run, squares(root), tmp_path))
    truth = root / "coco" / "annotations" / "instances_val2017.json"
    found = json.loads(result.files["detections.json"])
    for region, iou_type in (("box", "bbox"), ("mask", "segm")):
        expected = coco_ap(truth, found, iou_type=iou_type, class_agnostic=True)
        names = ("ap", "ap50", "ap75")
        assert [result.scores[f"{region}_{name}"].value for name in names] == pytest.approx(expected[:3])


def test_each_of_several_processes_cuts_its_share(root, run, tmp_path):
    task, given = Objects(**SETTINGS), subject(run, squares(root), tmp_path)
    for rank, rows in ((1, {"1", "3", "5"}), (0, {"0", "1", "2", "3", "4", "5"})):
        given.store.rank, given.store.world = rank, 2
        task.prepare(given)
        lines = [line for f in (tmp_path / "objects").glob("*/*.jsonl") for line in f.read_text().splitlines()]
        kept = [json.loads(line)["item"] for line in lines]
        assert set(kept) == rows and len(kept) == len(rows)


@pytest.mark.thorough
def test_an_interrupted_run_computes_only_what_is_missing(root, run, tmp_path, monkeypatch):
    task, given = Objects(**SETTINGS), subject(run, squares(root), tmp_path)
    original, seen = dense.ResizedViews.__getitem__, []

    def watched(self: Any, row: int) -> Any:
        seen.append(row)
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt
        return original(self, row)

    monkeypatch.setattr(dense.ResizedViews, "__getitem__", watched)
    given.store.batch_size = 1
    with pytest.raises(KeyboardInterrupt):
        task.run(given)
    [file] = (tmp_path / "objects").glob("*/*.jsonl")
    with open(file, "ab") as cut_short:
        cut_short.write(b'{"item": "5", "resu')
    whole = task.run(given)
    assert seen == [0, 1, 2, 2, 3, 4, 5]
    assert (
        whole.files["detections.json"]
        == Objects(**SETTINGS).run(subject(run, squares(root), tmp_path / "x")).files["detections.json"]
    )
    Objects(**SETTINGS | {"tau": 0.3}).run(given)
    assert len(seen) == 7 + 6 + 6, "another setting must not meet these results"


def test_equal_features_and_no_detection_at_all_score_zero(root, run, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.cuts.dense_features", lambda *a, **k: torch.ones(len(a[2]), 8, 8, 4))
    result = Objects(**SETTINGS).run(subject(run, squares(root), tmp_path))
    assert json.loads(result.files["detections.json"]) == [] and result.scores["box_ap50"].value == 0
    assert "6 images without: their patches are all alike" in result.notes[1] and "center=true" in result.notes[1]
    result = CorLoc(size=64).run(subject(run, squares(root), tmp_path))
    assert result.scores["corloc"].value == 0 and "images without a box: their patches are all alike" in result.notes[0]


def test_centred_patches_are_cut_where_what_they_share_would_join_them_all(root, run, tmp_path, monkeypatch):
    def features(store: Any, backbone: Any, pixels: Any, kind: str) -> torch.Tensor:
        half = torch.zeros(len(pixels), 8, 8, 4)
        half[:, 2:6, 2:6, 0] = 1.0
        return half + torch.tensor([0.0, 50.0, 0.0, 0.0])  # nearly the same vector everywhere

    monkeypatch.setattr("evaluate.cuts.dense_features", features)
    given = subject(run, squares(root), tmp_path)
    plain, centred = (Objects(**SETTINGS, center=center) for center in (False, True))
    assert json.loads(plain.run(given).files["detections.json"]) == []
    found = json.loads(centred.run(given).files["detections.json"])
    assert len({one["image_id"] for one in found}) == 6
    assert plain.protocol(given) != centred.protocol(given) and "center" not in plain.protocol(given)
    assert CorLoc(size=64, center=True).cut(given, [0])["0"] != [0, 0, 0, 0]


def test_without_annotations_the_score_is_undefined_and_the_masks_are_there(root, run, tmp_path, monkeypatch):
    square_cut(monkeypatch)
    data = Data("folder", {"instances": lambda: Unannotated(root / "coco" / "val2017", name="folder")})
    result = Objects(**SETTINGS).run(subject(run, data, tmp_path))
    assert np.isnan(result.scores["box_ap50"].value) and len(json.loads(result.files["detections.json"])) >= 6
    with pytest.raises(Unavailable, match="folder has no annotated object"):
        CorLoc(size=64).check(subject(run, data, tmp_path))


def test_a_damaged_image_is_named_or_left_out_and_counted(root, run, tmp_path):
    (root / "coco" / "val2017" / "1.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"val2017/1\.png"):
        Objects(**SETTINGS).run(subject(run, squares(root), tmp_path))
    given = subject(run, squares(root), tmp_path)
    given.data.split("instances").skip_bad = True
    result = Objects(**SETTINGS).run(given)
    assert result.skipped == {"images": 1} and len(result.outcomes["sample_id"]) == 5
    folder = lambda: Unannotated(root / "coco" / "val2017", name="folder", skip_bad=True)  # noqa: E731
    assert Objects(**SETTINGS).run(subject(run, Data("folder", {"instances": folder}), tmp_path)).skipped == {
        "images": 1
    }
    assert CorLoc(size=64).run(given).skipped["images"] == 1


def test_pixels_have_no_keys_but_patches(root, run, tmp_path):
    given = subject(f"pixels:{run}", squares(root), tmp_path)
    for task in (Objects(), CorLoc()):
        with pytest.raises(Unavailable, match="no attention, hence no keys; .*feature=patches"):
            task.check(given)
    Objects(feature="patches").check(given)


def test_a_dataset_of_plain_images_is_told_apart(images, run, tmp_path):
    given = subject(run, Data("folder", {"instances": lambda: ImageFolder(images, "val")}), tmp_path)
    for task in (Objects(), CorLoc()):
        with pytest.raises(Unavailable, match="has no instances"):
            task.check(given)


def test_the_evaluator_records_objects_with_their_files(root, run, tmp_path):
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda name: squares(root), quiet=True)
    items = [Item(load_task("objects", **SETTINGS), "squares"), Item(load_task("corloc", size=64), "squares")]
    bench.evaluate({str(run): items})
    assert bench.unfit == [] and [record.main for record in bench.written] == ["box_ap50", "corloc"]
    for record in bench.written:
        assert all((tmp_path / file).is_file() for file in record.provenance["files"])
        assert len(record.main_outcomes()) == len(record.outcomes["sample_id"])


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: Objects(tau=1.0), "tau=1.0"),
        (lambda: Objects(stages=0), "stages=0"),
        (lambda: Objects(feature="values"), "unknown feature 'values'; use patches, keys"),
        (lambda: CorLoc(size=0), "size=0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


# ---- parts


def test_tokencut_may_keep_an_object_that_fills_the_corners():
    grid = torch.ones(8, 8, dtype=torch.bool)
    grid[2:5, 2:5] = False
    features = torch.stack([grid, ~grid]).float() + 0.01
    mask = tokencut(features, tau=0.2)
    assert torch.equal(mask, ~grid), "the smaller side has the largest entries"
    border = torch.zeros(8, 8, dtype=torch.bool)
    border[0], border[-1] = True, True
    assert tokencut(torch.stack([border, ~border]).float() + 0.01, tau=0.2)[[0, -1]].any()


def test_box_iou_is_that_of_areas():
    others = np.array([[0, 0, 2, 2], [1, 1, 2, 2], [5, 5, 1, 1]], float)
    np.testing.assert_allclose(box_iou(np.array([0.0, 0, 2, 2]), others), [1, 1 / 7, 0])
    assert box_iou(np.zeros(4), np.zeros((1, 4)))[0] == 0


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_resampled_precision_of_the_whole_set_is_coco_ap(iou_type):
    truth, found = GOLDEN / "coco_gt.json", json.loads((GOLDEN / "coco_dets.json").read_text())
    matches = agnostic_matches(truth, found, iou_type=iou_type)
    whole = matches.precision()
    expected = coco_ap(truth, found, iou_type=iou_type, class_agnostic=True)
    assert (whole.mean(), whole[0], whole[5]) == pytest.approx(tuple(expected[:3]), abs=1e-9)
    assert matches.stat("AP50") == pytest.approx(whole[0])
    own = coco_image_ap(truth, found, iou_type=iou_type, class_agnostic=True)
    np.testing.assert_allclose(matches.by_image().mean(axis=0), [own[i] for i in matches.ids], atol=1e-9)
    (low, high), *_ = interval(whole, matches.resampled(), len(matches.ids))
    assert low < whole.mean() < high and high - low < 0.3


def test_an_image_drawn_twice_counts_as_two_copies_of_it():
    hits = np.array([[True, False, True]] * 10)
    parts = (hits, np.ones((10, 3), bool), np.array([1, 2]), np.zeros(12), np.array([0.9, 0.8, 0.7]))
    once = Matches(np.array([1, 2]), np.array([0, 1, 1]), *parts)
    hits = np.array([[True, False, False, True, True]] * 10)
    parts = (hits, np.ones((10, 5), bool), np.array([1, 2, 2]), np.zeros(12), np.array([0.9, 0.8, 0.8, 0.7, 0.7]))
    copies = Matches(np.array([1, 2, 3]), np.array([0, 1, 2, 1, 2]), *parts)
    np.testing.assert_allclose(once.precision(np.array([1.0, 2.0])), copies.precision())
    assert np.isnan(once.precision(np.array([0.0, 0.0]))).all()


def test_kept_results_of_other_weights_are_not_met(run, tmp_path):
    store = Store(tmp_path, quiet=True)
    mine = subject(run, Data("x", {}), tmp_path).backbone
    other = subject(save_tiny_run(tmp_path / "runs", seed=7), Data("x", {}), tmp_path).backbone
    Partial(store, mine, "t", {"a": 1}).add("i", {"v": [np.float64(0.5)]})
    assert dict(Partial(store, mine, "t", {"a": 1})) == {"i": {"v": [0.5]}}
    [file] = Partial(store, mine, "t", {"a": 1}).folder.glob("*.jsonl")
    file.write_bytes(b'{"item": \n[1]\n' + file.read_bytes() + b'{"item": "j"')
    assert dict(Partial(store, mine, "t", {"a": 1})) == {"i": {"v": [0.5]}}, "damaged lines are computed anew"
    assert not Partial(store, other, "t", {"a": 1}) and not Partial(store, mine, "t", {"a": 2})


def test_overlays_leave_void_and_background_clear_and_small_images_grow_by_whole_factors():
    image = np.full((40, 40, 3), 100, np.uint8)
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 10:30], labels[:5] = 1, 255
    out = blend(image, labels)
    assert (out[:5] == 100).all() and (out[35:] == 100).all() and (out[20, 20] != 100).any()
    assert (out[10, 15] == 255).all(), "no outline"
    assert fitted(image, 130).shape == (120, 120, 3) and fitted(image, 30).shape == (30, 30, 3)


@pytest.mark.thorough
def test_a_subject_is_not_changed_by_a_task(root, run, tmp_path):
    given: Subject = subject(run, squares(root), tmp_path)
    before = {name: value.clone() for name, value in given.backbone.state_dict().items()}
    Objects(**SETTINGS).run(given)
    assert all(torch.equal(before[name], value) for name, value in given.backbone.state_dict().items())
    assert not given.backbone.training
