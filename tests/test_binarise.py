"""Codes of real features: the formulas of sign and random codes, what ITQ promises, and Hamming retrieval with them."""

import numpy as np
import pytest
import torch
from frozen import folder_data, save_tiny_run, subject
from scipy.stats import ortho_group

from evaluate import records
from evaluate.evaluator import Evaluator
from evaluate.features import Store
from evaluate.metrics import hamming_ap
from evaluate.metrics.binarise import (
    itq,
    itq_rotation,
    principal_directions,
    random_projection,
    random_rotation,
    sign_codes,
)
from evaluate.run import as_item
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.hamming import Hamming, HammingITQ, HammingRandom, HammingSign
from pretrain.datasets import ImageFolder, Images


@pytest.fixture
def random():
    return np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ---- the codes


def test_sign_codes_compare_unit_features_with_their_mean(random):
    x, y = random.standard_normal((30, 6)) + 0.5, random.standard_normal((7, 6))
    np.testing.assert_array_equal(sign_codes(x)(y), unit(y) > unit(x).mean(0))
    assert (sign_codes(x)(torch.from_numpy(y)) == sign_codes(x)(3 * y)).all(), "the length of a feature has no part"


def test_random_codes_are_signs_of_seeded_projections_of_which_the_first_bits_are_the_shorter_code(random):
    x = random.standard_normal((40, 6)) + 1
    directions = np.random.default_rng(3).standard_normal((16, 6))
    np.testing.assert_array_equal(random_projection(x, 16, seed=3)(x), (unit(x) - unit(x).mean(0)) @ directions.T > 0)
    np.testing.assert_array_equal(random_projection(x, 4, seed=3)(x), random_projection(x, 16, seed=3)(x)[:, :4])
    assert (random_projection(x, 16, seed=4)(x) != random_projection(x, 16, seed=3)(x)).any()


def test_random_codes_keep_angles(random):
    """Two bits differ with probability angle / pi (Charikar 2002)."""
    x = random.standard_normal((200, 8))
    codes = random_projection(np.concatenate([x, -x]), 20_000)(x[:2])  # centred on zero by symmetry
    angle = np.arccos(unit(x)[0] @ unit(x)[1])
    assert (codes[0] != codes[1]).mean() == pytest.approx(angle / np.pi, abs=0.015)


@pytest.mark.parametrize("shape", [(60, 9), (9, 60)])
def test_principal_directions_are_those_of_a_singular_value_decomposition(random, shape):
    rows = random.standard_normal(shape) * np.arange(1, shape[1] + 1)
    rows -= rows.mean(0)
    found, expected = principal_directions(rows, 5), np.linalg.svd(rows)[2][:5]
    np.testing.assert_allclose(np.abs(expected @ found), np.eye(5), atol=1e-8)


# ---- ITQ


def test_an_itq_rotation_is_orthogonal_and_its_loss_never_increases(random):
    v = random.standard_normal((500, 12)) * np.linspace(3, 0.3, 12)
    rotation, losses = itq_rotation(v, iterations=30)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(12), atol=1e-12)
    assert len(losses) == 31 and (np.diff(losses) <= 1e-9 * losses[0]).all()
    assert losses[-1] < 0.95 * losses[0]
    start = v @ random_rotation(12, 0)
    assert losses[0] == pytest.approx(np.square(np.sign(start) - start).sum())
    assert losses[-1] == pytest.approx(np.square(np.sign(v @ rotation) - v @ rotation).sum())


def test_itq_finds_the_rotation_that_was_applied_to_the_corners_of_a_cube(random):
    corners = random.choice([-1.0, 1.0], (800, 4))
    applied = ortho_group.rvs(4, random_state=1)
    v = (corners + 0.05 * random.standard_normal(corners.shape)) @ applied.T
    starts = [itq_rotation(v, seed=seed) for seed in range(10)]  # alternation ends in a local optimum
    rotation, losses = min(starts, key=lambda found: found[1][-1])
    found = applied.T @ rotation  # a signed permutation: bits have no order and no polarity
    np.testing.assert_allclose(np.sort(np.abs(found), axis=0)[-1], 1, atol=1e-3)
    assert losses[-1] < 0.02 * corners.size


def test_each_itq_step_solves_its_procrustes_problem(random):
    v = random.standard_normal((200, 5))
    rotation, losses = itq_rotation(v, iterations=1, seed=7)
    signs = np.where(v @ random_rotation(5, 7) > 0, 1, -1)
    best = np.square(signs - v @ rotation).sum()
    others = [np.square(signs - v @ ortho_group.rvs(5, random_state=i)).sum() for i in range(200)]
    assert best <= min(others) and losses[-1] <= best <= losses[0]


def test_itq_codes_quantise_principal_components_of_centred_unit_features(random):
    x = random.standard_normal((300, 10)) * np.linspace(3, 0.5, 10) + 1
    codes = itq(x, [8, 3], seed=2)
    rows = unit(x) - unit(x).mean(0)
    v = rows @ principal_directions(rows, 8)
    for m, binarise in codes.items():
        rotation, _ = itq_rotation(v[:, :m], seed=2)
        np.testing.assert_array_equal(binarise(x), v[:, :m] @ rotation > 0)
    assert set(codes) == {8, 3}


def test_itq_keeps_more_of_the_neighbourhood_than_random_projections(random):
    centres = random.standard_normal((8, 32))
    labels = np.arange(400) % 8
    x = centres[labels] + 0.8 * random.standard_normal((400, 32))
    maps = [
        np.mean(hamming_ap(b(x), b(x), labels, labels, self_index=np.arange(400)))
        for b in (itq(x, [16])[16], random_projection(x, 16))
    ]
    assert maps[0] > maps[1] + 0.05


