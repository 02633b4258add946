"""The feature store: exact, computed once, resumed after a stop, safe with several writers, honest about bad images."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen import SPEC, count_forward, save_tiny_run
from PIL import Image
from tiny import write_images

from evaluate import features, importer
from evaluate.features import Store, identity
from evaluate.tasks.base import Data, Subject, centre_view_protocol
from evaluate.views import CentreViews, RandomCrops, crop_box
from pretrain.backbones import Backbone, preprocess
from pretrain.datasets import ImageError, ImageFolder, centre_view


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(**SPEC).eval().requires_grad_(False)


@pytest.fixture
def train(images: Path) -> ImageFolder:
    return ImageFolder(images, "train")


def make_store(root: Path, **options) -> Store:
    return Store(root, **{"batch_size": 5, "workers": 0, "quiet": True, **options})


def plain_forward(backbone: Backbone, images: ImageFolder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class tokens of both blocks and patch average, image by image."""
    rows = []
    for index in range(len(images)):
        view = torch.from_numpy(centre_view(images.image(index), backbone.resize, backbone.image_size))
        old, new = backbone.blocks(preprocess(view.permute(2, 0, 1)[None], backbone.mean, backbone.std), 2)
        rows.append((old.cls[0], new.cls[0], new.patches.mean((1, 2))[0]))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_features_are_those_of_a_plain_forward_pass(tmp_path, backbone, train, monkeypatch, workers):
    monkeypatch.setattr(features, "SHARD_IMAGES", 7)  # several shards, the last one short
    stored = make_store(tmp_path, workers=workers).get(backbone, train)
    old, new, average = plain_forward(backbone, train)
    for found, expected in ((stored.cls(-2), old), (stored.cls(), new), (stored.average(), average)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert stored.ids.tolist() == train.paths and stored.labels.tolist() == train.labels.tolist()


def test_a_second_look_costs_no_forward_pass(tmp_path, backbone, train):
    first = make_store(tmp_path).get(backbone, train)
    with count_forward(backbone) as sizes:
        second = make_store(tmp_path).get(backbone, train)
    assert sizes == []
    assert torch.equal(first.cls(), second.cls())


def test_an_interrupted_pass_goes_on_at_the_first_missing_shard(tmp_path, backbone, train, monkeypatch):
    monkeypatch.setattr(features, "SHARD_IMAGES", 10)
    store, original, calls = make_store(tmp_path), Store.tokens, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 5:  # in the middle of the third shard of two batches each
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Store, "tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.get(backbone, train)
    monkeypatch.setattr(Store, "tokens", original)
    with count_forward(backbone) as sizes:
        stored = store.get(backbone, train)
    assert sum(sizes) == len(train) - 20, "shards that were whole were computed again"
    torch.testing.assert_close(stored.cls(), plain_forward(backbone, train)[1], rtol=1e-5, atol=1e-6)


def fill_slowly(root: Path, backbone: Backbone, images: ImageFolder) -> None:
    original = Store.tokens
    Store.tokens = lambda *arguments: time.sleep(0.05) or original(*arguments)  # type: ignore[method-assign]
    fill(root, backbone, images)


def test_a_killed_process_loses_no_shard_that_was_whole_and_blocks_nobody(tmp_path, backbone, train, monkeypatch):
    monkeypatch.setattr(features, "SHARD_IMAGES", 5)
    process = multiprocessing.get_context("fork").Process(target=fill_slowly, args=(tmp_path, backbone, train))
    process.start()
    deadline = time.monotonic() + 60
    while len(whole := list(tmp_path.rglob("?????????.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    whole = list(tmp_path.rglob("?????????.npy"))
    assert 2 <= len(whole) < 8, "killed too late to prove anything"
    with count_forward(backbone) as sizes:
        stored = make_store(tmp_path).get(backbone, train)
    assert sum(sizes) == len(train) - 5 * len(whole)
    torch.testing.assert_close(stored.cls(), plain_forward(backbone, train)[1], rtol=1e-5, atol=1e-6)


def test_float16_halves_the_file_and_tasks_get_float32(tmp_path, backbone, train):
    exact, half = (make_store(tmp_path, store=kind).get(backbone, train) for kind in ("float32", "float16"))
    assert np.load(half.shards[0]).dtype == np.float16 and half.cls().dtype == torch.float32
    assert torch.equal(half.cls(), exact.cls().half().float())
    assert not torch.equal(half.cls(), exact.cls())
    sizes = [files.shards[0].stat().st_size for files in (exact, half)]
    assert sizes[1] < 0.55 * sizes[0]


def test_the_protocol_names_what_is_stored_unless_it_is_float32(tmp_path, backbone, train):
    full, half = (Subject(backbone, None, Data("folder", {}), make_store(tmp_path, store=s)) for s in features.STORED)
    assert "stored" not in centre_view_protocol(full, "class token")
    assert centre_view_protocol(half, "class token")["stored"] == "float16"


def test_features_beyond_float16_are_an_error_that_names_the_remedy(tmp_path, backbone, train):
    backbone.vit.norm.bias.fill_(70_000)
    with pytest.raises(ValueError, match=r"class0/000.png exceed what float16 holds; use store=float32"):
        make_store(tmp_path, store="float16").get(backbone, train)
    assert make_store(tmp_path).get(backbone, train).cls().max() > 65_504


def test_a_damaged_shard_is_computed_again(tmp_path, backbone, train, monkeypatch):
    monkeypatch.setattr(features, "SHARD_IMAGES", 10)
    stored = make_store(tmp_path).get(backbone, train)
    expected = stored.cls().clone()
    stored.shards[1].write_bytes(stored.shards[1].read_bytes()[:-40])
    with count_forward(backbone) as sizes:
        assert torch.equal(make_store(tmp_path).get(backbone, train).cls(), expected)
    assert sum(sizes) == 10


def test_a_shard_whose_images_are_listed_otherwise_is_computed_again(tmp_path, backbone, train):
    stored = make_store(tmp_path).get(backbone, train)
    features.write_array(stored.shards[0].with_suffix(".rows.npy"), np.arange(5))
    assert len(make_store(tmp_path).get(backbone, train).cls()) == len(train)


def test_a_stop_while_a_shard_is_written_leaves_nothing_of_it(tmp_path, backbone, train, monkeypatch):
    def half(file, array):
        file.write(b"half a shard")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", half)
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path).get(backbone, train)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"meta.json", ".lock"}


def fill(root: Path, backbone: Backbone, images: ImageFolder) -> None:
    torch.set_num_threads(1)  # a forked process must not wait for threads that it does not have
    make_store(root).get(backbone, images)


def test_several_processes_fill_one_store(tmp_path, backbone, train, monkeypatch):
    monkeypatch.setattr(features, "SHARD_IMAGES", 5)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fill, args=(tmp_path, backbone, train)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with count_forward(backbone) as sizes:
        stored = make_store(tmp_path).get(backbone, train)
    assert sizes == [] and not list(tmp_path.rglob("*.tmp"))
    torch.testing.assert_close(stored.cls(), plain_forward(backbone, train)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"resize": 20}, {"mean": [0.5, 0.5, 0.5]}, {"num_heads": 4}, {"image_size": 24, "resize": 24}]
)
def test_what_moves_a_feature_gets_a_place_of_its_own(tmp_path, backbone, train, change):
    torch.manual_seed(0)
    other = Backbone(**{**SPEC, **change}).eval().requires_grad_(False)
    assert identity(other) != identity(backbone)
    store = make_store(tmp_path)
    assert store.get(backbone, train).shards != store.get(other, train).shards


