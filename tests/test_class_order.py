"""Splits number their own classes: tasks compare them by name, unless their names are indices already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from dataset_trees import V2, WNIDS, imagenet, write
from frozen import folder_data, save_tiny_run, subject
from PIL import Image
from tiny import write_images

from evaluate.datasets import CONFIGS
from evaluate.run import load_data, load_task
from evaluate.tasks.base import Classes, Data, Subject
from evaluate.tasks.hamming import Hamming, HammingSign
from evaluate.tasks.knn import KNN
from evaluate.tasks.knn_fewshot import KNNFewShot
from evaluate.tasks.linear import Linear, LinearCached
from evaluate.tasks.linear_fixed import LinearFixed
from evaluate.tasks.mlp import MLPCached
from evaluate.tasks.retrieval import Retrieval
from pretrain.datasets import ImageFolder
from pretrain.datasets.classes import are_indices, in_one_order, numbered

TASKS = {
    "knn": lambda: KNN(ks=[5], k=5),
    "knn_fewshot": lambda: KNNFewShot(per_class=[4], ks=[1], tries=2),
    "linear": lambda: Linear(rates=[0.1], epochs=2, batch_size=8),
    "linear_fixed": lambda: LinearFixed(rate=0.1, epochs=2, batch_size=8),
    "linear_cached": lambda: LinearCached(rates=[0.1], epochs=3, batch_size=8),
    "mlp_cached": lambda: MLPCached(hidden=8, rates=[0.1], epochs=3, batch_size=8),
    "retrieval": Retrieval,
    "hamming": lambda: Hamming(bits=[32]),
    "hamming_sign": lambda: HammingSign(bits=[16]),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trees of the same images: train has classes a, c; val a, b, c, and in the second `b` is called `d`."""
    whole, renamed = (tmp_path_factory.mktemp("classes") for _ in range(2))
    for root, names in ((whole, "abc"), (renamed, "adc")):
        write_images(root, train=12, val=6)
        for split in ("train", "val"):
            for i, name in enumerate(names):
                (root / split / f"class{i}").rename(root / split / name)
        (root / "train" / names[1]).rename(root / "unused")
    return whole, renamed


def sorted_outcomes(given: Subject, name: str) -> tuple[dict, dict]:
    """Scores of a task, and its headline outcomes by the image's class as a path has it and its file."""
    task = TASKS[name]()
    task.check(given)
    result = task.run(given)
    return result.scores, dict(zip(result.outcomes["sample_id"], result.outcomes[task.main(given)], strict=True))


@pytest.mark.parametrize("name", list(TASKS))
def test_a_class_that_only_test_images_have_does_not_shift_the_others(name, trees, run, tmp_path):
    (scores, between), (expected, behind) = (
        sorted_outcomes(subject(run, folder_data(root), tmp_path / root.name), name) for root in trees
    )
    assert {key: score.value for key, score in scores.items()} == {key: s.value for key, s in expected.items()}
    same = {path.replace("/b/", "/d/"): value for path, value in between.items()}
    np.testing.assert_equal(same, behind)
    unseen = [value for path, value in between.items() if "/b/" in path]
    assert len(unseen) == 6 and not np.nansum(unseen)


@pytest.mark.parametrize("name", ["knn", "knn_fewshot", "linear_cached"])
def test_classes_never_trained_on_are_said_to_count_as_wrong(name, trees, run, tmp_path):
    result = TASKS[name]().run(subject(run, folder_data(trees[0]), tmp_path))
    assert "1 classes of the test images do not occur in training: always wrong" in result.notes
    top5 = next((score for key, score in result.scores.items() if key.startswith("top5")), None)
    assert top5 is None or top5.value <= 12 / 18, "a class that training lacks was among the first five"


@pytest.mark.parametrize("name", list(TASKS))
def test_the_protocol_speaks_of_classes_only_where_indices_differ(name, trees, images, run, tmp_path):
    task = TASKS[name]()
    assert "matched by name" in task.protocol(subject(run, folder_data(trees[0]), tmp_path))["classes"]
    assert "classes" not in task.protocol(subject(run, folder_data(trees[1]), tmp_path)), "d is last in either order"
    assert "classes" not in task.protocol(subject(run, folder_data(images), tmp_path))


