"""`python -m evaluate.datasets`: what is there, what is missing and how it should look; nothing is made or raised."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_trees import V2, build, encoded, text, write

from evaluate import datasets


def listing(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert datasets.main(["--data-root", str(root), *more]) == 0
    return capsys.readouterr().out


def lines_of(name: str, out: str) -> list[str]:
    """The lines from that of a dataset up to the next one's."""
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"  {name} "))
    last = next((i for i in range(first + 1, len(lines)) if not lines[i].startswith("   ")), len(lines))
    return lines[first:last]


def test_what_is_there_is_listed_by_split_and_what_is_missing_with_its_layout(tmp_path, capsys):
    for name in ("birds525", "coco", "inat2019", "imagenet_samples"):
        build(name, tmp_path)
    out = listing(tmp_path, capsys)
    assert [line.split()[-5:] for line in lines_of("birds525", out)] == [
        [split, "3", "images", "2", "classes"] for split in ("train", "val", "test")
    ]
    assert lines_of("coco", out)[0].endswith("2 images   sets of 3 classes")
    assert lines_of("imagenet_samples", out)[0].endswith("3 images   no labels")
    missing = out.partition("Not there")[2]
    food = " ".join(" ".join(lines_of("food101", missing)).split())
    assert "images/<class>/<id>.jpg and meta/{classes,train,test}.txt" in food
    assert "birds525" not in missing and "{train,val}/<class>/<image>" in out.partition("Your own images")[2]


@pytest.mark.parametrize("columns", [80, 100])
def test_every_dataset_is_named_once_within_the_width_and_nothing_is_made(columns, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(tmp_path)
    out = listing(Path("nowhere"), capsys)
    names = [file.stem for file in datasets.CONFIGS.glob("*.yaml")]
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(shown) == sorted(names) and "shapeworld" in names
    assert max(map(len, out.splitlines())) <= columns
    assert list(tmp_path.iterdir()) == []


def test_a_layout_is_what_the_first_line_of_a_configuration_says_in_whole_sentences():
    assert datasets.layout("# Food: DATA_ROOT/food/<class>, or DATA_ROOT/food.tar.") == "food/<class>, or food.tar."
    assert datasets.layout("# A set: DATA_ROOT/a. And, optionally, more") == "a."
    assert datasets.layout("# no title, no stop") == "no title, no stop"


def test_a_part_that_is_missing_or_cannot_be_read_is_said_beside_what_is_there(tmp_path, capsys):
    build("food101", tmp_path)
    build("coco", tmp_path)
    (tmp_path / "food-101/meta/test.txt").unlink()
    text(tmp_path, "coco/annotations/instances_val2014.json", "{")
    build("birds525", tmp_path)
    (tmp_path / "birds525/test/\x1b[2J").mkdir()
    out = listing(tmp_path, capsys)
    assert "3 images" in lines_of("food101", out)[0] and "meta/test.txt" in "".join(lines_of("food101", out)[1:])
    assert "is no JSON file" in " ".join(" ".join(lines_of("coco", out)).split())
    assert "holds no image" in " ".join(" ".join(lines_of("birds525", out)).split()) and "\x1b" not in out


def test_listing_does_not_walk_through_a_root_for_images_of_the_users_own(tmp_path, capsys, monkeypatch):
    from pretrain import datasets as readers

    original = readers.Images
    asked: list[str] = []
    monkeypatch.setattr(readers, "Images", lambda *a, **k: asked.append(k.get("folder", "")) or original(*a, **k))
    write(tmp_path, "holiday/1.jpg")
    assert "holiday" not in listing(tmp_path, capsys) and "imagenet_samples" in asked and "" not in asked


def test_splits_of_different_classes_are_pointed_out(tmp_path, capsys):
    build("birds525", tmp_path)
    assert "different classes" not in listing(tmp_path, capsys)
    write(tmp_path, "birds525/test/ZEBRA DOVE/1.jpg")
    found = " ".join(" ".join(lines_of("birds525", listing(tmp_path, capsys))).split())
    assert "train and val and test have different classes: matched by name" in found


def test_class_numbers_of_another_publisher_are_not_taken_for_other_classes(tmp_path, capsys):
    build("imagenet", tmp_path)
    write(tmp_path, f"{V2}/0/a.jpeg", f"{V2}/2/a.jpeg")
    out = listing(tmp_path, capsys)
    assert "different classes" not in out
    assert [line.split()[-5] for line in lines_of("imagenetv2", out)] == ["train", "val", "test"]


def test_a_root_that_is_a_dataset_itself_is_not_taken_for_many(tmp_path, capsys):
    write(tmp_path, "train/a/1.jpg", "test/a/1.jpg")
    out = " ".join(listing(tmp_path, capsys).split())
    assert f"No dataset below {tmp_path}." in out and "itself can be read as birds525, cifar10, clothing" in out
    assert "images 1 classes" not in out


def test_check_decodes_every_image_counts_the_damaged_and_says_so_by_its_exit_code(tmp_path, capsys):
    build("food101", tmp_path)
    assert listing(tmp_path, capsys, "--check", "food101").splitlines() == [
        "food101 train: 0 of 3 images damaged",
        "food101 test: 0 of 1 images damaged",
    ]
    write(tmp_path, "food-101/images/apple_pie/101.jpg", data=encoded()[:-200])
    (tmp_path / "food-101/images/apple_pie/5.jpg").unlink()
    assert datasets.main(["--data-root", str(tmp_path), "--check", "food101"]) == 1
    out = capsys.readouterr().out
    assert "train: 1 of 3 images damaged" in out and "test: 1 of 1 images damaged" in out
    assert "cannot decode" in out and "apple_pie/101.jpg" in out and "cannot read" in out


def test_check_of_what_is_absent_or_unknown_says_so(tmp_path, capsys):
    assert datasets.main(["--data-root", str(tmp_path), "--check", "voc"]) == 1
    assert "no dataset at" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        datasets.main(["--check", "vocs"])
    assert caught.value.code == 2 and "--check vocs: no such dataset; known: " in capsys.readouterr().err
