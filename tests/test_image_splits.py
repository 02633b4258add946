"""Images with masks or boxes can be trained on and compared as images; a dataset without any says what it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import compose, overrides

from evaluate.run import load_data
from pretrain.checkpoint import read_run
from pretrain.datasets.splits import image_split
from pretrain.train import train


@pytest.mark.parametrize(
    "splits, train_split, test_split",
    [
        (["train", "test", "masks_train", "masks_test"], "train", "test"),
        (["masks_train", "masks_test", "masks_val"], "masks_train", "masks_test"),
        (["instances", "instances_train"], "instances_train", "instances"),
        (["train", "instances"], "train", ""),  # the instances may well be the images that are trained on
        (["test"], "", "test"),
        (["instances"], "", "instances"),
        (["queries", "database"], "", ""),
    ],
)
def test_splits_of_images_are_those_of_one_kind(splits: list[str], train_split: str, test_split: str) -> None:
    for part, expected in (("train", train_split), ("test", test_split)):
        if expected:
            assert image_split(splits, part) == expected
        else:
            with pytest.raises(ValueError, match=f"no split of images to {part} on.*there are {', '.join(splits)}"):
                image_split(splits, part)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Fourteen training and four validation images with masks, of which one is a training image too."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 4)):
        for folder in ("images", "masks"):
            (tmp_path / folder / split).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{i}.png")
            Image.fromarray(pixels[..., 0] // 128).save(tmp_path / "masks" / split / f"{i}.png")
    (tmp_path / "images/val/3.png").write_bytes((tmp_path / "images/train/5.png").read_bytes())
    return tmp_path


def words(root: Path, data: str) -> list[str]:
    return [
        f"data={data}",
        *overrides(root, "bits_fixed", root / "runs", "trainer.epochs=1", "trainer.check_overlap=true")[1:],
    ]


def test_a_set_with_masks_is_trained_on_as_images_and_its_overlap_is_found(root: Path) -> None:
    run = train(compose(*words(root, "masks")))
    assert read_run(run)["data"] | {"fingerprint": ""} == {
        "name": "masks", "images": 14, "overlap": 1, "fingerprint": "",
    }  # fmt: skip


def test_training_on_data_without_such_a_split_names_those_that_there_are(root: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one of train, masks_train, instances_train; there are videos\Z"):
        train(compose(*words(root, "davis2017")))


def test_tasks_on_images_find_them_where_all_are_annotated(root: Path) -> None:
    data = load_data("masks", root)
    for part, count in (("train", 14), ("test", 4)):
        assert len(data.split(part)) == count
        assert data.split(part).fingerprint == data.split(f"masks_{part}").fingerprint
    assert "test" not in load_data("images", root).readers