@pytest.mark.parametrize(
    ("lists", "names", "places"),
    [
        (["ac", "abc"], "acb", [[0, 1], [0, 2, 1]]),
        (["abc", "ac"], "abc", [[0, 1, 2], [0, 2]]),
        (["abc", "abc"], "abc", [[0, 1, 2], [0, 1, 2]]),
        (["abc", "012"], "abc", [[0, 1, 2], [0, 1, 2]]),
        (["abc", "01"], "abc", [[0, 1, 2], [0, 1]]),
        (["01", "abc"], "01c", [[0, 1], [0, 1, 2]]),
        (["01", "012"], "012", [[0, 1], [0, 1, 2]]),
        (["ab", "012"], "ab012", [[0, 1], [2, 3, 4]]),
        (["012", "12"], "012", [[0, 1, 2], [1, 2]]),
        (["13", "1"], "13", [[0, 1], [0]]),
        (["ab", "ba", "c"], "abc", [[0, 1], [1, 0], [2]]),
    ],
)
def test_classes_are_matched_by_name_unless_one_list_has_only_indices(lists, names, places):
    found, where = in_one_order([list(each) for each in lists])
    assert found == list(names) and [each.tolist() for each in where] == places


def test_numbers_that_are_no_indices_are_names():
    assert numbered(["0", "1", "2"]) and not numbered(["1355868", "999"]) and not numbered(["1", "2"])
    assert not numbered(["0", "1", "10", "2"]) and not are_indices(["1355868", "999"], ["1355868"])


def test_class_sets_get_a_column_for_every_class(images, run, tmp_path):
    given = subject(run, folder_data(images), tmp_path)
    train, test = (given.data.split(split) for split in ("train", "test"))
    train.labels, train.classes = np.eye(3, dtype=np.int64)[train.labels][:, :2], ["class0", "class2"]
    test.labels = np.eye(3, dtype=np.int64)[test.labels]
    classes = Classes.of(given, ("test", "train"))
    assert classes.labels("test", [0, 6, 12]).tolist() == np.eye(3).tolist()
    assert classes.labels("train", [0]).tolist() == [[1, 0, 0]]


def test_the_numbers_of_imagenet_v2_count_the_wnids_of_imagenet(tmp_path, run):
    random = np.random.default_rng(0)
    imagenet(tmp_path)
    write(tmp_path / V2, *(f"{i}/{j}.jpeg" for i in range(3) for j in range(2)))
    for file in [*tmp_path.rglob("*.JPEG"), *tmp_path.rglob("*.jpeg")]:
        Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file, "PNG")
    data = load_data("imagenetv2", tmp_path)
    given = subject(run, data, tmp_path / "cache")
    assert data.split("train").classes == list(WNIDS)
    classes = Classes.of(given, ("train", "val", "test"))
    assert classes.names == list(WNIDS) and not classes.moved
    assert classes.labels("test").tolist() == [0, 0, 1, 1, 2, 2]
    KNN(ks=[1], k=1).check(given)
    for preset, database in (("train-val", "train"), ("val-test", "val"), ("val-loo", "test")):
        task = Retrieval(preset)
        task.check(given)
        assert task.run(given).scores["map"].n == 6 and task.splits[-1] == database
    assert "always wrong" not in " ".join(LinearCached(epochs=1).run(given).notes)


# ---- the head of a probe


def with_val(root: Path, **options: object) -> Data:
    data = folder_data(root, **options)
    return Data("folder", {**data.readers, "val": lambda: ImageFolder(root, "apart", name="folder")})


def write_val(root: Path) -> Path:
    """A validation split whose images are those of training."""
    write_images(root)
    for folder in (root / "train").iterdir():
        (root / "apart").mkdir(exist_ok=True)
        (root / "apart" / folder.name).symlink_to(folder)
    return root