def test_reduced_precision_is_stored_apart_and_close(tmp_path, backbone, train):
    exact = make_store(tmp_path).get(backbone, train).cls()
    rough = make_store(tmp_path, precision="bfloat16").get(backbone, train).cls()
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "options, word",
    [({"precision": "int3"}, "int3"), ({"batch_size": 0}, "batch_size=0"), ({"store": "bfloat16"}, "store='bfloat16'")],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path, options, word):
    with pytest.raises(ValueError, match=word):
        make_store(tmp_path, **options)


def test_a_damaged_image_is_named_and_left_out_only_on_request(tmp_path, backbone):
    root = write_images(tmp_path / "images", train=4, val=1)
    bad = root / "train" / "class1" / "002.png"
    bad.write_bytes(bad.read_bytes()[:60])
    images = ImageFolder(root, "train")
    with pytest.raises(ImageError, match="class1/002.png"):
        make_store(tmp_path).get(backbone, images)
    images.skip_bad = True
    stored = make_store(tmp_path).get(backbone, images)
    assert stored.skipped == 1 and len(stored.cls()) == len(stored.labels) == 11
    assert "class1/002.png" not in " ".join(stored.ids)
    images.skip_bad = False
    with pytest.raises(ImageError, match="class1/002.png"):
        make_store(tmp_path).get(backbone, images)


