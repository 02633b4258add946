"""Landmark retrieval: a reader that runs nothing a file names; images at their own size; boxes; levels."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from frozen import count_forward, save_tiny_run, subject
from PIL import Image

from evaluate import vectors
from evaluate.metrics import landmark_ap, mp_at_k
from evaluate.run import load_data, load_task
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.landmark import Landmark, LimitedViews
from pretrain.backbones import preprocess
from pretrain.datasets import ImageError, ImageFolder
from pretrain.datasets.landmarks import Landmarks, read_truth
from pretrain.datasets.pickles import load_plain

NAMES = [f"all_souls_{i:06d}" for i in range(7)]


def ground_truth(**changes: Any) -> dict[str, Any]:
    """Seven database images and two queries, the second without an easy image."""
    gnd = [
        {"bbx": [2.0, 1.0, 30.4, 20.0], "easy": np.array([0, 4]), "hard": [1], "junk": np.array([2], np.int32)},
        {"bbx": [0, 0, 20, 33], "easy": np.array([], np.int64), "hard": [3, np.int64(5)], "junk": []},
    ]
    return {"imlist": NAMES, "qimlist": ["query_a", "query_b"], "gnd": gnd} | changes


def write_set(root: Path, folder: str = "roxford5k", truth: dict[str, Any] | None = None) -> Path:
    """The files of a landmark set below root/folder, with sides that no patch divides."""
    random = np.random.default_rng(1)
    (root / folder / "jpg").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate([*NAMES, "query_a", "query_b"]):
        pixels = random.integers(0, 255, (37 + i, 45 - 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / folder / "jpg" / f"{name}.jpg")
    (root / folder / f"gnd_{folder}.pkl").write_bytes(pickle.dumps(truth or ground_truth(), protocol=2))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("landmarks"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


def landmarks(root: Path) -> Data:
    return load_data("roxford5k", root)


# ---- the pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers_and_arrays_of_every_protocol_come_back_as_lists(protocol):
    given = {"a": np.arange(3), "b": [np.float32(0.5), "x"], "c": (None, True, {1, 2}), "d": np.array(["ab", "c"])}
    given |= {"e": np.array([], np.int64), "f": np.array(["u", "vw"], object), "g": np.arange(2, dtype=">i2")}
    expected = {"a": [0, 1, 2], "b": [0.5, "x"], "c": (None, True, {1, 2}), "d": ["ab", "c"], "e": []}
    assert load_plain(pickle.dumps(given, protocol), "file") == expected | {"f": ["u", "vw"], "g": [0, 1]}


def test_arrays_that_python_2_and_older_numpy_wrote_are_read():
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'i4'\nI0\nI1\n"
        b"tR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x05\\x00\\x00\\x00\\xff\\x00\\x00\\x00'\ntb."
    )
    assert load_plain(array, "file") == [5, 255]


class Creates:
    """Unpickling this freely creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_would_create_a_file_is_refused_and_creates_none(tmp_path):
    trap = tmp_path / "trap"
    data = pickle.dumps(ground_truth(gnd=Creates(trap)))
    pickle.loads(data)["gnd"].close()
    assert trap.exists(), "the trap works where it is not refused"
    trap.unlink()
    with pytest.raises(ImageError, match=r"gnd.pkl holds (io|_io)\.open") as caught:
        load_plain(data, "gnd.pkl")
    assert not trap.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [os.system, eval, getattr, np.load, np.fromfile, __import__, io.BytesIO])
def test_whatever_a_pickle_names_beside_arrays_is_refused(call):
    with pytest.raises(ImageError, match="refused"):
        load_plain(pickle.dumps([call]), "file")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"not a pickle",
        pickle.dumps(np.arange(9))[:-20],
        pickle.dumps(np.arange(3)).replace(b"i8", b"V8"),  # a type that could hide pointers
        b"cnumpy\nndarray\n(I5\ntR.",
        b"cnumpy\ndtype\n(I5\nd.b.",
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00x.",  # 64 GB of bytes
    ],
)
def test_a_damaged_pickle_is_one_clear_line(data):
    with pytest.raises(ImageError, match="^file ") as caught:
        load_plain(data, "file")
    assert "\n" not in str(caught.value)