def test_the_head_is_selected_on_validation_images_where_a_dataset_has_them(tmp_path, run):
    data, probe = with_val(write_val(tmp_path)), LinearCached(epochs=4, batch_size=8)
    given, without = (subject(run, each, tmp_path / "cache") for each in (data, folder_data(tmp_path)))
    result = probe.run(given)
    on_train = Data("folder", {"train": data.readers["train"], "test": data.readers["val"]})
    expected = probe.run(subject(run, on_train, tmp_path / "cache"))
    assert result.notes[:2] == [expected.notes[0], "the head was selected on the val split"]
    assert "the head was selected on the images that are reported" in " ".join(expected.notes)
    best = result.outcomes["heads"].tolist().index(result.notes[0].removeprefix("best head: "))
    assert result.scores["top1"].value == result.outcomes["curve_top1"][-1, best]
    assert probe.protocol(given)["selection"] == "best final top-1 on the val split"
    assert probe.protocol(without)["selection"] == "best final top-1 on the reported images"
    assert probe.reads(given) == ("train", "test", "val") and probe.reads(without) == ("train", "test")


def test_a_probe_of_one_head_selects_nothing_and_needs_no_validation_images(tmp_path, run, images):
    given = subject(run, with_val(images), tmp_path)
    assert LinearFixed().reads(given) == ("train", "test") and "none" in LinearFixed().protocol(given)["selection"]
    LinearFixed().check(given)


def test_a_split_that_is_known_to_have_a_part_of_the_classes_is_scored_among_them(tmp_path, run):
    write_images(tmp_path)
    for file in (tmp_path / "val" / "class0").iterdir():
        file.unlink()
    (tmp_path / "val" / "class0").rmdir()
    probe = LinearCached(rates=[1e-5], epochs=1, batch_size=8)
    data = folder_data(tmp_path)
    part = Data("folder", {**data.readers, "test": lambda: ImageFolder(tmp_path, "val", name="folder", subset=True)})
    given, whole = (subject(run, each, tmp_path / "cache") for each in (part, data))
    result, among_all = probe.run(given), probe.run(whole)
    assert set(result.outcomes["prediction"]) <= {1, 2} and 0 in among_all.outcomes["prediction"]
    assert (result.outcomes["top1"] == (result.outcomes["prediction"] == part.split("test").labels + 1)).all()
    assert probe.protocol(given)["chosen_from"] == "the 2 classes of the test split"
    assert "chosen_from" not in probe.protocol(whole)


def test_an_epoch_has_as_many_iterations_as_asked_for(images, run, tmp_path):
    given = subject(run, folder_data(images), tmp_path)
    steps: list[int] = []
    probe = LinearCached(rates=[0.1], epochs=2, batch_size=8, iterations=3)
    original = probe.stored_batches
    probe.stored_batches = lambda *a: (steps.append(1) or batch for batch in original(*a))  # type: ignore[method-assign]
    assert probe.run(given).outcomes["curve_top1"].shape == (2, 4) and len(steps) == 6
    assert probe.protocol(given)["iterations_per_epoch"] == 3
    assert "iterations_per_epoch" not in LinearCached().protocol(given)
    with pytest.raises(ValueError, match="iterations=0"):
        LinearCached(iterations=0)


@pytest.mark.parametrize("name", ["linear", "linear_cached"])
def test_damaged_training_images_are_left_out_and_counted(name, tmp_path, run):
    write_images(tmp_path)
    for i in (2, 3):
        (tmp_path / "train" / "class1" / f"{i:03d}.png").write_bytes(b"no image")
    given = subject(run, folder_data(tmp_path, skip_bad=True), tmp_path / "cache")
    result = TASKS[name]().run(given)
    assert result.skipped == {"train": 2, "test": 0}


# ---- suites


@pytest.mark.parametrize("suite", ["paper", "imagenet"])
def test_imagenet_is_probed_as_published_and_nothing_is_listed_twice(suite):
    tasks = yaml.safe_load((CONFIGS.parent / "suite" / f"{suite}.yaml").read_text())["tasks"]
    assert len({str(task) for task in tasks}) == len(tasks)
    on_imagenet = {task["task"]: task for task in tasks if task["data"] == "imagenet"}
    assert {"linear", "linear_fixed"} <= set(on_imagenet)
    for name in ("linear", "mlp"):
        assert name not in on_imagenet or on_imagenet[name]["iterations"] == 1250
    for task in on_imagenet.values():
        load_task(task["task"], **{key: value for key, value in task.items() if key not in ("task", "data")})
