"""Video object segmentation as a task: the DAVIS protocol, flat memory, resumption, masks for DAVIS' own evaluator."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import count_forward, save_tiny_run, subject
from PIL import Image

from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store
from evaluate.metrics.propagation import propagate, start, unit_frame
from evaluate.metrics.video import evaluate_sequence, summarize_sequences
from evaluate.run import load_task
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.video import VideoObjects, resized
from pretrain.datasets import ImageFolder
from pretrain.datasets.indexed import encode_labels
from pretrain.datasets.videos import Davis
from pretrain.shapeworld import davis_palette

SETTINGS: dict[str, Any] = {"size": 32, "n_last_frames": 2, "radius": 2, "topk": 3, "pictures": 1}
FRAMES, SIZE = 5, (36, 52)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


def write_sequence(root: Path, name: str, objects: int, *, move: int = 2) -> None:
    """Bright squares that move to the right over a dark ground."""
    rng = np.random.default_rng(len(name))
    for t in range(FRAMES):
        pixels, labels = rng.integers(0, 40, (*SIZE, 3), dtype=np.uint8), np.zeros(SIZE, np.uint8)
        for k in range(objects):
            place = (slice(4 + 16 * k, 16 + 16 * k), slice(8 + move * t, 24 + move * t))
            pixels[place], labels[place] = (250, 30, 30) if k else (30, 250, 250), k + 1
        frame = root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg"
        frame.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(frame, format="PNG")
        mask = root / "Annotations" / "480p" / name / f"{t:05d}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(encode_labels(labels, davis_palette()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sequences, of one and of two objects."""
    write_sequence(tmp_path / "DAVIS", "one", 1)
    write_sequence(tmp_path / "DAVIS", "couple", 2)
    (tmp_path / "DAVIS" / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "DAVIS" / "ImageSets" / "2017" / "val.txt").write_text("one\ncouple\n")
    return tmp_path


def videos(root: Path) -> Data:
    return Data("clips", {"videos": lambda: Davis(root, "val", name="clips")})


def labels_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_scores_are_those_of_the_masks_that_were_written(root, run, tmp_path):
    given = subject(run, videos(root), tmp_path)
    result = VideoObjects(**SETTINGS, save=str(tmp_path / "masks")).run(given)
    data = given.data.split("videos")
    [folder] = (tmp_path / "masks").iterdir()
    scored = [
        evaluate_sequence([data.annotation(v, t) for t in range(len(v))], labels_in(folder / v.name))
        for v in data.videos
    ]
    totals = summarize_sequences(scored)
    assert result.scores["jf"].value == pytest.approx(totals["JF_mean"])
    for name, key in (("j", "J_mean"), ("f_recall", "F_recall"), ("j_decay", "J_decay")):
        assert result.scores[name].value == pytest.approx(totals[key])
    assert result.outcomes["sample_id"].tolist() == ["one/1", "couple/1", "couple/2"]
    assert result.outcomes["group"].tolist() == ["one", "couple", "couple"]
    assert result.scores["jf"].n == 3 and result.outcomes["jf"].mean() == pytest.approx(result.scores["jf"].value)


def test_masks_are_indexed_pngs_named_like_the_frames_and_the_first_is_the_annotation(root, run, tmp_path):
    given = subject(run, videos(root), tmp_path)
    VideoObjects(**SETTINGS, save=str(tmp_path / "masks")).run(given)
    [folder] = (tmp_path / "masks").iterdir()
    files = sorted((folder / "couple").iterdir())
    assert [file.name for file in files] == [f"{t:05d}.png" for t in range(FRAMES)]
    with Image.open(files[3]) as image:
        assert image.mode == "P" and image.size == SIZE[::-1]
        assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    first = given.data.split("videos")
    np.testing.assert_array_equal(labels_in(folder / "couple")[0], first.annotation(first.videos[1], 0))


def test_a_still_scene_keeps_its_objects(tmp_path, run):
    write_sequence(tmp_path / "DAVIS", "still", 2, move=0)
    (tmp_path / "DAVIS" / "ImageSets").mkdir()
    (tmp_path / "DAVIS" / "ImageSets" / "val.txt").write_text("still\n")
    result = VideoObjects(**SETTINGS | {"topk": 1, "size": 72}).run(subject(run, videos(tmp_path), tmp_path))
    assert result.scores["j"].value > 0.6 and abs(result.scores["j_decay"].value) < 0.2


def test_each_frame_is_forwarded_once_and_what_is_followed_is_kept(root, run, tmp_path):
    given, task = subject(run, videos(root), tmp_path), VideoObjects(**SETTINGS)
    given.store.rank, given.store.world = 1, 2
    with count_forward(given.backbone) as sizes:
        task.prepare(given)
        assert sum(sizes) == FRAMES, "the second of two processes follows the second sequence"
        task.run(given)
        assert sum(sizes) == 2 * FRAMES
        again = task.run(given)
    assert sum(sizes) == 2 * FRAMES and len(again.outcomes["jf"]) == 3
    with count_forward(given.backbone) as sizes:
        VideoObjects(**SETTINGS | {"topk": 4}).run(given)
    assert sum(sizes) == 2 * FRAMES, "another setting is another result"


def test_masks_wanted_later_are_made_again(root, run, tmp_path):
    given = subject(run, videos(root), tmp_path)
    VideoObjects(**SETTINGS).run(given)
    first = VideoObjects(**SETTINGS, save=str(tmp_path / "masks")).run(given)
    assert len(list((tmp_path / "masks").glob("*/*/*.png"))) == 2 * FRAMES and "masks" in first.notes[-1]


