"""Copy detection: names tell copies from originals, the feature, the cut AP and the whitening of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from frozen import count_forward, folder_data, save_tiny_run, subject
from PIL import Image

from evaluate.run import load_data, load_task
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.copies import Copies, cut_ap, micro_ap, pooled, whitened
from pretrain.backbones import preprocess
from pretrain.datasets import ImageFolder
from pretrain.datasets.copydays import Copydays


def write_set(root: Path) -> Path:
    """Five originals, one or two strong copies of four of them, JPEG copies of two, at their publisher's names."""
    random = np.random.default_rng(2)
    for folder in ("original", "strong", "jpegqual/3"):
        (root / "copydays" / folder).mkdir(parents=True, exist_ok=True)
    for i in range(5):
        image = Image.fromarray(random.integers(0, 255, (20 + i, 26, 3), dtype=np.uint8))
        image.save(root / "copydays" / "original" / f"{2000 + i}00.jpg")
        for copy in range(1, 1 + (2 if i == 1 else i != 4)):
            strong = image.crop((0, 0, 20 + copy, 18))
            strong.save(root / "copydays" / "strong" / f"{2000 + i}0{copy}.jpg")
        if i < 2:
            image.save(root / "copydays" / "jpegqual" / "3" / f"{2000 + i}00.jpg", quality=3)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("copydays"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


# ---- the reader


@pytest.mark.parametrize("inside", ["", "copydays"])
def test_a_copy_shares_the_first_four_digits_of_its_original(root, inside):
    queries, database = (Copydays(root / inside, split) for split in ("queries", "database"))
    assert database.originals.tolist() == ["2000", "2001", "2002", "2003", "2004"]
    assert queries.originals.tolist() == ["2000", "2001", "2001", "2002", "2003", "2000", "2001"]
    assert queries.blocks.tolist() == ["strong"] * 5 + ["jpegqual/3"] * 2
    assert queries.paths[2] == "strong/200102.jpg"


def test_missing_copies_name_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected copydays/{original,strong}"):
        Copydays(tmp_path, "queries")
    (tmp_path / "copydays" / "original").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no .*strong; expected"):
        Copydays(tmp_path, "database")
    with pytest.raises(ValueError, match="'train'.*queries, database"):
        Copydays(tmp_path, "train")


# ---- the parts


def test_the_feature_is_the_class_token_beside_the_generalised_mean_of_patches():
    cls, patches = torch.randn(2, 3), torch.randn(2, 2, 4, 3)
    found = pooled(cls, patches)
    for image in range(2):
        for channel in range(3):
            values = [max(1e-6, float(value)) ** 4 for value in patches[image, :, :, channel].flatten()]
            assert float(found[image, 3 + channel]) == pytest.approx((sum(values) / 8) ** 0.25, rel=1e-5)
    assert torch.equal(found[:, :3], cls)


def test_a_cut_ap_is_the_area_of_trapezoids_over_all_positives():
    assert cut_ap(np.array([0]), 1) == 1.0 and cut_ap(np.array([], int), 1) == 0.0
    assert cut_ap(np.array([2]), 1) == pytest.approx((0 / 2 + 1 / 3) / 2)
    assert cut_ap(np.array([0, 3]), 4) == pytest.approx((1 + (1 / 3 + 2 / 4) / 2) / 4), "two of four are beyond the cut"
    assert np.isnan(cut_ap(np.array([], int), 0))


def test_micro_ap_ranks_all_pairs_together():
    cosines, relevant = np.array([[0.9, 0.5], [0.8, 0.1]]), np.array([[False, True], [True, False]])
    assert micro_ap(cosines, relevant, 3) == pytest.approx((1 / 2 + 2 / 3) / 3), "pairs in order 0, 1, 1, 0"
    assert np.isnan(micro_ap(cosines, relevant, 0))


def test_whitening_makes_second_moments_equal_where_they_are_not_floored():
    random = np.random.default_rng(0)
    learnt = random.normal(size=(500, 4)) @ np.diag([9.0, 1.0, 0.1, 0.0]) + [1.0, 2.0, 0.0, 0.0]
    [zeroed] = whitened(learnt, learnt + learnt.mean(0))  # about the mean that is taken off: the moments about zero
    moments = zeroed.T @ zeroed / 500
    np.testing.assert_allclose(np.linalg.eigvalsh(moments), [0, 1, 1, 1], atol=1e-3)


# ---- the task


def plain_features(given, images) -> np.ndarray:
    rows = []
    for i in range(len(images)):
        pixels = np.array(images.image(i).resize((24, 24), Image.Resampling.BICUBIC))
        x = preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None], given.backbone.mean, given.backbone.std)
        found = given.backbone.features(x)
        rows.append(pooled(found.cls, found.patches)[0].numpy())
    return np.array(rows)