def test_a_short_pickle_takes_little_memory():
    tracemalloc.start()
    assert load_plain(b"\x80\x02]r\xff\xff\xff\x7f.", "file") == []  # names its list object 2^31 - 1
    with pytest.raises(ImageError):
        load_plain(b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00x.", "file")  # announces 4 GB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_pickle_cannot_change_what_names_stand_for():
    change = b"cnumpy.core.multiarray\nscalar\n(N}S'values'\nI1\nstb."  # setattr(scalar, "values", 1)
    with pytest.raises(ImageError, match="^file "):
        load_plain(change, "file")
    assert load_plain(pickle.dumps(np.float64(0.25)), "file") == 0.25


# ---- the reader


@pytest.mark.parametrize("inside", ["", "roxford5k"])
def test_the_reader_takes_the_folder_or_its_parent_and_keeps_the_order(root, inside):
    queries, database = (Landmarks(root / inside, split) for split in ("queries", "database"))
    assert database.paths == [f"jpg/{name}.jpg" for name in NAMES] and queries.paths == [
        "jpg/query_a.jpg",
        "jpg/query_b.jpg",
    ]
    assert queries.truth.relevance.tolist() == [[1, 2, 3, 0, 1, 0, 0], [0, 0, 0, 2, 0, 2, 0]]
    assert queries.truth.boxes[0].tolist() == [2.0, 1.0, 30.4, 20.0] and queries.labels is None


def test_the_ground_truth_is_part_of_the_fingerprint(tmp_path, root):
    other = ground_truth()
    other["gnd"][0]["hard"] = [5]
    changed = Landmarks(write_set(tmp_path, truth=other), "queries")
    assert changed.paths == (same := Landmarks(root, "queries")).paths and changed.fingerprint != same.fingerprint
    assert Landmarks(write_set(tmp_path / "again"), "queries").fingerprint == same.fingerprint


def test_a_missing_set_or_part_names_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected roxford5k/jpg/<image>.jpg and roxford5k/gnd_roxford5k.pkl"):
        Landmarks(tmp_path, "queries")
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(ground_truth()))
    with pytest.raises(FileNotFoundError, match="no .*jpg; expected"):
        Landmarks(tmp_path, "queries")


def entry(**changes: Any) -> dict[str, Any]:
    return {"bbx": [0, 0, 5, 5], "easy": [0], "hard": [], "junk": []} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gnd": [entry(easy=[7]), entry()]}, "query query_a: easy image 7 is outside 0..6"),
        ({"gnd": [entry(), entry(junk=[-1])]}, "query query_b: junk image -1 is outside"),
        ({"gnd": [entry()]}, "1 entries of gnd for 2 queries"),
        ({"gnd": [entry(), {"bbx": [0, 0, 1, 1]}]}, "needs bbx of 4 numbers and lists"),
        ({"gnd": [entry(), entry(bbx=[0, 0, 1])]}, "needs bbx of 4 numbers"),
        ({"gnd": [entry(), entry(bbx=[5, 0, 5, 9])]}, "is no box"),
        ({"gnd": [entry(), entry(bbx=[0, 0, float("nan"), 9])]}, "is no box"),
        ({"imlist": ["../../secret"]}, "no name of an image"),
        ({"qimlist": ["/etc/x", "b"]}, "no name of an image"),
        ({"imlist": "abc"}, "expected a dictionary with lists"),
    ],
)
def test_a_wrong_ground_truth_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        read_truth(ground_truth(**changes), "file")


def test_an_unknown_split_is_refused(root):
    with pytest.raises(ValueError, match="'train'.*queries, database"):
        Landmarks(root, "train")


# ---- views


def test_the_longer_side_is_limited_and_nothing_is_enlarged(root):
    database = Landmarks(root, "database")  # 45 x 37 pixels the first
    assert [LimitedViews(database, limit)[0][0].shape for limit in (20, 45, 900)] == [
        (16, 20, 3),
        (37, 45, 3),
        (37, 45, 3),
    ]
    assert np.array_equal(LimitedViews(database, 900)[0][0], np.array(database.image(0)))


def test_a_query_is_cut_to_its_box_before_its_size_is_limited(root):
    queries = Landmarks(root, "queries")
    cut = LimitedViews(queries, 900, queries.truth.boxes)[0][0]
    assert np.array_equal(cut, np.array(queries.image(0))[1:20, 2:30])
    view, _, message = LimitedViews(queries, 900, queries.truth.boxes + 1000)[0]
    assert view is None and "outside the image" in message


# ---- the task


