"""ShapeWorld is the same bytes everywhere, its labels and masks agree, and mean colour does not give the class away."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain import _render, _shapes, shapeworld

RENDERERS: dict[str, Callable[[int, int, str], tuple]] = {
    "shapes": shapeworld.render_shapes,
    "scenes": shapeworld.render_scene,
    "videos": shapeworld.render_video,
    "style": shapeworld.render_style,
    "fine": shapeworld.render_fine,
}
TINY = {"shapes": (20, 10), "scenes": (8, 4), "videos": (1, 2), "style": (10, 10), "fine": (16, 8)}

# SHA-256 of the pixels of (part, index, split) at seed 0, and of the parts of a tiny world. Only VERSION changes them.
PIXELS = {
    ("shapes", 0, "train"): "3b1f2d8a9beb61020ddcb6b03442e9d1aab3b89ce30caf716849ff1a5bfb9080",
    ("shapes", 7, "val"): "ba91672c75f6e0eac96386d7e4a3fa45ef82309f1fc55f350918552a75808d50",
    ("scenes", 0, "train"): "e4ac512f7e42ee37ec0662ce82b1e20172588ebbd20503a37246d2dabe554849",
    ("scenes", 7, "val"): "95077458af012fca37161889e6825c8cf6e54e6d4d5aafe14e887a2b70585b0f",
    ("videos", 0, "train"): "291b83d884aa37348a7bd13ca0072b3bc2b94b98e56447670b797c12f8c9db66",
    ("videos", 7, "val"): "1d9085c04cc594a50c96a0938e1f136d3fdc34b13aff483ab3f14ee7773de1f4",
    ("style", 0, "train"): "6ed3b6c55bd357925a480d114c0ffcb98b23505fec474adca525165e813e0e5c",
    ("style", 7, "val"): "55cd5046d1d66fbeb3005c347a4b4e639dbc949fe508c129d9586986e4aa9a0b",
    ("fine", 0, "train"): "125765b0dacfe595fe36b02aaeddf8da15069c977deae26fd8f4eea0e93201b7",
    ("fine", 7, "val"): "3f627d96ccf6a1401b3b63f4d730071fca6cf0dd8964f8fb5cfacaa704055a1c",
}
FILES = {
    "shapes": "fb07c69aa409badaf5337e54f3e502069debca6abe7a50900b43e9369d4d9b49",
    "scenes": "b30fb79d2faebd93461857c0d8480eec2c405667d527b3714edb016d4185ae53",
    "videos": "da8b6bbe0628edbbdd0bd913a0559b8cfbf376a4e342ac878b31d37fcf886d55",
    "style": "1024d763fcf515389d952e913c7a3644363ab9a0368f6d6496a86b502ec0217a",
    "fine": "867d10164fa1f96724e57cf7552105475447a2210af1ad3143497f85aed1540d",
}
FULL_WORLD = {
    "shapes": "b3c411ef5f6d99cbb0493bd7ed399a72cff818e5b1dbb68c7a81a0141d0b15cf",
    "scenes": "fd9b0fd832f464d712275f7e9142b1ccc23df65760b337b1edd25d5a6af52477",
    "videos": "22c4c43e5eafb4eb9b365ec4391bc211942bc544cf9883e20721d5c3cc8b7b9f",
    "style": "e5ec5319025d6955873c400c964baca509767ddc1e7a85c1a30ee6506dca6578",
    "fine": "7885bcce0eb6e1bd190584fdb2606e6adf325842e03af00d5e31123bc7594ae4",
}
LISTING = """
import hashlib, sys
from pretrain import shapeworld as w
for part, render in {"shapes": w.render_shapes, "scenes": w.render_scene, "videos": w.render_video,
                     "style": w.render_style, "fine": w.render_fine}.items():
    print(part, hashlib.sha256(render(0, 0, "train")[0].tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapeworld.generate(tmp_path_factory.mktemp("data"), progress=False, sizes=TINY)


def _sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# Determinism


@pytest.mark.parametrize(("part", "index", "split"), PIXELS)
def test_pixels_are_the_golden_ones(part: str, index: int, split: str) -> None:
    assert _sha(RENDERERS[part](0, index, split)[0]) == PIXELS[part, index, split]


def test_files_of_a_tiny_world_are_the_golden_ones(world: Path) -> None:
    parts = json.loads((world / "manifest.json").read_bytes())["parts"]
    assert {part: entry["sha256"] for part, entry in parts.items()} == FILES


@pytest.mark.slow
def test_files_of_the_whole_world_are_the_golden_ones(tmp_path: Path) -> None:
    folder = shapeworld.generate(tmp_path, progress=False)
    parts = json.loads((folder / "manifest.json").read_bytes())["parts"]
    assert {part: entry["sha256"] for part, entry in parts.items()} == FULL_WORLD


def test_pixels_do_not_depend_on_the_vector_units_of_the_processor() -> None:
    core = importlib.import_module("numpy._core._multiarray_umath")
    dispatched = [name for name in core.__cpu_dispatch__ if core.__cpu_features__[name]]
    if not dispatched:
        pytest.skip("numpy has no vector code here that could be switched off")
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched)}
    command = [sys.executable, "-c", LISTING]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True, text=True)
    expected = {part: PIXELS[part, 0, "train"] for part in RENDERERS}
    assert dict(line.split() for line in done.stdout.splitlines()) == expected