def direct_ap(similar: np.ndarray, positive: int) -> float:
    """AP of a query with one original, from the place of that original."""
    rank = int(np.flatnonzero(np.argsort(-similar, kind="stable") == positive)[0])
    return 0.0 if rank >= 20 else ((1.0 if rank == 0 else 0.0) + 1 / (rank + 1)) / 2


def test_the_task_looks_for_every_original_by_cosine(root, run, tmp_path):
    given, task = subject(run, load_data("copydays", root), tmp_path), Copies(imsize=24)
    task.check(given)
    result = task.run(given)
    queries, database = (given.data.split(split) for split in task.splits)
    rows, stored = (plain_features(given, images) for images in (queries, database))
    unit = [values / np.linalg.norm(values, axis=1)[:, None] for values in (rows, stored)]
    expected = [
        direct_ap(similar, int(name[3])) for similar, name in zip(unit[0] @ unit[1].T, queries.originals, strict=True)
    ]
    np.testing.assert_allclose(result.outcomes["map_all"], expected, atol=1e-6)
    assert result.scores["map_strong"].value == pytest.approx(np.mean(expected[:5]))
    assert result.scores["map_strong"].n == 5 and result.scores["map_jpegqual_3"].n == 2
    assert 0 < result.scores["micro_ap_strong"].value <= 1 and task.main(given) == "map_strong"
    assert [note[:14] for note in result.notes] == ["no distractors", "no whitening: "]
    with count_forward(given.backbone) as sizes:
        again = task.run(given)
    assert sizes == [] and again.scores == result.scores


def test_distractors_and_whitening_are_used_where_they_are_and_are_another_protocol(run, tmp_path, images):
    given, task = subject(run, load_data("copydays", write_set(tmp_path)), tmp_path / "cache"), Copies(imsize=24)
    before, plain = task.protocol(given), task.run(given)
    (tmp_path / "copydays_distractors").symlink_to(images / "train")
    with_distractors = subject(run, load_data("copydays", tmp_path), tmp_path / "cache")
    crowded, between = task.run(with_distractors), task.protocol(with_distractors)
    assert (crowded.outcomes["map_all"] <= plain.outcomes["map_all"]).all() and len(crowded.notes) == 1
    (tmp_path / "copydays_whitening").symlink_to(images / "val")
    both = subject(run, load_data("copydays", tmp_path), tmp_path / "cache")
    white = task.run(both)
    assert white.notes == [] and not np.array_equal(white.outcomes["map_all"], crowded.outcomes["map_all"])
    protocols = [repr(p) for p in (before, between, task.protocol(both))]
    assert len(set(protocols)) == 3 and before["distractors"] == before["whitening"] == "none"


def test_other_data_and_raw_pixels_are_told_what_would_do(root, images, run, tmp_path):
    readers = {split: (lambda: ImageFolder(images, "val")) for split in ("queries", "database")}
    with pytest.raises(Unavailable, match="use data=copydays"):
        Copies().check(subject(run, Data("folder", readers), tmp_path))
    with pytest.raises(Unavailable, match="raw pixels"):
        load_task("copies").check(subject(f"pixels:{run}", load_data("copydays", root), tmp_path))
    with pytest.raises(Unavailable, match="has no queries split"):
        Copies().check(subject(run, folder_data(images), tmp_path))
    with pytest.raises(ValueError, match="imsize=0"):
        Copies(imsize=0)