def plain_features(given: Any, images: Landmarks, limit: int, scales: list[float], boxes: Any = None) -> torch.Tensor:
    """Features image by image, written out."""
    rows = []
    for i in range(len(images)):
        image = images.image(i)
        image = image if boxes is None else image.crop(tuple(map(round, boxes[i])))
        image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
        x = preprocess(
            torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], given.backbone.mean, given.backbone.std
        )
        found = []
        for scale in scales:
            y = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            y = y[..., : y.shape[2] // 8 * 8, : y.shape[3] // 8 * 8]
            found.append(given.backbone.features(y).cls[0])
        rows.append(torch.stack(found).mean(0))
    return F.normalize(torch.stack(rows))


@pytest.mark.parametrize("multiscale", [False, True])
def test_the_task_is_the_metric_on_features_at_every_images_own_size(root, run, tmp_path, multiscale):
    given = subject(run, landmarks(root), tmp_path)
    task = Landmark(imsize=40, multiscale=multiscale)
    task.check(given)
    result = task.run(given)
    queries, database = (given.data.split(split) for split in task.splits)
    scales = [1, 2**-0.5, 0.5] if multiscale else [1]
    stored = plain_features(given, database, 40, scales)
    for suffix, boxes in (("", None), ("_crop", queries.truth.boxes)):
        similar = plain_features(given, queries, 40, scales, boxes) @ stored.T
        for level in ("easy", "medium", "hard"):
            expected = landmark_ap(similar, queries.truth.relevance, level)
            np.testing.assert_allclose(result.outcomes[f"map_{level}{suffix}"], expected)
            assert result.scores[f"map_{level}{suffix}"].value == pytest.approx(np.nanmean(expected))
            precision = np.nanmean(mp_at_k(similar, queries.truth.relevance, level), axis=0)
            found = [result.scores[f"mp{k}_{level}{suffix}"].value for k in (1, 5, 10)]
            assert found == pytest.approx(precision.tolist())
    assert task.main(given) == "map_medium" and Landmark(crop_query=True).main(given) == "map_medium_crop"
    assert result.skipped["queries without a positive at the easy level"] == 1
    assert result.scores["map_easy"].n == 1 and result.scores["map_medium"].n == 2


def test_vectors_are_kept_and_an_interrupted_task_goes_on_at_the_first_missing_block(root, run, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK", 3)
    given, task = subject(run, landmarks(root), tmp_path), Landmark(imsize=32)
    original, calls = vectors.last_block, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("evaluate.tasks.landmark.last_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            task.run(given)
    with count_forward(given.backbone) as sizes:
        result = task.run(given)
    assert len(sizes) == 7 - 3 + 2 + 2, "the first block of three images was there"
    with count_forward(given.backbone) as sizes:
        again = task.run(given)
    assert sizes == [] and again.scores == result.scores
    whole = Landmark(imsize=32).run(subject(run, landmarks(root), tmp_path / "other"))
    assert whole.scores == result.scores


def test_processes_share_the_vectors(root, run, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK", 2)
    given, task = subject(run, landmarks(root), tmp_path), Landmark(imsize=32)
    for rank in (0, 1):
        given.store.rank, given.store.world = rank, 2
        with count_forward(given.backbone) as sizes:
            task.prepare(given)
        assert 0 < len(sizes) < 11
    with count_forward(given.backbone) as sizes:
        task.run(given)
    assert sizes == []


def test_a_damaged_image_stops_the_task_or_is_left_out_and_counted(run, tmp_path):
    data = landmarks(write_set(tmp_path))
    (tmp_path / "roxford5k" / "jpg" / f"{NAMES[2]}.jpg").write_bytes(b"no image")
    given = subject(run, data, tmp_path / "cache")
    with pytest.raises(ImageError, match=NAMES[2]):
        Landmark(imsize=32).run(given)
    given.data.split("database").skip_bad = True
    result = Landmark(imsize=32).run(given)
    assert result.skipped["database"] == 1 and result.skipped["queries"] == 0
    assert np.isfinite(result.scores["map_medium"].value)


def test_a_query_whose_box_lies_outside_its_image_is_left_out_of_both_sets_and_counted(run, tmp_path):
    truth = ground_truth()
    truth["gnd"][0]["bbx"] = [1000, 1000, 1100, 1100]
    data = landmarks(write_set(tmp_path, truth=truth))
    data.split("queries").skip_bad = True
    result = Landmark(imsize=32).run(subject(run, data, tmp_path / "cache"))
    assert result.skipped["queries"] == 1 and result.outcomes["sample_id"].tolist() == ["jpg/query_b.jpg"]
    assert result.scores["map_medium"].n == result.scores["map_medium_crop"].n == 1


def test_features_without_a_direction_are_warned_about(root, run, tmp_path, monkeypatch):
    def described(self, subject, pixels):
        rows = torch.ones(len(pixels), 16) / 3
        return rows * 0 if pixels.shape[2:] == (30, 32) else rows

    monkeypatch.setattr(Landmark, "describe", described)
    with pytest.warns(UserWarning, match="zero vectors; their cosine to everything is 0"):
        Landmark(imsize=32).run(subject(run, landmarks(root), tmp_path))


def test_other_data_and_raw_pixels_are_told_what_would_do(root, images, run, tmp_path):
    readers = {split: (lambda: ImageFolder(images, "val")) for split in ("queries", "database")}
    with pytest.raises(Unavailable, match="no levels of difficulty; use data=roxford5k"):
        Landmark().check(subject(run, Data("folder", readers), tmp_path))
    with pytest.raises(Unavailable, match="raw pixels"):
        Landmark().check(subject(f"pixels:{run}", landmarks(root), tmp_path))


def test_sizes_and_scales_are_protocols_of_their_own(root, run, tmp_path):
    given = subject(run, landmarks(root), tmp_path)
    protocols = [load_task("landmark", **s).protocol(given) for s in ({}, {"imsize": 512}, {"multiscale": True})]
    assert protocols[0] != protocols[1] != protocols[2] != protocols[0]
    with pytest.raises(ValueError, match="imsize=0"):
        Landmark(imsize=0)


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_both_sets_are_datasets_by_name(tmp_path, name):
    data = load_data(name, write_set(tmp_path, name))
    assert len(data.split("queries")) == 2 and len(data.split("database")) == 7
