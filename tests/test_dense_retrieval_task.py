"""Dense retrieval as a task: a bounded memory of training patches, labels for test images, mIoU and its interval."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import count_forward, save_tiny_run, subject
from PIL import Image

from evaluate.dense import MaskedViews, dense_features, masked_batches
from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store
from evaluate.metrics.segmentation import ClassCounts, confusion, mean_iou
from evaluate.overlay import colours
from evaluate.run import load_task
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.dense_retrieval import DenseRetrieval
from pretrain.datasets import ImageError, ImageFolder
from pretrain.datasets.masks import Masks

SETTINGS: dict[str, Any] = {"size": 32, "memory_size": 60, "k": 3, "pictures": 2}
COLOURS = np.array([(20, 20, 20), (230, 40, 40), (40, 60, 230)], np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight training and five test images of 32 x 48 pixels: two coloured blocks; one row of each mask is void."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for i in range(count):
            labels = np.zeros((32, 48), np.uint8)
            labels[8:24, :16], labels[8:24, 24:40] = 1 + i % 2, 2 - i % 2
            pixels = (COLOURS[labels] + rng.integers(0, 20, (32, 48, 3))).astype(np.uint8)
            labels[-1] = 255
            for folder, array in (("images", pixels), ("masks", labels)):
                path = tmp_path / "pairs" / folder / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "pairs"


def pairs(root: Path, classes: int = 3, train: int | None = None) -> Data:
    def split(name: str, count: int) -> Masks:
        return Masks(root, f"images/{name}", f"masks/{name}", count, name="pairs")

    return Data(
        "pairs", {"masks_train": lambda: split("train", train or classes), "masks_test": lambda: split("val", classes)}
    )


def by_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are the mean colour of a patch: what labels depend on here."""

    def features(store: Store, backbone: Any, pixels: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        mean = torch.nn.functional.avg_pool2d(pixels.float(), backbone.patch_size) - 80
        return mean.permute(0, 2, 3, 1)

    monkeypatch.setattr("evaluate.tasks.dense_retrieval.dense_features", features)


def test_classes_that_features_tell_apart_are_found(root, run, tmp_path, monkeypatch):
    by_colour(monkeypatch)
    result = DenseRetrieval(**SETTINGS | {"size": 64, "memory_size": 400, "augment": False}).run(
        subject(run, pairs(root), tmp_path)
    )
    assert result.scores["miou"].value > 0.85 and result.scores["pixel_accuracy"].value > 0.9
    table = [line.split(",") for line in result.files["per_class.csv"].decode().splitlines()]
    assert table[0] == ["class", "iou", "share"] and [row[0] for row in table[1:]] == ["0", "1", "2"]
    assert np.mean([float(row[1]) for row in table[1:]]) == pytest.approx(result.scores["miou"].value, abs=1e-5)


def test_the_memory_is_bounded_and_every_image_gives_its_share(root, run, tmp_path):
    given = subject(run, pairs(root), tmp_path)
    memory, labels, damaged = DenseRetrieval(**SETTINGS).fill(given)
    assert memory.shape == (8 * 7, 16) and labels.shape == (8 * 7, 3) and damaged == 0  # 60 // 8 = 7 patches an image
    assert (labels.sum(dim=1) == 64).all(), "pixels of the classes of a patch of 8 x 8"
    both, *_ = DenseRetrieval(**SETTINGS | {"epochs": 2}).fill(given)
    assert both.shape == (2 * 8 * 3, 16)
    everything, *_ = DenseRetrieval(**SETTINGS | {"memory_size": 10_000}).fill(given)
    assert everything.shape == (8 * 16, 16)


def test_the_memory_follows_from_the_seed_alone(root, run, tmp_path):
    given = subject(run, pairs(root), tmp_path)
    first, *_ = DenseRetrieval(**SETTINGS).fill(given)
    given.store.batch_size = 3
    again, *_ = DenseRetrieval(**SETTINGS).fill(given)
    torch.testing.assert_close(first, again)
    given.seed = 1
    other, *_ = DenseRetrieval(**SETTINGS).fill(given)
    assert not torch.allclose(first, other)


def test_crops_cut_image_and_mask_alike(root):
    data = Masks(root, "images/train", "masks/train", 3)
    for epoch in range(4):
        view, _, error = MaskedViews(data, 32, augment=True)[(epoch, 0)]
        assert error == "" and view.shape == (32, 32, 4)
        pixels, labels = view[..., :3].astype(int), view[..., 3]
        inner = (labels == 1) | (labels == 2)
        nearest = np.abs(pixels[:, :, None] - COLOURS.astype(int)).sum(-1).argmin(-1)
        assert inner.any() and (nearest[inner] == labels[inner]).mean() > 0.75
    assert not np.array_equal(*(MaskedViews(data, 32, augment=True)[(e, 0)][0] for e in (0, 1)))
    np.testing.assert_array_equal(*(MaskedViews(data, 32)[(e, 0)][0] for e in (0, 1)))


def test_void_is_background_in_the_memory_and_left_out_of_the_score(root, run, tmp_path, monkeypatch):
    by_colour(monkeypatch)
    for file in (root / "masks" / "val").iterdir():
        labels = np.asarray(Image.open(file)).copy()
        labels[:, 24:] = 255
        Image.fromarray(labels).save(file)
    task = DenseRetrieval(**SETTINGS | {"size": 64, "memory_size": 400, "augment": False})
    assert task.run(subject(run, pairs(root), tmp_path)).scores["miou"].value > 0.8


def test_a_record_keeps_the_miou_of_single_images_and_an_interval_around_that_of_the_set(root, run, tmp_path):
    result = DenseRetrieval(**SETTINGS).run(subject(run, pairs(root), tmp_path))
    score = result.scores["miou"]
    assert result.outcomes["miou"].shape == (5,) and score.low <= score.value <= score.high and score.n == 5
    assert result.outcomes["sample_id"][0] == "images/val/0.png" and "memory of 56 patches" in result.notes
    picture = np.asarray(Image.open(io.BytesIO(result.files["segmentations.png"])))
    assert picture.ndim == 3 and (picture == (128, 0, 0)).all(-1).any(), "class 1 is not drawn"


def test_each_image_is_forwarded_once(root, run, tmp_path):
    given = subject(run, pairs(root), tmp_path)
    with count_forward(given.backbone) as sizes:
        DenseRetrieval(**SETTINGS).run(given)
    assert sum(sizes) == 8 + 5


def test_searches_of_few_images_at_a_time_find_the_same(root, run, tmp_path, monkeypatch):
    whole = DenseRetrieval(**SETTINGS).run(subject(run, pairs(root), tmp_path))
    monkeypatch.setattr("evaluate.tasks.dense_retrieval.QUERY_VALUES", 1)
    given = subject(run, pairs(root), tmp_path)
    given.store.batch_size = 2
    np.testing.assert_allclose(
        DenseRetrieval(**SETTINGS).run(given).outcomes["miou"], whole.outcomes["miou"], atol=0.02
    )


def test_parity_switches_change_what_they_say(root, run, tmp_path):
    given = subject(run, pairs(root, classes=5), tmp_path)
    plain = DenseRetrieval(**SETTINGS)
    assert plain.std(given)[2] == 0.225 and DenseRetrieval(**SETTINGS, std_slip=True).std(given)[2] == 0.255
    values = {
        name: DenseRetrieval(**SETTINGS, **({name: True} if name else {})).run(given).scores["miou"]
        for name in ("", "hungarian", "empty_as_zero")
    }
    assert values["empty_as_zero"].value == pytest.approx(values[""].value * 3 / 5), "two of five classes occur nowhere"
    assert values["hungarian"].value >= values[""].value - 1e-9 and values["hungarian"].low is None
    protocols = [
        DenseRetrieval(**SETTINGS, **{s: True}).protocol(given) for s in ("hungarian", "empty_as_zero", "std_slip")
    ]
    assert all(protocol != plain.protocol(given) for protocol in protocols)


@pytest.mark.parametrize("kind", ["pixels", "untrained"])
def test_baselines_take_part(root, run, tmp_path, kind):
    result = DenseRetrieval(**SETTINGS).run(subject(f"{kind}:{run}", pairs(root), tmp_path))
    assert 0 <= result.scores["miou"].value <= 1


def test_a_damaged_image_is_named_or_left_out_of_memory_and_test(root, run, tmp_path):
    for split in ("train", "val"):
        (root / "masks" / split / "1.png").write_bytes(b"x")
    given = subject(run, pairs(root), tmp_path)
    with pytest.raises(ImageError, match=r"masks/train/1\.png"):
        DenseRetrieval(**SETTINGS).run(given)
    for split in ("masks_train", "masks_test"):
        given.data.split(split).skip_bad = True
    result = DenseRetrieval(**SETTINGS).run(given)
    assert result.skipped == {"memory images": 1, "test images": 1} and len(result.outcomes["miou"]) == 4


def test_what_does_not_fit_is_said_before_any_work(root, run, tmp_path, images):
    given = subject(run, pairs(root), tmp_path)
    with pytest.raises(Unavailable, match="memory of 7 patches is too small for 8 images"):
        DenseRetrieval(memory_size=7).check(given)
    with pytest.raises(Unavailable, match="have 4 and 3 classes"):
        DenseRetrieval().check(subject(run, pairs(root, train=4), tmp_path))
    plain = {name: (lambda: ImageFolder(images, "val")) for name in ("masks_train", "masks_test")}
    with pytest.raises(Unavailable, match="has no masks"):
        DenseRetrieval().check(subject(run, Data("folder", plain), tmp_path))
    with pytest.raises(ValueError, match="k=100 exceeds the 56 patches"):
        DenseRetrieval(**SETTINGS | {"k": 100}).run(given)
    for settings, word in (({"size": 0}, "size=0"), ({"beta": 0.0}, "beta=0.0"), ({"epochs": 0}, "epochs=0")):
        with pytest.raises(ValueError, match=word):
            DenseRetrieval(**settings)


def test_the_evaluator_records_dense_retrieval_with_its_files(root, run, tmp_path):
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda name: pairs(root), quiet=True)
    bench.evaluate({str(run): [Item(load_task("dense_retrieval", **SETTINGS), "pairs")]})
    assert bench.unfit == [] and len(bench.written[0].main_outcomes()) == 5
    assert all((tmp_path / file).is_file() for file in bench.written[0].provenance["files"])


