"""Segmentation heads: what is trained and what is not, resuming, choosing a head, scores from saved label maps."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import SPEC, save_tiny_run, subject
from PIL import Image

from evaluate import importer
from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store, identity
from evaluate.openmmlab import library, training
from evaluate.run import load_task
from evaluate.tasks.base import Data, Unavailable
from pretrain.backbones import Backbone
from pretrain.checkpoint import weights_digest
from pretrain.datasets import ImageError, ImageFolder
from pretrain.datasets.masks import Masks

COLOURS = np.array([(20, 20, 20), (230, 40, 40), (40, 60, 230)], np.uint8)
SHORT: dict[str, Any] = {
    "iterations": 8, "batch_size": 4, "warmup": 1, "lr": 0.05, "size": [32, 48], "crop": [32, 32], "pictures": 2,
    "channels": 8, "ratio": [1.0, 1.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten training and five test images of 32 x 48 pixels: two coloured blocks; one row of each mask is void."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
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


def pairs(root: Path, train: int = 3) -> Data:
    def split(name: str, count: int = 3) -> Masks:
        return Masks(root, f"images/{name}", f"masks/{name}", count, name="pairs")

    return Data("pairs", {"masks_train": lambda: split("train", train), "masks_test": lambda: split("val")})


def task(name: str = "segmentation_linear", **settings: Any) -> Any:
    return load_task(name, **SHORT | settings)


def test_a_record_holds_the_miou_of_the_saved_label_maps_and_a_frozen_backbone_stays_as_it_was(root, run, tmp_path):
    store = Store(tmp_path / "cache", workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda name: pairs(root), quiet=True)
    bench.evaluate({str(run): [Item(task(iterations=40, lr=0.1), "pairs")]})
    assert bench.unfit == []
    [record] = bench.written
    folder = Path(
        next(note for note in record.notes if note.startswith("label maps in ")).removeprefix("label maps in ")
    )
    # an independent computation
    hits, true, found = np.zeros(3), np.zeros(3), np.zeros(3)
    for i in range(5):
        truth = np.asarray(Image.open(root / "masks" / "val" / f"{i}.png"))
        labels = np.asarray(Image.open(folder / f"{i:06d}.png"))
        for c in range(3):
            hits[c] += ((truth == c) & (labels == c)).sum()
            true[c] += (truth == c).sum()
            found[c] += ((labels == c) & (truth != 255)).sum()
    assert record.scores["miou"].value == pytest.approx((hits / (true + found - hits)).mean())
    assert record.scores["mean_accuracy"].value == pytest.approx((hits / true).mean())
    assert record.scores["pixel_accuracy"].value == pytest.approx(hits.sum() / true.sum())
    assert record.scores["miou"].value > 0.6, "blocks of colour are not told apart"
    assert record.protocol["schedule"]["iterations"] == 40 and record.protocol["backbone"] == "frozen"
    assert len(record.main_outcomes()) == 5 and record.scores["miou"].low is not None
    assert np.array_equal(record.outcomes["class_pixels"].sum(axis=0), [hits, true, found])
    files = {Path(file).name: tmp_path / file for file in record.provenance["files"]}
    assert set(files) == {"curve.csv", "curve.png", "per_class.csv", "segmentations.png"}
    losses = [float(line.split(",")[2]) for line in files["curve.csv"].read_text().splitlines()[1:]]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    bench.evaluate({str(run): [Item(task(iterations=40, lr=0.1), "pairs")]})
    assert bench.current == 1


@pytest.mark.parametrize("frozen", [True, False])
def test_an_interrupted_training_ends_with_the_weights_of_one_that_was_not(root, run, tmp_path, monkeypatch, frozen):
    settings = {"frozen": frozen, "iterations": 6, "distort": True}
    given = subject(run, pairs(root), tmp_path / "a")
    before = weights_digest(given.backbone)
    whole = task("segmentation_fcn", **settings).trained(given)  # with dropout
    again = subject(run, pairs(root), tmp_path / "b")
    original = training.Training.note

    def stop(self: Any, values: Any, share: float) -> None:
        original(self, values, share)
        if self.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of an iteration

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "note", stop)
        task("segmentation_fcn", **settings).trained(again)
    seen: list[int] = []
    monkeypatch.setattr(training.Training, "note", lambda self, *a: (seen.append(self.iteration), original(self, *a)))
    resumed = task("segmentation_fcn", **settings).trained(again)
    assert seen == [3, 4, 5] and resumed.history == whole.history
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    assert weights_digest(given.backbone) == before, "the loaded backbone itself must never change"
    assert (weights_digest(whole.model.backbone.network) == before) is frozen


@pytest.mark.thorough
def test_the_heads_of_a_sweep_are_trained_apart_and_chosen_on_images_that_are_not_tested(root, run, tmp_path):
    given = subject(run, pairs(root), tmp_path)
    sweep = task("segmentation_sweep", lr=[1e-6, 0.1], iterations=30)
    assert sweep.selection(given) == "every 10th training image"
    result = sweep.run(given)
    table = [line.split(",") for line in result.files["heads.csv"].decode().splitlines()]
    assert table[0] == ["lr", "miou"] and [row[0] for row in table[1:]] == ["1e-06", "0.1"]
    assert float(table[2][1]) > float(table[1][1]) and any(
        note.startswith("lr 0.1, best of 2") for note in result.notes
    )
    trained = sweep.trained(given)
    assert trained.rows == list(range(1, 10)), "the selecting image must not be trained on"
    single = task("segmentation_sweep", lr=[0.1], iterations=30).trained(given)
    alone = single.model.decode_head.heads[0][1].weight
    beside = trained.model.decode_head.heads[1][1].weight
    assert alone.shape == beside.shape == (3, 16, 1, 1)


def test_upernet_repeats_the_earliest_block_of_a_backbone_with_fewer_than_four(root, run, tmp_path):
    given = subject(run, pairs(root), tmp_path)
    result = task("segmentation_uper", iterations=2).run(given)
    assert 0 <= result.scores["miou"].value <= 1
    assert np.asarray(Image.open(io.BytesIO(result.files["segmentations.png"]))).ndim == 3


def test_what_cannot_run_is_said_before_any_work(root, run, tmp_path, images, monkeypatch):
    given = subject(run, pairs(root), tmp_path)
    task().check(given)
    with pytest.raises(Unavailable, match="raw pixels have no network"):
        task().check(subject(f"pixels:{run}", pairs(root), tmp_path))
    with pytest.raises(Unavailable, match="have 4 and 3 classes"):
        task().check(subject(run, pairs(root, train=4), tmp_path))
    plain = Data("folder", {name: (lambda: ImageFolder(images, "val")) for name in ("masks_train", "masks_test")})
    with pytest.raises(Unavailable, match="has no masks"):
        task().check(subject(run, plain, tmp_path))
    monkeypatch.setattr(library, "PACKAGES", ("no_such_mmseg",))
    with pytest.raises(Unavailable, match="no_such_mmseg, which is not installed; run `make openmmlab`"):
        task().check(given)
    for settings, word in (
        ({"lr": [0.1, 0.2]}, "several rates"),
        ({"crop": [0, 1]}, "crop"),
        ({"warmup": 8}, "warmup=8"),
    ):
        with pytest.raises(ValueError, match=word):
            task("segmentation_fcn", **settings)


@pytest.mark.parametrize(
    "labels, says",
    [
        (np.full((32, 48), 3, np.uint8), r"1\.png holds label 3, but pairs has 3 classes"),
        (np.zeros((32, 40), np.uint8), r"1\.png has 40 x 32 pixels, its image 48 x 32"),
    ],
)
def test_a_mask_that_does_not_fit_is_named_or_left_out(root, run, tmp_path, labels, says):
    for split in ("train", "val"):
        Image.fromarray(labels).save(root / "masks" / split / "1.png")
    given = subject(run, pairs(root), tmp_path)
    with pytest.raises(ImageError, match=says):
        task().run(given)
    for split in ("masks_train", "masks_test"):
        given.data.split(split).skip_bad = True
    result = task().run(given)
    counted = {"test images": 1, "training images": 1}
    assert result.skipped == counted and len(result.outcomes["miou"]) == 4
    assert task().run(given).skipped == counted, "the head that was kept must remember"


def test_a_budget_or_a_rate_is_another_protocol(root, run, tmp_path):
    given = subject(run, pairs(root), tmp_path)
    plain = task().protocol(given)
    for settings in ({"iterations": 9}, {"lr": 0.02}, {"crop": [16, 16]}, {"frozen": False}, {"distort": False}):
        assert task(**settings).protocol(given) != plain


# ---- the backbone wrapper


@pytest.fixture(scope="module")
def wrapper() -> Any:
    library.load("mmseg")
    from evaluate.openmmlab import wrapper

    return wrapper


@pytest.mark.parametrize(
    "patch, name", [(4, "vit_tiny_patch16_224"), (14, "vit_tiny_patch16_224"), (16, "vit_base_patch14_reg4_dinov2")]
)
def test_maps_of_any_input_size_are_contiguous_and_those_of_the_backbone(wrapper, patch, name):
    spec = SPEC | {"name": name, "patch_size": patch, "image_size": 2 * patch}
    backbone = Backbone(**spec).eval()
    module = wrapper.SuiteBackbone(backbone, blocks=4)
    images = torch.randn(2, 3, 3 * patch, 5 * patch)
    maps = module(images)
    assert [m.shape for m in maps] == [(2, 16, 3, 5)] * 4 and all(m.is_contiguous() for m in maps)
    first, last = (block.patches.permute(0, 3, 1, 2) for block in backbone.blocks(images, 2))
    torch.testing.assert_close(maps[-1], last)
    torch.testing.assert_close(maps[0], first)  # two blocks: the earliest stands in for those that are not there
    assert module(torch.randn(1, 3, 3 * patch + 1, 5 * patch - 1))[-1].shape == (1, 16, 3, 5)
    fine = wrapper.SuiteBackbone(backbone, stride=8)(torch.randn(1, 3, 64, 40))[0]
    assert fine.shape == (1, 16, 8, 5) and fine.is_contiguous()


def test_loaded_weights_survive_the_frameworks_initialisation(wrapper, run):
    from evaluate.openmmlab.segmentors import build_segmentor

    backbone = importer.load(run)
    for frozen in (True, False):
        model = build_segmentor(backbone, "linear", 3, window=(32, 32), frozen=frozen)
        model.train()
        network = model.backbone.network
        assert weights_digest(network) == weights_digest(backbone) and (network is backbone) is frozen
        assert network.training is not frozen and any(p.requires_grad for p in network.parameters()) is not frozen
    assert identity(importer.load(run)) == identity(backbone)


def test_gradient_checkpointing_changes_no_gradient(wrapper, run):
    images, gradients = torch.randn(1, 3, 16, 16), []
    for checkpointing in (False, True):
        module = wrapper.SuiteBackbone(importer.load(run), frozen=False, checkpointing=checkpointing)
        assert module.network.vit.grad_checkpointing is checkpointing
        module(images)[0].square().sum().backward()
        gradients.append([p.grad for p in module.network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_rates_fall_by_layer_towards_the_input(wrapper, run):
    shares = {name: share for name, _, share in wrapper.layer_scales(importer.load(run), 0.5)}
    assert {share for name, share in shares.items() if ".blocks.1." in name} == {0.5}
    assert {share for name, share in shares.items() if ".blocks.0." in name} == {0.25}
    assert shares["vit.norm.weight"] == 0.5 and shares["vit.pos_embed"] == shares["vit.cls_token"] == 0.125