def test_random_numbers_follow_the_published_splitmix64() -> None:
    stream = _shapes.Stream()  # state 0: first outputs as in the reference implementation of Vigna (2015)
    assert [stream.bits() for _ in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    scalar, vector = _shapes.Stream(3, 4), _shapes.Stream(3, 4)
    drawn = np.array([scalar.bits() for _ in range(5)], "<u8").view(np.uint8)
    assert np.array_equal(vector.bytes(40), drawn) and vector.bits() == scalar.bits()


def test_a_smaller_world_is_a_prefix_of_a_larger_one(world: Path) -> None:
    image, label = shapeworld.render_shapes(0, 13, "train")
    assert np.array_equal(_read(world / "shapes/train" / shapeworld.CLASSES[label] / "00013.png"), image)
    frames, masks = shapeworld.render_video(0, 1, "val")
    assert np.array_equal(_read(world / "videos/JPEGImages/480p/val-01/00019.jpg"), frames[19])
    assert np.array_equal(_read(world / "videos/Annotations/480p/val-01/00019.png"), masks[19])


def test_train_and_val_share_no_image_and_seeds_differ(world: Path) -> None:
    for part in ("shapes", "style", "fine", "scenes/images"):
        digests = [{_sha(_read(p)) for p in (world / part / split).rglob("*.png")} for split in shapeworld.SPLITS]
        assert len(digests[0]) + len(digests[1]) == sum(TINY[part.split("/")[0]])
        assert not digests[0] & digests[1]
    assert _sha(shapeworld.render_shapes(1, 0, "train")[0]) != PIXELS["shapes", 0, "train"]


# Content


@pytest.mark.parametrize("shape", [*shapeworld.CLASSES, *shapeworld.FINE_CLASSES])
def test_every_shape_covers_the_area_it_was_given(shape: str) -> None:
    counts = []
    for k in range(32):
        canvas = np.zeros((64, 64, 3), np.float32)
        sprite = _shapes.Sprite(shape, 31.3 + 0.37 * k % 1, 32.6 + 0.61 * k % 1, 18.0, 113 * k, (1.0, 1.0, 1.0))
        _, mask = _shapes.paint(canvas, sprite)
        assert canvas[:, :, 0].sum() == pytest.approx(18.0**2, rel=0.015)
        counts.append(np.count_nonzero(mask))
    assert np.mean(counts) == pytest.approx(18.0**2, rel=0.015)  # one mask is rounded to pixels, their mean is not


def test_every_shape_lies_inside_its_table_with_room_for_outlines() -> None:
    for shape in (*shapeworld.CLASSES, *shapeworld.FINE_CLASSES):
        table = _shapes.distance_table(shape).reshape(_shapes.CELLS, _shapes.CELLS)
        border = np.concatenate([table[0], table[-1], table[:, 0], table[:, -1]])
        assert border.max() * 15 < -1.0  # pixels, at the smallest side drawn


def test_classes_are_balanced_and_labels_are_sorted_folder_names(world: Path) -> None:
    for part, names in (
        ("shapes", shapeworld.CLASSES),
        ("style", shapeworld.CLASSES),
        ("fine", shapeworld.FINE_CLASSES),
    ):
        assert list(names) == sorted(names)
        for split, count in zip(shapeworld.SPLITS, TINY[part], strict=True):
            found = Counter(path.parent.name for path in (world / part / split).rglob("*.png"))
            assert found == dict.fromkeys(names, count // len(names))
    assert all(count % 40 == 0 for part in ("shapes", "fine") for count in shapeworld.SIZES[part])


def test_objects_differ_from_the_background_by_the_stated_luminance() -> None:
    for index in range(50):
        sprite = _render._dress(_shapes.Stream(index), _shapes.Sprite("disc", 0, 0, 1, 0), 0.5)
        assert 0.35 <= abs(float(np.dot(sprite.colour, _shapes.LUMA)) - 0.5) <= 0.5 + 1e-9


def _nearest_neighbours(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, classes: int) -> np.ndarray:
    distance = (train**2).sum(1) - 2 * test @ train.T
    votes = labels[np.argsort(distance, axis=1, kind="stable")[:, :k]]
    return np.stack([(votes == c).sum(1) for c in range(classes)], 1).argmax(1)


@pytest.mark.thorough
def test_mean_colour_does_not_tell_the_shape() -> None:
    colours, labels = {}, {}
    for split, count in (("train", 600), ("val", 400)):
        drawn = [shapeworld.render_shapes(0, index, split) for index in range(count)]
        colours[split] = np.array([image.mean((0, 1)) for image, _ in drawn])
        labels[split] = np.array([label for _, label in drawn])
    for k in (1, 20):
        predicted = _nearest_neighbours(colours["train"], labels["train"], colours["val"], k, 10)
        assert np.mean(predicted == labels["val"]) <= 0.14


@pytest.mark.slow
def test_raw_pixels_tell_the_shape_only_a_little() -> None:
    pixels, labels = {}, {}
    for split, count in (("train", 4000), ("val", 1000)):
        drawn = [shapeworld.render_shapes(0, index, split) for index in range(count)]
        halves = [image.reshape(32, 2, 32, 2, 3).mean((1, 3)).ravel() for image, _ in drawn]
        pixels[split] = np.array(halves, np.float32)
        labels[split] = np.array([label for _, label in drawn])
    predicted = _nearest_neighbours(pixels["train"], labels["train"], pixels["val"], 20, 10)
    assert 0.18 <= np.mean(predicted == labels["val"]) <= 0.30


# Annotations


def test_scene_masks_agree_with_instances_and_labels(world: Path) -> None:
    for index in range(40):
        image, semantic, objects = shapeworld.render_scene(0, index, "train")
        rebuilt = np.zeros_like(semantic)
        for label, mask in objects:
            assert not (rebuilt[mask]).any()  # what is visible belongs to one object
            assert np.count_nonzero(mask) >= 0.45 * 20 * 20
            rebuilt[mask] = label + 1
        assert np.array_equal(rebuilt, semantic)
        assert 1 <= len(objects) <= 4 and len({label for label, _ in objects}) == len(objects)
        assert image.shape == (*semantic.shape, 3)


def test_scenes_hold_one_to_four_objects_and_every_class() -> None:
    scenes = [shapeworld.render_scene(0, index, "train")[2] for index in range(150)]
    assert {len(objects) for objects in scenes} == {1, 2, 3, 4}
    assert {label for objects in scenes for label, _ in objects} == set(range(10))


def test_coco_files_load_in_pycocotools_and_agree_with_masks_and_lists(world: Path) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    for split, count in zip(shapeworld.SPLITS, TINY["scenes"], strict=True):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = coco_module.COCO(str(world / f"scenes/annotations/instances_{split}.json"))
        lists = dict(line.split(" ", 1) for line in (world / f"scenes/{split}.txt").read_text().splitlines())
        assert len(coco.imgs) == len(lists) == count and sorted(coco.cats) == list(range(1, 11))
        for image in coco.imgs.values():
            semantic = _read(world / "scenes/annotations" / split / image["file_name"])
            assert semantic.shape == (image["height"], image["width"])
            assert _read(world / "scenes/images" / split / image["file_name"]).shape == (*semantic.shape, 3)
            rebuilt = np.zeros_like(semantic)
            for annotation in coco.imgToAnns[image["id"]]:
                mask = coco.annToMask(annotation).astype(bool)
                left, top, width, height = annotation["bbox"]
                assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0 and annotation["id"] > 0
                box = mask[top : top + height, left : left + width]
                assert (
                    box.sum() == mask.sum() and box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()
                )
                rebuilt[mask] = annotation["category_id"]
            assert np.array_equal(rebuilt, semantic)
            present = [str(int(k + 1 in semantic)) for k in range(10)]
            assert lists[f"images/{split}/{image['file_name']}"].split() == present


def test_run_lengths_count_columns_from_zeros_first() -> None:
    assert shapeworld.run_lengths(np.array([[1, 0], [1, 1]], bool)) == [0, 2, 1, 1]
    assert shapeworld.run_lengths(np.array([[0, 1], [0, 0]], bool)) == [2, 1, 1]
    assert shapeworld.run_lengths(np.zeros((2, 2), bool)) == [4]


def test_videos_follow_the_davis_layout_with_an_indexed_palette(world: Path) -> None:
    davis = world / "videos"
    for split, count in zip(shapeworld.SPLITS, TINY["videos"], strict=True):
        sequences = (davis / f"ImageSets/2017/{split}.txt").read_text().split()
        assert len(sequences) == count
        for sequence in sequences:
            names = sorted(path.stem for path in (davis / "JPEGImages/480p" / sequence).glob("*.jpg"))
            assert names == [f"{t:05d}" for t in range(20)]
            mask = Image.open(davis / f"Annotations/480p/{sequence}/00000.png")
            assert mask.mode == "P" and (mask.getpalette() or [])[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
            assert _read(davis / f"JPEGImages/480p/{sequence}/00000.jpg").shape == (96, 128, 3)


def test_the_first_frame_shows_every_object_and_objects_move() -> None:
    for index in range(8):
        frames, masks = shapeworld.render_video(0, index, "val")
        objects = set(np.unique(masks)) - {0}
        assert set(np.unique(masks[0])) - {0} == objects == set(range(1, len(objects) + 1))
        assert 1 <= len(objects) <= 3
        assert (masks[0] != masks[-1]).any() and (frames[0] != frames[-1]).any()
    for index in range(40):
        sprites = _render._cast(_shapes.Stream(index))
        visible = np.bincount(_render._visible(sprites).ravel(), minlength=len(sprites) + 1)[1:]
        assert all(visible >= [0.8 * sprite.side * sprite.side for sprite in sprites])


def test_png_files_are_what_other_decoders_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (200, 150, 3), (5, 7)):  # 200 x 150 takes two stored blocks
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        (tmp_path / "a.png").write_bytes(shapeworld.encode_png(pixels))
        assert np.array_equal(_read(tmp_path / "a.png"), pixels)


# The world on disk


def test_interrupted_generation_leaves_nothing_and_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seed: int, split: str, count: int) -> shapeworld.Files:
        yield "train/a.png", b"half"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(shapeworld._WRITERS, "fine", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shapeworld.generate(tmp_path, parts=["fine"], progress=False, sizes=TINY)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "shapeworld/fine/train").mkdir(parents=True)  # what a copy cut short would leave: no manifest
    (tmp_path / "shapeworld/fine/train/a.png").write_bytes(b"half")
    monkeypatch.setattr(shapeworld, "SIZES", TINY)
    shapeworld.ensure(tmp_path, parts=["fine"], progress=False)
    assert shapeworld.verify(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["shapeworld"]


def test_ensure_does_nothing_twice_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapeworld, "SIZES", TINY)
    manifest = shapeworld.ensure(tmp_path, parts=["shapes"], seed=5, progress=False) / "manifest.json"
    before = manifest.stat()
    assert "nothing to do" not in capsys.readouterr().out
    assert shapeworld.ensure(tmp_path, parts=["shapes"], progress=False) == manifest.parent
    assert "nothing to do" in capsys.readouterr().out
    assert manifest.stat() == before
    shapeworld.ensure(tmp_path, parts=["fine"], progress=False)  # a part more: the seed and the parts there are kept
    kept = json.loads(manifest.read_bytes())
    assert kept["seed"] == 5 and set(kept["parts"]) == {"shapes", "fine"}
    manifest.write_text(json.dumps({**kept, "version": shapeworld.VERSION + 1}))
    shapeworld.ensure(tmp_path, parts=["fine"], progress=False)
    assert json.loads(manifest.read_bytes())["version"] == shapeworld.VERSION


def test_manifest_counts_every_file(world: Path) -> None:
    for part, entry in json.loads((world / "manifest.json").read_bytes())["parts"].items():
        assert entry["files"] == sum(path.is_file() for path in (world / part).rglob("*"))
        each, lists = shapeworld._FILE_COUNTS.get(part, (1, 0))
        assert entry["files"] == each * sum(TINY[part]) + 2 * lists


@pytest.mark.parametrize("damage", ["changed", "missing", "extra"])
def test_verify_names_the_damaged_part(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shapeworld.generate(tmp_path, parts=["fine", "style"], progress=False, sizes=TINY)
    shapeworld.main(["--root", str(tmp_path), "--verify"])
    path = folder / "style/val/star/00008.png"
    if damage == "changed":
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    else:
        (path.parent / "more.png").write_bytes(b"")
    assert shapeworld.verify(tmp_path) == ["style"]
    with pytest.raises(SystemExit) as stop:
        shapeworld.main(["--root", str(tmp_path), "--verify"])
    assert stop.value.code == 1 and "style" in capsys.readouterr().err


def test_errors_name_the_value_and_what_would_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'test' does not exist.*train, val"):
        shapeworld.render_shapes(0, 0, "test")
    with pytest.raises(ValueError, match="no part 'shape'; available: shapes, scenes"):
        shapeworld.generate(tmp_path, parts=["shape"])
    with pytest.raises(FileNotFoundError, match="python -m pretrain.shapeworld --root"):
        shapeworld.verify(tmp_path)
