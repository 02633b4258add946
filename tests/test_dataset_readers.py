"""Every dataset is read as its publisher lays it out, from folder, parent or archive; what is odd is named."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tarfile
from pathlib import Path

import hydra
import numpy as np
import pytest
from dataset_trees import EXPECTED, PACKED, V2, WNIDS, build, encoded, imagenet, pack, plantnet, record, text, write
from omegaconf import OmegaConf
from PIL import Image
from tiny import compose

from evaluate import datasets
from pretrain.datasets import ImageData, ImageError, ImageFolder, ImageList, Images, decode, sources
from pretrain.datasets.cifar import CIFAR10Binary
from pretrain.datasets.coco import COCOClasses
from pretrain.datasets.food import Food101
from pretrain.datasets.imagenet import ImageNet, ImageNetSubset, ImageNetV2
from pretrain.datasets.inaturalist import INat2019
from pretrain.datasets.sources import Folder, locate
from pretrain.datasets.voc import VOCClasses

DATA = Path(os.environ.get("BITSBENCH_DATA", Path(__file__).resolve().parents[1] / "data"))
SPLITS = [(name, split) for name, splits in EXPECTED.items() for split in splits]


def opened(name: str, split: str, root: Path) -> ImageData:
    """A split of a dataset as its configuration opens it."""
    return datasets.read(datasets.CONFIGS / f"{name}.yaml", root).readers[split]()


def home(name: str, root: Path) -> Path:
    """The folder of a dataset itself."""
    return root / PACKED[name][0] / ("VOC2012" if name == "voc" else "")


# ---- what every reader does


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_a_dataset_is_read_as_its_publisher_lays_it_out(name: str, split: str, tmp_path: Path) -> None:
    found = opened(name, split, build(name, tmp_path))
    paths, labels, classes = EXPECTED[name][split]
    assert found.paths == paths and found.name == name
    assert labels == (None if found.labels is None else found.labels.tolist())
    assert classes is None or found.classes == classes
    for i in range(len(found)):
        assert found.image(i).mode == "RGB"


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_folder_its_parent_and_its_archive_are_read_alike_and_never_written_to(name: str, tmp_path: Path) -> None:
    build(name, tmp_path / "files")
    pack(tmp_path / "files", name, tmp_path / "archive")
    before = sorted(path for path in tmp_path.rglob("*"))
    roots = (tmp_path / "files", home(name, tmp_path / "files"), tmp_path / "archive")
    split = next(iter(EXPECTED[name]))
    found = [opened(name, split, root) for root in roots]
    assert len({images.fingerprint for images in found}) == 1 and len({tuple(images.paths) for images in found}) == 1
    assert all(images.image(0).size == found[0].image(0).size for images in found)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", list(EXPECTED))
def test_an_absent_dataset_names_the_place_and_the_layout(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*(expected|give data_root)"):
        opened(name, next(iter(EXPECTED[name])), tmp_path)


@pytest.mark.parametrize("file", sorted(datasets.CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_dataset_has_its_name_its_layout_and_settings_that_its_readers_take(file: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(file))
    assert config["name"] == file.stem and set(config) == {"name", "smoke", "prepare", "splits"}
    assert datasets.layout(file.read_text().splitlines()[0])
    for settings in config["splits"].values():
        target = hydra.utils.get_object(settings.pop("_target_"))
        assert settings["root"] == "${data_root}"
        inspect.signature(target).bind(**settings, skip_bad=True)


@pytest.mark.parametrize("name", ["plantnet", "food101"])
def test_pre_training_opens_the_train_split_by_the_name_of_the_dataset(name: str, tmp_path: Path) -> None:
    config = compose(f"data={name}", f"data_root={build(name, tmp_path)}")
    images = hydra.utils.instantiate(config.data.splits.train, skip_bad=True)
    assert images.paths == EXPECTED[name]["train"][0] and images.skip_bad


# ---- missing files


MISSING = [
    ("food101", "train", "food-101/meta/train.txt"),
    ("food101", "train", "food-101/meta/classes.txt"),
    ("food101", "train", "food-101/images"),
    ("inat2019", "train", "inat2019/train2019.json"),
    ("inat2019", "train", "inat2019/train_val2019"),
    ("voc", "train", "VOCdevkit/VOC2012/ImageSets/Main/train.txt"),
    ("voc", "train", "VOCdevkit/VOC2012/ImageSets/Main/cow_train.txt"),
    ("voc", "train", "VOCdevkit/VOC2012/JPEGImages"),
    ("coco", "train", "coco/annotations/instances_train2014.json"),
    ("coco", "train", "coco/train2014"),
    ("birds525", "val", "birds525/valid"),
    ("imagenet", "test", "imagenet/val"),
    ("cifar10_binary", "train", "cifar-10-batches-bin/data_batch_3.bin"),
]


@pytest.mark.parametrize(("name", "split", "gone"), MISSING)
def test_a_missing_split_list_or_annotation_is_named_with_the_layout(
    name: str, split: str, gone: str, tmp_path: Path
) -> None:
    place = build(name, tmp_path) / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(FileNotFoundError, match="expected") as caught:
        opened(name, split, tmp_path)
    assert place.name in str(caught.value)


def test_a_listed_image_that_is_missing_or_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    build("food101", tmp_path)
    (tmp_path / "food-101/images/waffles/77.jpg").unlink()
    write(tmp_path, "food-101/images/apple_pie/101.jpg", data=encoded()[:-200])
    found = Food101(tmp_path, "train")
    assert len(found) == 3
    with pytest.raises(ImageError, match=r"cannot read .*waffles/77\.jpg"):
        found.image(0)
    with pytest.raises(ImageError, match=r"cannot decode .*apple_pie/101\.jpg"):
        found.image(2)


def test_a_class_directory_without_images_is_named_or_allowed(tmp_path: Path) -> None:
    imagenet(tmp_path)
    text(tmp_path, "imagenet/train/n00000000/notes.txt", "no image")
    with pytest.raises(ImageError, match=r"class directory .*train/n00000000 holds no image.*allow_empty=true"):
        ImageNet(tmp_path, "train")
    assert ImageNet(tmp_path, "train", allow_empty=True).labels.tolist() == [1, 2, 3]
    pack(tmp_path, "imagenet", tmp_path / "packed")
    with pytest.raises(ImageError, match="n00000000 holds no image"):
        ImageNet(tmp_path / "packed", "train")


# ---- labels


def test_labels_outside_the_classes_or_of_another_length_are_refused(tmp_path: Path) -> None:
    def data(labels: object) -> ImageData:
        return ImageData("set", Folder(tmp_path), ["a.png", "b.png"], np.array(labels), ["x", "y"])

    assert data([1, 0]).labels.tolist() == [1, 0] and data([[1, 0], [0, 0]]).classes == ["x", "y"]
    for labels, says in (
        ([0, 2], r"label 2 of b\.png in set is outside 0\.\.1"),
        ([-1, 0], r"label -1 of a\.png in set is outside 0\.\.1"),
        ([[0, 1], [3, 0]], r"label 3 of b\.png in set is outside 0 and 1"),
        ([0], "1 labels for 2 images"),
        ([[0], [1]], "1 columns for 2 classes"),
    ):
        with pytest.raises(ValueError, match=says):
            data(labels)


def test_listed_names_may_hold_spaces_and_the_number_of_classes_may_be_given(tmp_path: Path) -> None:
    text(tmp_path, "list.txt", "my  birds/a 1.jpg 3\r\n\r\nb.jpg 0\r\n")
    found = ImageList(tmp_path, "list.txt", classes=5)
    assert found.paths == ["my  birds/a 1.jpg", "b.jpg"] and found.labels.tolist() == [3, 0] and len(found.classes) == 5
    with pytest.raises(ValueError, match=r"label 3 of .* is outside 0\.\.2"):
        ImageList(tmp_path, "list.txt", classes=3)
    text(tmp_path, "list.txt", "\r\n")
    with pytest.raises(ImageError, match=r"list\.txt lists no image"):
        ImageList(tmp_path, "list.txt")


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert decode((tmp_path / "a.jpg").read_bytes(), "a").size == (8, 6)


def test_a_file_name_in_no_known_encoding_is_read_and_has_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "train/a").mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/train/a/\xff.jpg")).write_bytes(encoded())
    found = ImageFolder(tmp_path, "train")
    assert len(found.fingerprint) == 16 and found.image(0).size == (8, 6)
    write(tmp_path, "list.txt", data=b"\xef\xbb\xbftrain/a/\xff.jpg 1\r\n")  # with a byte order mark
    assert ImageList(tmp_path, "list.txt").paths == found.paths


# ---- ImageNet


FLAT = {
    "val.txt": "ILSVRC2012_val_00000003.JPEG 2\nILSVRC2012_val_00000001.JPEG 1\r\n\nILSVRC2012_val_00000002.JPEG 0",
    "val_labels.txt": "".join(f"ILSVRC2012_val_{i + 1:08d} {WNIDS[c]}\n" for i, c in enumerate((1, 0, 2))),
    "imagenet_2012_validation_synset_labels.txt": "\r\n".join(WNIDS[c] for c in (1, 0, 2)),
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    + "".join(f"ILSVRC2012_val_{i + 1:08d},{WNIDS[c]} 85 1 499 272 \n" for i, c in enumerate((1, 0, 2))),
    "val/val_labels.txt": "1\n0\n2\n",
}


def flat(root: Path, file: str, content: str) -> Path:
    """An ImageNet whose validation images lie in one folder."""
    imagenet(root)
    shutil.rmtree(root / "imagenet/val")
    write(root / "imagenet/val", *(f"ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 3)))
    text(root, f"imagenet/{file}", content)
    return root


@pytest.mark.parametrize("file", FLAT)
def test_a_flat_validation_set_takes_its_labels_from_any_usual_file(file: str, tmp_path: Path) -> None:
    found = ImageNet(flat(tmp_path, file, FLAT[file]), "val")
    assert found.labels.tolist() == [1, 0, 2] and found.classes == list(WNIDS)
    assert found.paths == [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 3)]


def test_a_flat_validation_set_needs_no_training_set_and_its_label_file_may_be_named(tmp_path: Path) -> None:
    flat(tmp_path, "mine.txt", FLAT["val_labels.txt"])
    shutil.rmtree(tmp_path / "imagenet/train")
    found = ImageNet(tmp_path, "val", labels="mine.txt")
    assert found.labels.tolist() == [1, 0, 2] and found.classes == list(WNIDS)
    text(tmp_path, "imagenet/mine.txt", FLAT["LOC_val_solution.csv"])
    assert ImageNet(tmp_path, "val", labels="mine.txt").classes == list(WNIDS)
    text(tmp_path, "imagenet/mine.txt", FLAT["val.txt"])
    assert len(ImageNet(tmp_path, "val", labels="mine.txt").classes) == 1000
    with pytest.raises(FileNotFoundError, match=r"imagenet/val has no folders of classes and no label file.*name wnid"):
        ImageNet(tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("3\n1\n2\n", "class 3 is outside 0..2; the development kit's ids .* are not in wnid order"),
        (f"{WNIDS[0]}\n{WNIDS[1]}\n", r"no label for val/ILSVRC2012_val_00000003\.JPEG"),
        (f"ILSVRC2012_val_00000001 {WNIDS[0]}", r"no label for val/ILSVRC2012_val_00000002\.JPEG"),
        ("n00000001\nn01440764\nn01440764", "'n00000001' is no wnid of this ImageNet"),
        ("cat\ndog\ncat", "'cat' is no wnid of this ImageNet"),
    ],
)
def test_labels_of_a_flat_validation_set_that_cannot_be_meant_are_refused(
    content: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        ImageNet(flat(tmp_path, "val.txt", content), "val")


def test_a_folder_of_imagenet_v2_that_is_no_number_is_named(tmp_path: Path) -> None:
    build("imagenetv2", tmp_path)
    write(tmp_path / V2, "n01440764/a.jpeg")
    with pytest.raises(ValueError, match="n01440764 is not named by a class number"):
        ImageNetV2(tmp_path)


@pytest.mark.parametrize("place", ["imagenet100.txt", "imagenet/imagenet100.txt", "imagenet100/imagenet100.txt"])
def test_imagenet_100_is_a_part_of_imagenet_that_a_list_names(place: str, tmp_path: Path) -> None:
    imagenet(tmp_path)
    text(tmp_path, place, f"{WNIDS[2]}\r\n{WNIDS[1]} goldfish\r\n\r\n")
    found = ImageNetSubset(tmp_path, "val")
    assert found.paths == [f"val/{WNIDS[1]}/a_2.JPEG", f"val/{WNIDS[2]}/a_1.JPEG"]
    assert found.labels.tolist() == [0, 1] and found.classes == [WNIDS[1], WNIDS[2]]


def test_imagenet_100_without_a_list_is_a_tree_of_no_more_classes(tmp_path: Path) -> None:
    imagenet(tmp_path)
    assert len(ImageNetSubset(tmp_path, "train", size=3)) == 3
    with pytest.raises(FileNotFoundError, match=r"no .*imagenet100\.txt, while .* has 3 classes.*2 wnids"):
        ImageNetSubset(tmp_path, "train", size=2)
    text(tmp_path, "imagenet100.txt", "n99999999")
    with pytest.raises(ValueError, match=r"imagenet100\.txt lists n99999999, which .* does not hold"):
        ImageNetSubset(tmp_path, "train")


def test_a_class_of_imagenet_100_without_images_is_named_or_allowed(tmp_path: Path) -> None:
    imagenet(tmp_path)
    (tmp_path / "imagenet/train" / WNIDS[1] / "a_2.JPEG").unlink()
    text(tmp_path, "imagenet100.txt", f"{WNIDS[0]}\n{WNIDS[2]}\n")
    assert len(ImageNetSubset(tmp_path, "train")) == 2, "a class that is not kept may be empty"
    text(tmp_path, "imagenet100.txt", f"{WNIDS[0]}\n{WNIDS[1]}\n")
    with pytest.raises(ImageError, match=rf"imagenet/train holds no image of class {WNIDS[1]}; .*allow_empty=true"):
        ImageNetSubset(tmp_path, "train")
    assert ImageNetSubset(tmp_path, "train", allow_empty=True).classes == list(WNIDS[:2])


def test_imagenet_100_is_found_in_a_flat_validation_set_too(tmp_path: Path) -> None:
    flat(tmp_path, "val.txt", FLAT["val.txt"])
    text(tmp_path, "imagenet100.txt", f"{WNIDS[2]}\n{WNIDS[0]}\n")
    found = ImageNetSubset(tmp_path, "val")
    assert [path[-6:-5] for path in found.paths] == ["2", "3"] and found.labels.tolist() == [0, 1]


# ---- the others


@pytest.mark.parametrize("split", ["images/{}", "images_{}", "{}"])
def test_plantnet_may_hold_its_splits_in_any_of_three_places(split: str, tmp_path: Path) -> None:
    plantnet(tmp_path, split)
    found = opened("plantnet", "val", tmp_path)
    assert found.paths[0] == f"{split.format('val')}/1355868/a.jpg" and found.labels.tolist() == [0, 0, 1]


def test_imagenette_is_read_at_full_size_where_there_are_several(tmp_path: Path) -> None:
    imagenet(tmp_path, "imagenette2-160")
    assert opened("imagenette", "train", tmp_path).source.root.name == "imagenette2-160"
    imagenet(tmp_path, "imagenette2")
    assert opened("imagenette", "train", tmp_path).source.root.name == "imagenette2"


def test_a_class_that_food_101_does_not_know_is_named(tmp_path: Path) -> None:
    build("food101", tmp_path)
    text(tmp_path, "food-101/meta/test.txt", "sushi/3\n")
    with pytest.raises(ValueError, match=r"meta/test\.txt: 'sushi' is no class of meta/classes\.txt"):
        Food101(tmp_path, "test")


def test_inaturalist_has_one_species_an_image_and_no_labels_for_its_test_set(tmp_path: Path) -> None:
    build("inat2019", tmp_path)
    assert INat2019(tmp_path, "test").labels is None
    file = tmp_path / "inat2019/train2019.json"
    whole = json.loads(file.read_text())
    for marks, says in (
        (whole["annotations"][1:], "image 52 has no annotation"),
        (whole["annotations"] + whole["annotations"][:1], "image 52 has two annotations"),
        ([{"image_id": 7, "category_id": 0}], "an annotation names image 7"),
        ([{"image_id": 50, "category_id": 3}], "an annotation names category 3"),
        ([{"image_id": 50}], "'annotations' must be a list of entries with image_id and category_id"),
    ):
        file.write_text(json.dumps(whole | {"annotations": marks}))
        with pytest.raises(ValueError, match=says):
            INat2019(tmp_path, "train")


def test_voc_labels_of_lists_and_of_annotations_agree(tmp_path: Path) -> None:
    build("voc", tmp_path)
    lists = VOCClasses(tmp_path, "train").labels
    for file in (tmp_path / "VOCdevkit/VOC2012/ImageSets/Main").glob("*_train.txt"):
        file.unlink()
    assert VOCClasses(tmp_path, "train").labels.tolist() == lists.tolist()
    for content, says in (
        ("<annotation><object><name>head</name></object></annotation>", "'head' is none of the 20 classes"),
        ("<annotation>", r"2007_000027\.xml is no XML file"),
    ):
        text(tmp_path, "VOCdevkit/VOC2012/Annotations/2007_000027.xml", content)
        with pytest.raises(ValueError, match=says):
            VOCClasses(tmp_path, "train")
    (tmp_path / "VOCdevkit/VOC2012/Annotations/2007_000027.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*2007_000027\.xml; expected"):
        VOCClasses(tmp_path, "train")


def test_a_voc_image_that_a_list_of_a_class_leaves_out_is_named(tmp_path: Path) -> None:
    build("voc", tmp_path)
    text(tmp_path, "VOCdevkit/VOC2012/ImageSets/Main/cow_val.txt", "2008_000008 -1\n2007_000027 2\n")
    with pytest.raises(ValueError, match=r"cow_val\.txt has no line `2007_000027 1`"):
        VOCClasses(tmp_path, "val")


def test_damaged_coco_annotations_are_named(tmp_path: Path) -> None:
    build("coco", tmp_path)
    file = tmp_path / "coco/annotations/instances_val2014.json"
    whole = json.loads(file.read_text())
    for content, says in (
        ("{", r"instances_val2014\.json is no JSON file"),
        ("[]", "'images' must be a list of entries with id and file_name"),
        (json.dumps(whole | {"annotations": [{"image_id": 1, "category_id": 1}]}), "an annotation names image 1"),
        (json.dumps(whole | {"annotations": [{"image_id": 9, "category_id": 2}]}), "an annotation names category 2"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=says):
            COCOClasses(tmp_path, "val", year=2014)


def test_the_planes_of_a_cifar_record_become_pixels(tmp_path: Path) -> None:
    build("cifar10_binary", tmp_path)
    image = np.asarray(CIFAR10Binary(tmp_path, "train").image(1))
    assert image.shape == (32, 32, 3) and image[0, 0].tolist() == image[31, 0].tolist() == [40, 50, 60]
    assert image[0, 31].tolist() == [0, 0, 0] and (image.sum(axis=2) == 0).sum() == 1


def test_a_damaged_cifar_batch_is_named(tmp_path: Path) -> None:
    build("cifar10_binary", tmp_path)
    before = CIFAR10Binary(tmp_path, "test").fingerprint
    write(tmp_path, "cifar-10-batches-bin/test_batch.bin", data=record(3, 1, 2, 4))
    assert CIFAR10Binary(tmp_path, "test").fingerprint != before
    for data, says in (
        (record(3, 1, 2, 3)[:-1], "no multiple of 3073"),
        (record(10, 1, 2, 3), r"label 10 of .* outside"),
    ):
        write(tmp_path, "cifar-10-batches-bin/test_batch.bin", data=data)
        with pytest.raises(ValueError, match=says):
            CIFAR10Binary(tmp_path, "test")
    with pytest.raises(ValueError, match="unknown split 'val' of CIFAR-10; use train, test"):
        CIFAR10Binary(tmp_path, "val")


# ---- folders and archives


def test_an_archive_named_like_the_dataset_goes_before_a_root_that_happens_to_fit(tmp_path: Path) -> None:
    build("imagenette", tmp_path / "elsewhere")
    pack(tmp_path / "elsewhere", "imagenette", tmp_path)
    write(tmp_path, "train/something/else.jpg")
    assert opened("imagenette", "train", tmp_path).classes == list(WNIDS)


def test_the_splits_of_an_archive_share_one_index_until_it_changes(tmp_path: Path) -> None:
    build("imagenette", tmp_path / "files")
    pack(tmp_path / "files", "imagenette", tmp_path)
    train, val = (opened("imagenette", split, tmp_path) for split in ("train", "test"))
    assert train.source is val.source
    write(tmp_path, f"files/imagenette2/train/{WNIDS[0]}/new.JPEG")
    pack(tmp_path / "files", "imagenette", tmp_path)
    assert len(opened("imagenette", "train", tmp_path)) == 4


def test_a_compressed_archive_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch) -> None:
    build("imagenette", tmp_path / "files")
    pack(tmp_path / "files", "imagenette", tmp_path)
    monkeypatch.setattr(sources, "MEMORY_BYTES", 10)
    with pytest.raises(ImageError, match=r"imagenette2\.tgz is too large to be held in memory; unpack it"):
        opened("imagenette", "train", tmp_path)


def test_folders_and_archives_list_names_folders_and_sizes_alike(tmp_path: Path) -> None:
    write(tmp_path, "set/a/x.jpg", "set/a b/y.jpg", "set/a/c/z.jpg", "set/.hidden/h.jpg", "set/a/.h.jpg", "set/top.jpg")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", arcname="set")
    packed = locate(tmp_path, ["nowhere", "set"], "nothing/here", "nothing")
    plain = Folder(tmp_path / "set")
    assert isinstance(packed, sources.Archive)
    for source in (plain, packed):
        assert source.names() == ["a b/y.jpg", "a/c/z.jpg", "a/x.jpg", "top.jpg"]
        assert source.names("a") == ["a/c/z.jpg", "a/x.jpg"] and source.names("b") == []
        assert source.folders() == ["a", "a b"] and source.folders("a") == ["c"] and source.folders("b") == []
        assert source.holds("a") and source.holds("a/x.jpg") and not source.holds("b")
        assert source.size("a/x.jpg") == len(encoded()) and source.size("b") == 0
        assert source.read("a/x.jpg") == encoded()


def test_an_empty_class_folder_of_an_archive_is_a_class_as_it_is_on_disk(tmp_path: Path) -> None:
    write(tmp_path, "set/train/a/x.jpg", "set/train/c/x.jpg")
    (tmp_path / "set/train/b/.hidden").mkdir(parents=True)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "set", arcname="./set")
    packed = locate(tmp_path, ["nowhere", "set"], "nothing/here", "nothing")
    for source in (packed, Folder(tmp_path / "set")):
        assert source.folders() == ["train"] and source.folders("train") == ["a", "b", "c"]
        assert source.folders("train/b") == [] and source.holds("train/b") and source.names("train/b") == []
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(ImageError, match="train/b holds no image"):
        ImageFolder(tmp_path, "train", folder="set")
    assert ImageFolder(tmp_path, "train", folder="set", allow_empty=True).labels.tolist() == [0, 2]


# ---- real data


def real(name: str, split: str) -> ImageData:
    """A split of a dataset below data/ (or BITSBENCH_DATA), as a folder or an archive; skips where it is not there."""
    try:
        return opened(name, split, DATA)
    except FileNotFoundError:
        pytest.skip(f"needs {name} in data/ (or BITSBENCH_DATA=folder that holds it)")


@pytest.mark.parametrize(
    ("name", "split", "count", "classes"),
    [("fashion_mnist", "train", 10_000, 10), ("fashion_mnist", "test", 10_000, 10), ("clothing", "train", 480, 10)]
    + [("clothing", "test", 372, 10)],
)
def test_real_labelled_folders_have_their_images_and_classes(name: str, split: str, count: int, classes: int) -> None:
    found = real(name, split)
    assert len(found) == count and len(found.classes) == classes
    each = np.bincount(found.labels, minlength=classes)
    assert each.min() >= 12 and (split == "test" and name == "clothing" or each.min() == each.max())
    assert found.image(count // 2).mode == "RGB"


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_coco_images_show_every_category_somewhere(split: str) -> None:
    found = real("coco_tiny", split)
    assert (
        found.labels.shape == (80, 80) and (found.labels.sum(axis=0) > 0).all() and (found.labels.sum(axis=1) > 0).all()
    )
    assert found.classes[0] == "person" and found.classes[-1] == "toothbrush"
    assert all(found.image(i).mode == "RGB" for i in range(0, 80, 20))


def test_real_samples_of_imagenet_are_one_image_a_class() -> None:
    found = real("imagenet_samples", "train")
    assert len(found) == 800 == len({path.split("/")[0] for path in found.paths}) and found.labels is None
    assert isinstance(found, Images) and min(found.image(0).size) == 256


def test_a_file_that_is_no_image_is_named_in_words_of_the_user() -> None:
    with pytest.raises(ImageError, match=r"^cannot decode a/b\.png: no image format that is known; mend or remove it"):
        decode(b"not an image", "a/b.png")