def test_tables_and_pictures_are_left_for_people(root, run, tmp_path):
    files = VideoObjects(**SETTINGS).run(subject(run, videos(root), tmp_path)).files
    assert set(files) == {"per_object.csv", "per_sequence.csv", "one.gif", "sequences.png"}
    lines = files["per_sequence.csv"].decode().splitlines()
    assert lines[0].startswith("sequence,jf,j,j_recall") and [line.split(",")[0] for line in lines[1:]] == [
        "one",
        "couple",
    ]
    objects = [line.split(",") for line in files["per_object.csv"].decode().splitlines()[1:]]
    couple = np.mean([float(row[1]) for row in objects[1:]])
    assert float(lines[2].split(",")[1]) == pytest.approx(couple, abs=1e-6)
    with Image.open(io.BytesIO(files["one.gif"])) as gif:
        assert gif.n_frames > 2 and gif.size[0] > gif.size[1]


def test_following_frame_by_frame_equals_the_whole_video_at_once():
    features = torch.randn(7, 6, 5, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30).view(6, 5) % 3
    settings: dict[str, Any] = {"n_last_frames": 2, "radius": 2, "topk": 3, "temperature": 0.1}
    state = start(features[0], labels, **settings)
    steps = torch.stack([state.step(unit_frame(frame)) for frame in features[1:]]).permute(0, 3, 1, 2)
    assert torch.equal(steps, propagate(features, labels, **settings))
    assert len(state.recent) == 2, "more of the past is held than the next frame needs"


def test_the_input_has_the_sizes_of_the_protocol():
    frame = np.zeros((480, 854, 3), np.uint8)
    assert resized(frame, 480, 16).shape == (480, 832, 3)
    assert resized(frame.transpose(1, 0, 2), 480, 8).shape == (832, 480, 3)
    assert resized(np.zeros((480, 910, 3), np.uint8), 480, 16).shape == (480, 896, 3)
    assert resized(np.zeros((448, 448, 3), np.uint8), 448, 16).shape == (448, 448, 3)
    assert resized(frame, 480, 14).shape == (476, 854 // 14 * 14, 3)
    assert resized(np.zeros((30, 40, 3), np.uint8), 32, 8).shape == (32, 40, 3)


def test_the_red_deviation_of_the_protocol_holds_for_imagenet_normalisation_alone(root, run, tmp_path):
    given = subject(run, videos(root), tmp_path)
    assert VideoObjects().std(given) == (0.228, 0.224, 0.225)
    given.backbone.std = (0.5, 0.5, 0.5)
    assert VideoObjects().std(given) == (0.5, 0.5, 0.5)


def test_void_counts_as_background(root, run, tmp_path):
    path = root / "DAVIS" / "Annotations" / "480p" / "one" / "00000.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[-4:] = 255
    path.write_bytes(encode_labels(labels, davis_palette()))
    result = VideoObjects(**SETTINGS, save=str(tmp_path / "masks")).run(subject(run, videos(root), tmp_path))
    [folder] = (tmp_path / "masks").iterdir()
    assert max(int(mask.max()) for mask in labels_in(folder / "one")) == 1 and result.scores["jf"].n == 3


def test_an_object_too_small_for_the_grid_scores_as_empty_and_the_others_stay(root, run, tmp_path):
    path = root / "DAVIS" / "Annotations" / "480p" / "one" / "00000.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[35, 51] = 2
    path.write_bytes(encode_labels(labels, davis_palette()))
    result = VideoObjects(**SETTINGS).run(subject(run, videos(root), tmp_path))
    assert result.outcomes["sample_id"].tolist()[:2] == ["one/1", "one/2"] and result.outcomes["j"][0] > 0


@pytest.mark.parametrize("kind", ["pixels", "untrained"])
def test_baselines_take_part(root, run, tmp_path, kind):
    result = VideoObjects(**SETTINGS).run(subject(f"{kind}:{run}", videos(root), tmp_path))
    assert 0 < result.scores["jf"].value <= 1


def test_what_is_wrong_with_a_sequence_is_noted_by_name(root, run, tmp_path, images):
    empty = encode_labels(np.zeros(SIZE, np.uint8), davis_palette())
    (root / "DAVIS" / "Annotations" / "480p" / "couple" / "00000.png").write_bytes(empty)
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda name: videos(root), quiet=True)
    bench.evaluate({str(run): [Item(load_task("video", **SETTINGS), "clips")]})
    assert "couple: the annotation of frame 0 has no object" in bench.unfit[0].reason
    (root / "DAVIS" / "JPEGImages" / "480p" / "one" / "00002.jpg").unlink()
    bench.datasets.clear()
    bench.evaluate({str(run): [Item(load_task("video", **SETTINGS), "clips")]})
    assert bench.unfit[1].status == "skipped" and "one: annotation" in bench.unfit[1].reason
    given = subject(run, Data("folder", {"videos": lambda: ImageFolder(images, "val")}), tmp_path)
    with pytest.raises(Unavailable, match="has no videos"):
        VideoObjects().check(given)


def test_the_evaluator_records_videos_with_their_files(root, run, tmp_path):
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    bench = Evaluator(store, tmp_path / "records", lambda name: videos(root), quiet=True)
    bench.evaluate({str(run): [Item(load_task("video", **SETTINGS), "clips")]})
    assert bench.unfit == [] and len(bench.written[0].main_outcomes()) == 3
    assert all((tmp_path / file).is_file() for file in bench.written[0].provenance["files"])


@pytest.mark.parametrize("settings, word", [({"size": 0}, "size=0"), ({"pictures": -1}, "pictures=-1")])
def test_a_setting_that_cannot_be_is_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        VideoObjects(**settings)