# ---- parts


def test_counts_by_image_give_the_miou_of_the_set_and_of_each_image():
    rng, counts, total = np.random.default_rng(0), ClassCounts(4), np.zeros((4, 4), np.int64)
    each = []
    for _ in range(30):
        truth, found = rng.integers(0, 4, (2, 20, 20))
        found = np.where(rng.random((20, 20)) < 0.7, truth, found)
        table = confusion(truth, found, 4)
        counts.add(table)
        total += table
        each.append(mean_iou(table))
    np.testing.assert_allclose(counts.iou(), each)
    assert counts.iou(3) == pytest.approx(each[3])
    low, high = counts.interval()
    assert low < mean_iou(total) < high and high - low < 0.05
    assert ClassCounts(4).interval() == (None, None)


def test_dense_features_do_not_depend_on_the_batch_and_refuse_what_is_not_finite(run, root, tmp_path):
    given = subject(run, pairs(root), tmp_path)
    pixels, _, rows, _ = next(masked_batches(given.store, given.data.split("masks_test"), 32))
    together = dense_features(given.store, given.backbone, pixels)
    single = torch.cat([dense_features(given.store, given.backbone, one[None]) for one in pixels])
    assert together.shape == (5, 4, 4, 16) and rows == [0, 1, 2, 3, 4]
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)
    assert dense_features(given.store, given.backbone, pixels, "keys").shape == together.shape
    next(given.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="patches hold NaN or infinity"):
        dense_features(given.store, given.backbone, pixels)


def test_class_zero_and_void_have_colours_of_their_own():
    shown = colours(np.array([[0, 1, 255]], np.uint8))
    assert shown.tolist() == [[[64, 64, 64], [128, 0, 0], [255, 255, 255]]]