def test_weights_that_diverged_are_an_error_that_names_an_image(tmp_path, backbone, train):
    backbone.vit.norm.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"NaN.*000.png"):
        make_store(tmp_path).get(backbone, train)


def test_random_crops_follow_from_seed_and_draw_alone(tmp_path, backbone, train):
    table = torch.tensor([[3, 1, 3], [2, 2, 0]])
    runs = [list(make_store(tmp_path, workers=n).random_crops(backbone, train, table, seed=4)) for n in (0, 2)]
    for (a, rows), (b, same), wanted in zip(*runs, table, strict=True):
        assert rows == same == wanted.tolist()
        assert torch.equal(a, b)
    (first, _), (second, _) = runs[0]
    assert not torch.equal(first[:, 0], first[:, 2]), "two draws of one image gave the same crop"
    assert not torch.equal(second[:, 0], second[:, 1])


def test_a_random_crop_is_flipped_half_of_the_time_and_of_the_right_size(train):
    crops = RandomCrops(train, 16, seed=0)
    ramp = np.tile(np.linspace(0, 255, 20).astype(np.uint8)[None, :, None], (20, 1, 3))
    train.image = lambda index: Image.fromarray(ramp)  # type: ignore[method-assign]
    views = [crops[draw, 0][0] for draw in range(200)]
    assert {view.shape for view in views if view is not None} == {(16, 16, 3)}
    flipped = sum(int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views if view is not None)
    assert 70 < flipped < 130


def test_crop_boxes_lie_inside_and_cover_the_asked_share():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(40, 30, rng) for _ in range(500)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 40 and bottom.max() <= 30
    area, ratio = (right - left) * (bottom - top) / 1200, (right - left) / (bottom - top)
    assert 0.06 < area.min() < 0.12 and 0.85 < area.max() <= 1.0
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.45
    assert crop_box(300, 2, rng)[3] == 2, "a very flat image falls back to a central box"


def test_a_damaged_image_in_random_crops_is_replaced_by_the_next_one(tmp_path):
    root = write_images(tmp_path, train=2, val=1)
    (root / "train" / "class0" / "001.png").write_bytes(b"no image")
    images = ImageFolder(root, "train")
    view, _, error = RandomCrops(images, 16, 0)[0, 1]
    assert view is None and "001.png" in error
    images.skip_bad = True
    view, row, error = RandomCrops(images, 16, 0)[0, 1]
    assert view is not None and row == 2 and error == ""


def test_the_centre_view_of_a_set_is_that_of_its_images(train):
    view, row, error = CentreViews(train, 18, 16)[4]
    assert row == 4 and error == "" and np.array_equal(view, centre_view(train.image(4), 18, 16))


def test_raw_pixels_are_stored_as_the_flattened_normalised_view(tmp_path, train):
    pixels = importer.load(f"pixels:{save_tiny_run(tmp_path / 'runs')}")
    stored = make_store(tmp_path).get(pixels, train)
    view = torch.from_numpy(centre_view(train.image(0), 18, 16)).permute(2, 0, 1)[None]
    assert torch.equal(stored.cls()[0], preprocess(view, pixels.mean, pixels.std).flatten())
    assert stored.average() is None and stored.cls().shape == (len(train), 3 * 16 * 16)
