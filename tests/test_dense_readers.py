"""Readers of masks, instances and videos: the usual layouts are read as they are, what is wrong is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from evaluate import sheet
from evaluate.run import open_split
from pretrain.datasets import ImageError
from pretrain.datasets.cityscapes import Cityscapes
from pretrain.datasets.indexed import decode_labels, encode_labels
from pretrain.datasets.instances import CocoInstances, Unannotated, VOCBoxes, has_mask
from pretrain.datasets.masks import ADE20K, CamVid, Masks, VOCMasks
from pretrain.datasets.videos import Davis
from pretrain.shapeworld import davis_palette

LABELS = np.array([[0, 1, 2], [2, 255, 11]], np.uint8)


def put(path: Path, pixels: np.ndarray) -> Path:
    """Write an image; a 2-D array becomes a grey one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photo(path: Path, height: int = 2, width: int = 3) -> Path:
    return put(path, np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def snapshot(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


# ---- masks


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder of images and one of masks, with one pair."""
    photo(tmp_path / "images" / "a.jpg")
    put(tmp_path / "masks" / "a.png", LABELS)
    return tmp_path


def test_grey_and_palette_masks_hold_the_same_labels(pair):
    data = Masks(pair, "images", "masks", 12)
    np.testing.assert_array_equal(data.mask(0), LABELS)
    (pair / "masks" / "a.png").write_bytes(encode_labels(LABELS, davis_palette()))
    assert Image.open(pair / "masks" / "a.png").mode == "P"
    np.testing.assert_array_equal(data.mask(0), LABELS)


def test_void_and_shift_turn_stored_values_into_classes(pair):
    np.testing.assert_array_equal(Masks(pair, "images", "masks", 11, void=11).mask(0), [[0, 1, 2], [2, 255, 255]])
    np.testing.assert_array_equal(Masks(pair, "images", "masks", 11, shift=1).mask(0), [[255, 0, 1], [1, 255, 10]])


def test_a_colour_mask_is_refused(pair):
    put(pair / "masks" / "a.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(ImageError, match=r"masks/a\.png holds RGB colours; expected one label a pixel"):
        Masks(pair, "images", "masks", 12).mask(0)


def test_a_mask_of_another_size_names_both_sizes(pair):
    put(pair / "masks" / "a.png", np.zeros((4, 3), np.uint8))
    with pytest.raises(ImageError, match="has 3 x 4 pixels, its image 3 x 2"):
        Masks(pair, "images", "masks", 12).mask(0)


def test_a_label_that_is_no_class_is_named(pair):
    with pytest.raises(ImageError, match=r"holds label 11, but .* has 11 classes \(0\.\.10\)"):
        Masks(pair, "images", "masks", 11).mask(0)


def test_more_classes_than_a_mask_can_hold_beside_void_are_refused(pair):
    assert len(Masks(pair, "images", "masks", 255).classes) == 255
    put(pair / "masks" / "a.png", np.full((2, 3), 300, np.uint16))
    for classes in (400, None):  # given, or counted: 300 would become 44
        with pytest.raises(ValueError, match=r"has (400|301) classes, but masks hold at most 255"):
            Masks(pair, "images", "masks", classes)
    put(pair / "masks" / "a.png", np.full((2, 3), 256, np.uint16))
    with pytest.raises(ImageError, match="holds label 256, but .* has 20 classes"):  # not void by its shift
        Masks(pair, "images", "masks", 20, shift=1).mask(0)


def test_a_damaged_mask_does_not_keep_others_from_counting_classes(pair):
    put(pair / "images" / "b.png", np.zeros((2, 3, 3), np.uint8))
    text(pair / "masks" / "b.png", "no image")
    with pytest.raises(ImageError, match=r"cannot decode mask .*masks/b\.png"):
        Masks(pair, "images", "masks")
    data = Masks(pair, "images", "masks", skip_bad=True)
    assert len(data.classes) == 12 and len(data) == 2  # counted when it is read


def test_a_damaged_mask_is_named(pair):
    whole = (pair / "masks" / "a.png").read_bytes()
    (pair / "masks" / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"cannot decode mask .*masks/a\.png"):
        Masks(pair, "images", "masks", 12).mask(0)


def test_an_image_without_a_mask_is_named_or_left_out(pair):
    photo(pair / "images" / "b.jpg")
    with pytest.raises(FileNotFoundError, match=r"1 images of .* have no mask, first .*masks/b\.png"):
        Masks(pair, "images", "masks", 12)
    assert Masks(pair, "images", "masks", 12, allow_unmasked=True).paths == ["images/a.jpg"]


def test_classes_are_listed_in_a_file_or_counted_over_all_splits(tmp_path):
    for split, label in (("train", 3), ("val", 5)):
        put(tmp_path / "images" / split / "a.png", np.zeros((4, 4, 3), np.uint8))
        put(tmp_path / "masks" / split / "a.png", np.array([[0, label], [255, 1]], np.uint8).repeat(2, 0).repeat(2, 1))
    splits = [Masks(tmp_path, f"images/{split}", f"masks/{split}") for split in ("train", "val")]
    assert [data.classes for data in splits] == [list("012345")] * 2
    assert len(Masks(tmp_path, "images/train", "masks/train", shift=1).classes) == 5
    (tmp_path / "classes.txt").write_text("\n".join(["ground", *"abcdef"]) + "\n")
    assert Masks(tmp_path, "images/val", "masks/val").classes == ["ground", *"abcdef"]


def test_the_fingerprint_sees_masks_and_what_their_values_mean(pair):
    prints = {Masks(pair, "images", "masks", 12).fingerprint, Masks(pair, "images", "masks", 13).fingerprint}
    put(pair / "masks" / "a.png", np.tile(LABELS, (40, 40)))
    assert Masks(pair, "images", "masks", 12).fingerprint not in prints and len(prints) == 2


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A VOC tree of three images; root is the folder above VOCdevkit."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name in "abc":
        photo(base / "JPEGImages" / f"{name}.jpg")
    put(base / "SegmentationClass" / "a.png", np.full((2, 3), 20, np.uint8))
    put(base / "SegmentationClassAug" / "b.png", np.full((2, 3), 1, np.uint8))
    text(base / "ImageSets" / "Segmentation" / "val.txt", "a\r\n\r\n")
    text(base / "ImageSets" / "Segmentation" / "trainaug.txt", "b\n")
    text(base / "ImageSets" / "Main" / "trainval.txt", "c\n")
    boxes = "".join(
        f"<object><name>cat</name><difficult>{hard}</difficult><bndbox><xmin>{x}</xmin><ymin>1</ymin>"
        f"<xmax>{x + 1}</xmax><ymax>2</ymax></bndbox></object>"
        for x, hard in ((1, 0), (2, 1))
    )
    xml = f"<annotation><size><width>3</width><height>2</height></size>{boxes}</annotation>"
    text(base / "Annotations" / "c.xml", xml)
    return tmp_path


def test_voc_reads_its_lists_and_trainaug_its_own_masks(voc):
    for root in (voc, voc / "VOCdevkit" / "VOC2012", voc / "VOCdevkit"):
        val, train = VOCMasks(root, "val"), VOCMasks(root, "trainaug")
        assert (val.paths, train.paths) == (["JPEGImages/a.jpg"], ["JPEGImages/b.jpg"])
        assert (val.mask(0) == 20).all() and (train.mask(0) == 1).all() and len(val.classes) == 21
    with pytest.raises(FileNotFoundError, match=r"Segmentation/test\.txt; expected JPEGImages"):
        VOCMasks(voc, "test")


def test_voc_boxes_count_pixels_from_zero_and_difficult_ones_by_option(voc):
    np.testing.assert_array_equal(VOCBoxes(voc, "trainval").boxes(0), [[0, 0, 2, 2], [1, 0, 2, 2]])
    assert len(VOCBoxes(voc, "trainval", difficult=False).boxes(0)) == 1


def test_voc_annotations_may_not_define_entities(voc):
    text(voc / "VOCdevkit/VOC2012/Annotations/c.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    with pytest.raises(ImageError, match=r"c\.xml: an annotation needs no document type"):
        VOCBoxes(voc, "trainval")
    text(voc / "VOCdevkit/VOC2012/Annotations/c.xml", "<annotation><size/></annotation>")
    with pytest.raises(ImageError, match=r"c\.xml is no PASCAL VOC annotation"):
        VOCBoxes(voc, "trainval")


BOX = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>2</ymax></bndbox>"


@pytest.mark.parametrize(
    "ends, says",
    [
        ((9, 12), r"c\.xml: an object 'cat' has box \[8\.0, 0\.0, 4\.0, 2\.0\] outside its image of 3 x 2 pixels"),
        ((3, 1), r"c\.xml .*box \[3\.0, 1\.0, 1\.0, 2\.0\] ends before it begins"),
        (("nan", 2), r"c\.xml .*box \[nan, 1\.0, 2\.0, 2\.0\]"),
    ],
)
def test_voc_boxes_that_no_image_can_hold_are_named(voc, ends, says):
    body = f"<size><width>3</width><height>2</height></size><object><name>cat</name>{BOX.format(*ends)}</object>"
    text(voc / "VOCdevkit/VOC2012/Annotations/c.xml", f"<annotation>{body}</annotation>")
    with pytest.raises(ImageError, match=says):
        VOCBoxes(voc, "trainval")


def test_voc_boxes_name_the_annotation_that_is_missing(voc):
    (voc / "VOCdevkit/VOC2012/Annotations/c.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"Annotations/c\.xml; expected JPEGImages/<id>\.jpg"):
        VOCBoxes(voc, "trainval")


def test_ade20k_labels_start_at_one_and_zero_is_void(tmp_path):
    base = tmp_path / "ADEChallengeData2016"
    photo(base / "images" / "validation" / "ADE_val_1.jpg", 1, 3)
    put(base / "annotations" / "validation" / "ADE_val_1.png", np.array([[0, 1, 150]], np.uint8))
    for root in (tmp_path, base):
        np.testing.assert_array_equal(ADE20K(root, "validation").mask(0), [[255, 0, 149]])
    with pytest.raises(FileNotFoundError, match="images/training"):
        ADE20K(base, "training")


def test_cityscapes_pairs_images_and_train_ids_by_city(tmp_path):
    base = tmp_path / "cityscapes"
    for city in ("ulm", "bonn"):
        photo(base / "leftImg8bit" / "val" / city / f"{city}_0_leftImg8bit.png", 1, 3)
        for kind, labels in (("labelTrainIds", [0, 18, 255]), ("color", [1, 1, 1])):
            put(base / "gtFine" / "val" / city / f"{city}_0_gtFine_{kind}.png", np.array([labels], np.uint8))
    for root in (tmp_path, base):
        data = Cityscapes(root, "val")
        assert len(data) == 2 and data.paths[0].startswith("leftImg8bit/val/bonn/") and len(data.classes) == 19
        np.testing.assert_array_equal(data.mask(1), [[0, 18, 255]])
    (base / "gtFine/val/ulm/ulm_0_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 images of cityscapes have no mask"):
        Cityscapes(tmp_path, "val")


@pytest.mark.parametrize("listed", [True, False])
def test_camvid_follows_the_paths_of_another_machine_or_pairs_by_name(tmp_path, listed):
    for name in ("b", "a"):
        photo(tmp_path / "CamVid" / "test" / f"{name}.png", 1, 3)
        put(tmp_path / "CamVid" / "testannot" / f"{name}.png", np.array([[0, 10, 11]], np.uint8))
    line = "/SegNet/CamVid/test/{0}.png /SegNet/CamVid/testannot/{0}.png"
    if listed:
        text(tmp_path / "CamVid" / "test.txt", line.format("b") + "\r\n\r\n" + line.format("a") + "\r\n")
    data = CamVid(tmp_path, "test")
    assert data.paths == (["test/b.png", "test/a.png"] if listed else ["test/a.png", "test/b.png"])
    np.testing.assert_array_equal(data.mask(1), [[0, 10, 255]])


def test_a_camvid_list_of_single_paths_is_named(tmp_path):
    photo(tmp_path / "test" / "a.png")
    text(tmp_path / "test.txt", "test/a.png\n")
    with pytest.raises(ImageError, match=r"test\.txt: expected an image and a mask a line"):
        CamVid(tmp_path, "test")


@pytest.mark.parametrize(
    "reader",
    [
        VOCMasks,
        VOCBoxes,
        ADE20K,
        CamVid,
        Cityscapes,
        Davis,
        CocoInstances,
        lambda root, split: Masks(root, "x", "y", 2),
    ],
)
def test_a_missing_root_is_named_with_the_layout(tmp_path, reader):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*expected "):
        reader(tmp_path / "nowhere", "val")


def test_bit_masks_hold_zeros_and_ones(tmp_path):
    Image.fromarray(LABELS > 0).save(tmp_path / "m.png")
    np.testing.assert_array_equal(decode_labels((tmp_path / "m.png").read_bytes(), "m.png"), (LABELS > 0).astype(int))


# ---- videos


def write_video(root: Path, name: str, frames: int = 3, size: tuple[int, int] = (4, 6)) -> None:
    """A sequence with a square moving to the right."""
    for t in range(frames):
        photo(root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg", *size)
        labels = np.zeros(size, np.uint8)
        labels[1:3, t : t + 2] = 1
        path = root / "Annotations" / "480p" / name / f"{t:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_labels(labels, davis_palette()))


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """A DAVIS tree with sequences b and a, in this order."""
    for name in "ab":
        write_video(tmp_path / "DAVIS", name)
    text(tmp_path / "DAVIS" / "ImageSets" / "2017" / "val.txt", "b\r\n\r\na\r\n")
    return tmp_path


def test_davis_sequences_come_in_the_order_of_the_list(davis):
    before = snapshot(davis)
    for root in (davis, davis / "DAVIS"):
        data = Davis(root, "val")
        assert [video.name for video in data.videos] == ["b", "a"] and len(data) == 6
        assert data.paths[data.videos[1].frames[2]] == "JPEGImages/480p/a/00002.jpg"
        assert data.annotation(data.videos[0], 1).tolist()[1] == [0, 1, 1, 0, 0, 0]
        assert data.frame(data.videos[0], 0).shape == (4, 6, 3) and data.frame_name(data.videos[0], 2) == "00002"
    assert snapshot(davis) == before, "something was written into the dataset"


def test_a_sheet_shows_the_first_frame_with_a_box_around_the_object(davis, tmp_path):
    images = sheet.open_images("davis2017", tmp_path)
    frame = np.asarray(sheet._picture(images, "b/1"))
    assert frame.shape[:2] == (4, 6) and (frame == (255, 0, 0)).all(axis=2).any()
    assert sheet._picture(images, "b/x") is None and sheet._picture(images, "nobody/1") is None


def test_a_frame_without_annotation_is_named(davis):
    (davis / "DAVIS/Annotations/480p/a/00001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a: frame without annotation, .*Annotations/480p/a/00001\.png"):
        Davis(davis, "val")


def test_an_annotation_without_its_frame_is_named(davis):
    (davis / "DAVIS/JPEGImages/480p/b/00002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"b: annotation .*480p/b/00002\.png has no frame"):
        Davis(davis, "val")


def test_a_listed_sequence_that_is_not_there_is_named(davis):
    text(davis / "DAVIS/ImageSets/2017/val.txt", "ghost\n")
    with pytest.raises(FileNotFoundError, match="no frame in .*480p/ghost"):
        Davis(davis, "val")


def test_a_sequence_name_may_not_lead_out_of_a_folder(davis):
    text(davis / "DAVIS/ImageSets/2017/val.txt", "../a\n")
    with pytest.raises(ImageError, match="no plain name"):
        Davis(davis, "val")


@pytest.mark.parametrize(
    "labels, says",
    [
        (np.zeros((4, 6), np.uint8), r"a: the annotation of frame 0 has no object; objects are 1\.\.K"),
        (np.full((4, 6), 255, np.uint8), "has no object but void, 255"),
        (np.ones((4, 5), np.uint8), "a: annotation .* has 5 x 4 pixels, its frame 6 x 4"),
        (np.ones((4, 6, 3), np.uint8), r"00000\.png holds RGB colours"),
    ],
)
def test_a_first_annotation_that_cannot_be_used_is_named(davis, labels, says):
    put(davis / "DAVIS/Annotations/480p/a/00000.png", labels)
    data = Davis(davis, "val")
    with pytest.raises(ImageError, match=says):
        data.annotation(data.videos[1], 0)


# ---- instances


def instances(root: Path, **changes: object) -> Path:
    """A COCO tree of two images, listed out of order, with a crowd."""
    truth: dict = {
        "images": [{"id": 7, "file_name": "b.jpg", "height": 4, "width": 6},
                   {"id": 2, "file_name": "a.jpg", "height": 4, "width": 6}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0},
                        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 6, 4], "area": 24, "iscrowd": 1}],
        "categories": [{"id": 3, "name": "cat"}],
    }  # fmt: skip
    for name in "ab":
        photo(root / "coco" / "val2017" / f"{name}.jpg", 4, 6)
    text(root / "coco" / "annotations" / "instances_val2017.json", json.dumps(truth | changes))
    return root


ONE = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}


def test_coco_images_come_by_id_with_their_boxes_and_crowds_apart(tmp_path):
    data = CocoInstances(instances(tmp_path), "val2017")
    assert data.ids == [2, 7] and data.paths == ["val2017/a.jpg", "val2017/b.jpg"]
    assert data.boxes(0).shape == (0, 4) and data.boxes(1).tolist() == [[1, 1, 2, 2]]
    first = data.fingerprint
    moved = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 3, 2], "area": 6, "iscrowd": 0}]
    assert CocoInstances(instances(tmp_path, annotations=moved), "val2017").fingerprint != first


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"annotations": [{"id": 5, "image_id": 9, "bbox": [0, 0, 1, 1]}]}, "annotation 5 names image id 9"),
        ({"annotations": [{"id": 5, "image_id": 7, "bbox": [0, 0, -1, 1]}]}, "annotation 5 has box .* negative size"),
        ({"annotations": None}, "'annotations' is None, expected a list"),
        ({"annotations": [7]}, "annotation at place 0 of the list is 7, expected an object"),
        ({"annotations": [{"image_id": 7, "category_id": 3}]}, "annotation at place 0 of the list lacks bbox"),
        ({"annotations": [{"id": 5, "bbox": [0, 0, 1, 1]}]}, "annotation 5 lacks image_id"),
        ({"annotations": [{"id": 5, "image_id": 7, "bbox": [0, 0, 1, 1]}]}, "annotation 5 lacks category_id"),
        ({"annotations": [{"id": 5, "image_id": [], "bbox": [0, 0, 1, 1]}]}, r"names image id \[\], which is not"),
        ({"annotations": [{"id": 5, "image_id": 7, "bbox": [0, 0]}]}, r"has bbox \[0, 0\], expected four finite"),
        ({"annotations": [{"id": 5, "image_id": 7, "bbox": [0, 0, "4", 1]}]}, "has bbox .*'4'.*, expected four finite"),
        (
            {"annotations": [{"id": 5, "image_id": 7, "bbox": [0, 0, None, 1]}]},
            "has bbox .*None.*, expected four finite",
        ),
        ({"annotations": [ONE | {"segmentation": [[0, 0, 1, 0, 1, "1"]]}]}, r"has polygon \[0, 0, 1, 0, 1, '1'\]"),
        ({"annotations": [ONE | {"segmentation": [0, 0, 1, 0, 1, 1]}]}, r"has segmentation \[0, 0, 1, .* polygons or"),
        ({"annotations": [ONE | {"segmentation": [[0, 0, 1, 1]]}]}, r"has polygon \[0, 0, 1, 1\], expected x, y of at"),
        ({"annotations": [ONE | {"segmentation": {"size": [6, 4], "counts": []}}]}, r"a mask of size \[6, 4\] for an"),
        ({"images": [{"file_name": "b.jpg", "height": 4, "width": 6}]}, "image at place 0 of the list lacks id"),
        ({"images": [{"id": 7, "height": 4, "width": 6}]}, "image 7 lacks file_name"),
        ({"images": [{"id": 7, "file_name": "b.jpg", "height": 4}]}, "image 7 lacks width"),
        ({"images": [{"id": 7, "file_name": "b.jpg", "height": "4", "width": 6}]}, "image 7 has height '4', expected"),
        ({"images": [{"id": 7, "file_name": "b.jpg", "height": 4, "width": 6}] * 2}, "image 7 is listed twice"),
        ({"categories": [{"id": 3}]}, "category 3 lacks name"),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path, changes, says):
    with pytest.raises(ImageError, match=says):
        CocoInstances(instances(tmp_path, **changes), "val2017")


def test_a_file_that_is_no_instances_file_is_named(tmp_path):
    instances(tmp_path)
    text(tmp_path / "coco/annotations/instances_val2017.json", "{}")
    with pytest.raises(ImageError, match="it lacks images, annotations, categories"):
        CocoInstances(tmp_path, "val2017")
    text(tmp_path / "coco/annotations/instances_val2017.json", "{")
    with pytest.raises(ImageError, match="is no JSON"):
        CocoInstances(tmp_path, "val2017")
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json, or an empty one; expected annotations/"):
        CocoInstances(tmp_path, "train2017")


def test_classes_are_categories_by_ascending_id_whatever_the_order_of_the_file(tmp_path):
    listed = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]
    data = CocoInstances(instances(tmp_path, categories=listed), "val2017")
    assert data.classes == ["cat", "dog"] and [c["id"] for c in data.truth["categories"]] == [3, 9]


def test_an_empty_list_of_polygons_is_no_mask():
    assert not any(map(has_mask, ({}, {"segmentation": None}, {"segmentation": []}, {"segmentation": [[]]})))
    assert has_mask({"segmentation": [[0, 0, 1, 0, 1, 1]]})
    assert has_mask({"segmentation": {"size": [1, 1], "counts": []}})


def test_a_missing_folder_of_images_is_named_when_the_set_is_opened(tmp_path):
    place = instances(tmp_path) / "coco" / "val2017"
    place.rename(place.with_name("pictures"))
    with pytest.raises(FileNotFoundError, match=r"coco/val2017; expected annotations/ with .* and val2017/<file_name>"):
        CocoInstances(tmp_path, "val2017")
    assert len(CocoInstances(tmp_path, "val2017", images="pictures")) == 2


def test_names_that_are_no_utf8_have_a_fingerprint(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    photo(tmp_path / "images" / f"{odd}.png")
    put(tmp_path / "masks" / f"{odd}.png", LABELS)
    assert Masks(tmp_path, "images", "masks", 12).fingerprint
    assert Unannotated(tmp_path, folder="images").fingerprint
    write_video(tmp_path / "DAVIS", odd)
    (tmp_path / "DAVIS" / "ImageSets").mkdir()
    (tmp_path / "DAVIS" / "ImageSets" / "val.txt").write_bytes(b"caf\xe9\n")
    assert Davis(tmp_path, "val").fingerprint


def test_a_damaged_image_does_not_refuse_a_plain_folder_where_such_are_left_out(tmp_path):
    photo(tmp_path / "x" / "a.jpg", 5, 7)
    text(tmp_path / "x" / "b.jpg", "no image")
    with pytest.raises(ImageError, match=r"cannot decode .*b\.jpg"):
        Unannotated(tmp_path)
    reader = OmegaConf.create({"_target_": "pretrain.datasets.instances.Unannotated", "root": str(tmp_path)})
    data = open_split(reader, True)
    assert len(data) == 2 and data.skip_bad and data.size(0) == (5, 7)
    with pytest.raises(ImageError, match=r"b\.jpg"):
        data.image(1)  # where a task leaves it out and counts it


def test_a_plain_folder_of_images_has_sizes_and_no_objects(tmp_path):
    photo(tmp_path / "x" / "a.jpg", 5, 7)
    data = Unannotated(tmp_path)
    assert data.truth["images"] == [{"id": 1, "file_name": "x/a.jpg", "width": 7, "height": 5}]
    assert data.boxes(0).shape == (0, 4)