@pytest.mark.parametrize("bits", [0, 7, 12])
def test_a_length_without_a_direction_is_refused(random, bits):
    with pytest.raises(ValueError, match=rf"bits={bits} is outside 1..6"):
        itq(random.standard_normal((30, 6)), [bits])


def test_codes_of_another_width_and_of_broken_features_are_refused(random):
    x = random.standard_normal((30, 6))
    with pytest.raises(ValueError, match="width 5, the codes were fitted on width 6"):
        sign_codes(x)(x[:, :5])
    x[4, 2] = np.nan
    with pytest.raises(ValueError, match="first in row 4"):
        itq(x, [3])
    with pytest.raises(ValueError, match="bits=0"):
        random_projection(x, 0)


# ---- the tasks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("runs"), "dino")


@pytest.fixture
def given(run, images, tmp_path):
    return subject(run, folder_data(images), tmp_path)


@pytest.mark.parametrize("task", [HammingSign, HammingITQ, HammingRandom])
@pytest.mark.parametrize("preset", ["train-val", "val-loo"])
def test_the_tasks_fit_on_train_and_rank_by_the_metric(given, task, preset):
    made = task(bits=(12, 4), preset=preset)
    result = made.run(given)
    train, test = given.features("train"), given.features("test")
    codes = {
        HammingSign: sign_codes(train.cls()),
        HammingRandom: random_projection(train.cls(), 12),
        HammingITQ: itq(train.cls(), [12, 4])[12],
    }[task]
    database, own = (train, None) if preset == "train-val" else (test, np.arange(len(test)))
    bits = [codes(part.cls())[:, :12] for part in (test, database)]
    expected = hamming_ap(*bits, test.labels, database.labels, self_index=own)
    np.testing.assert_allclose(result.outcomes["map_12"], expected)
    assert set(result.scores) == {"map_12", "map_12_index", "map_4", "map_4_index"} and made.main(given) == "map_12"
    assert set(made.splits) == {"train", "test"}, "the fitted images are part of the fingerprint"


def test_lengths_that_the_features_cannot_give_are_left_out(given):
    for task in (HammingSign, HammingITQ):
        with pytest.raises(Unavailable, match=r"all exceed the 16 bits that can be made; set bits=\[16\]"):
            task().check(given)
    assert HammingITQ(bits=(64, 16, 8)).lengths(given) == [16, 8]
    assert HammingITQ(bits=(64, 8, 7), fit_images=8).lengths(given) == [7], "8 images span 7 directions"
    assert "[64] bits exceed the 16" in HammingITQ(bits=(64, 16)).run(given).notes[0]
    assert HammingRandom().lengths(given) == [256, 128, 64, 32]
    assert HammingITQ(fit_images=8).protocol(given)["fitted"]["images"] == 8


def test_fitting_on_fewer_images_gives_other_codes(given):
    few, all_ = (HammingITQ(bits=[4], fit_images=n).run(given).outcomes["map_4"] for n in (8, 36))
    assert not np.allclose(few, all_)


def test_the_protocol_of_the_channel_is_what_it_was(images, tmp_path):
    given = subject(save_tiny_run(tmp_path), folder_data(images), tmp_path)
    assert Hamming(bits=(32, 16)).protocol(given) == {
        "features": "bit = logit of the projection head > 0",
        "view": {"resize": 18, "crop": 16, "interpolation": "bicubic"},
        "precision": "float32",
        "preset": "train-val",
        "bits": [32, 16],
        "distance": "Hamming",
        "ties": "average",
        "ap": "all",
        "empty": "skip",
    }


def test_a_skipped_channel_and_recorded_codes_of_features_stand_side_by_side(run, images, tmp_path):
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda name: folder_data(images), quiet=True)
    names = ("hamming", "hamming_sign", "hamming_itq", "hamming_random")
    for _ in range(2):  # the second time, nothing is computed and no status lost
        bench.evaluate({str(run): [as_item(name, "folder", bits=[16]) for name in names]})
        [status] = records.read_statuses(bench.root)
        assert status.task == "hamming" and status.status == "skipped"
        found = {record.task: record for record in records.read_all(bench.root)}
        assert set(found) == set(names[1:]) and len({record.fingerprint for record in found.values()}) == 3
    assert len(bench.written) == 3 and bench.current == 3
    assert "no binary channel" in status.reason and "hamming_itq" in status.remedy
    for record in found.values():
        assert record.score.low <= record.score.value <= record.score.high and record.score.n == 18


def test_features_too_wide_for_a_covariance_are_named(given):
    given.backbone.dim = 150_528
    with pytest.raises(Unavailable, match="150528 dimensions.*hamming_random"):
        HammingITQ().check(given)


def test_without_labels_or_train_images_codes_are_skipped(run, images, tmp_path):
    unlabelled = Data("images", {split: lambda: Images(images / "val") for split in ("train", "test")})
    with pytest.raises(Unavailable, match="no labels"):
        HammingITQ().check(subject(run, unlabelled, tmp_path))
    alone = Data("alone", {"test": lambda: ImageFolder(images, "val")})
    with pytest.raises(Unavailable, match="no train split"):
        HammingITQ(preset="val-loo").check(subject(run, alone, tmp_path))


@pytest.mark.parametrize(
    "make, word",
    [(lambda: HammingITQ(iterations=0), "iterations=0"), (lambda: HammingSign(fit_images=1), "fit_images")],
)
def test_a_setting_that_cannot_be_is_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()
