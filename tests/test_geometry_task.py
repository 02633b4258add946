"""The geometry of stored features, of a run and of every epoch it kept."""

from pathlib import Path

import numpy as np
import pytest
from frozen import count_forward, folder_data, save_tiny_run, subject

from evaluate import importer, records
from evaluate.evaluator import Evaluator
from evaluate.features import Store
from evaluate.leaderboard import curves
from evaluate.leaderboard.table import build
from evaluate.metrics import (
    alignment,
    class_alignment,
    effective_dimension,
    effective_rank,
    explained_variance,
    rank_me,
    spectrum,
    uniformity,
)
from evaluate.run import as_item, make_plan
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.geometry import Geometry
from pretrain.checkpoint import CheckpointError, read_json, write_json, write_tensors
from pretrain.datasets import ImageList, Images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the picture, which takes longer than all the rest."""
    monkeypatch.setattr("evaluate.tasks.geometry.graph", lambda draw, width, height: b"")


@pytest.fixture
def given(run, images, tmp_path):
    return subject(run, folder_data(images), tmp_path)


def evaluator(tmp_path, data, runs="runs"):
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    return Evaluator(store, tmp_path / "records", lambda name: data, runs=runs, quiet=True)


# ---- the metric


def test_class_alignment_is_the_mean_squared_distance_to_the_others_of_a_class():
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((12, 5)), np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 0, 1])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    squared = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    found = class_alignment(x, labels)
    for i, label in enumerate(labels):
        others = [j for j in range(12) if j != i and labels[j] == label]
        assert found[i] == pytest.approx(squared[i, others].mean()) if others else np.isnan(found[i])
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j and labels[i] == labels[j] == 3]
    left, right = zip(*pairs, strict=True)
    assert np.mean(found[labels == 3]) == pytest.approx(alignment(x[list(left)], x[list(right)]))


def test_class_alignment_of_equal_rows_is_zero_and_of_class_sets_refused():
    assert (class_alignment(np.ones((4, 3)), [0, 0, 1, 1]) < 1e-12).all()
    with pytest.raises(ValueError, match="one class each"):
        class_alignment(np.ones((2, 3)), np.eye(2, dtype=int))


# ---- the task


def test_geometry_records_and_costs_nothing_the_second_time(tmp_path, run, images):
    bench, item = evaluator(tmp_path, folder_data(images)), as_item("geometry", "folder")
    bench.evaluate({str(run): [item]})
    assert bench.unfit == []
    [record] = records.read_all(bench.root, problems := [])
    assert not problems and record.main == "effective_dimension" and record.protocol["split"] == "test"
    assert {name: score.scale for name, score in record.scores.items()} == {
        "effective_dimension": "dimensions",
        "effective_rank": "dimensions",
        "rank_me": "dimensions",
        "uniformity": "nats",
        "alignment": "squared distance",
    }
    assert record.main_outcomes() is None, "a dimension is no mean over images: nothing to pair"
    for file in record.provenance["files"]:
        assert (tmp_path / file).stat().st_size > 100
    with count_forward(importer.load(run)) as sizes:
        bench.evaluate({str(run): [item]})
    assert sizes == [] and bench.current == 1 and len(bench.written) == 1


def test_geometry_shares_the_forward_pass_of_other_tasks(undrawn, given):
    given.features("test")
    with count_forward(given.backbone) as sizes:
        Geometry().run(given)
    assert sizes == []


@pytest.mark.parametrize("normalise", [False, True])
def test_scores_are_the_metrics_on_class_tokens(undrawn, given, normalise):
    result = Geometry(normalise=normalise).run(given)
    x = given.features("test").cls().double().numpy()
    used = x / np.linalg.norm(x, axis=1, keepdims=True) if normalise else x
    expected = {"effective_dimension": effective_dimension(used), "effective_rank": effective_rank(used)}
    expected |= {"rank_me": rank_me(used), "uniformity": uniformity(x)}
    expected |= {"alignment": class_alignment(x, given.features("test").labels).mean()}
    assert {name: score.value for name, score in result.scores.items()} == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(result.outcomes["explained_variance"], explained_variance(used), atol=1e-6)
    np.testing.assert_allclose(result.outcomes["spectrum"], spectrum(used), atol=1e-6)
    score = result.scores["alignment"]
    assert score.low < score.value < score.high and result.scores["effective_rank"].low is None


def test_normalising_another_split_and_fewer_pairs_are_other_protocols(undrawn, given):
    assert Geometry(split="train").run(given).scores["rank_me"].n == 36 and Geometry(split="train").splits == ("train",)
    protocols = [task.protocol(given) for task in (Geometry(), Geometry(normalise=True), Geometry(uniformity_images=9))]
    assert protocols[0] != protocols[1] != protocols[2] != protocols[0]
    found = Geometry(uniformity_images=9).run(given)
    assert found.scores["uniformity"].n == 9 and found.scores["effective_rank"].n == 18


def test_the_data_of_the_picture_is_the_spectrum(given):
    result = Geometry().run(given)
    lines = result.files["spectrum.csv"].decode().splitlines()
    assert lines[0] == "component,eigenvalue,share,cumulative" and len(lines) == 17
    table = np.array([line.split(",") for line in lines[1:]], float)
    np.testing.assert_allclose(table[:, 3], result.outcomes["explained_variance"], rtol=1e-5)
    np.testing.assert_allclose(np.cumsum(table[:, 2]), table[:, 3], atol=1e-4)
    assert result.files["explained_variance.png"].startswith(b"\x89PNG")
    assert Geometry().run(given).files == result.files


def test_collapsed_features_are_flagged_and_have_no_picture(given):
    given.backbone.vit.norm.weight.zero_()
    result = Geometry().run(given)
    assert result.scores["effective_dimension"].value == result.scores["effective_rank"].value == 0
    assert not result.outcomes["explained_variance"].any() and "explained_variance.png" not in result.files
    assert "collapsed" in result.notes[0] and result.scores["uniformity"].value == pytest.approx(0)


def test_fewer_images_than_dimensions_are_said(undrawn, run, images, tmp_path):
    result = Geometry().run(subject(f"pixels:{run}", folder_data(images), tmp_path))
    assert "18 images of 768 dimensions: at most 17" in result.notes[0]
    assert result.scores["effective_rank"].value <= 17


@pytest.mark.parametrize("kind, why", [("none", "has no labels"), ("sets", "has several classes an image")])
def test_without_one_class_an_image_there_is_no_alignment(undrawn, run, images, tmp_path, kind, why):
    (tmp_path / "list.txt").write_text("".join(f"val/class{c}/000.png {int(c == 0)} 1\n" for c in range(3)))
    made = {"none": lambda: Images(images / "val"), "sets": lambda: ImageList(images, str(tmp_path / "list.txt"))}
    result = Geometry().run(subject(run, Data("other", {"test": made[kind]}), tmp_path))
    assert "alignment" not in result.scores and any(why in note for note in result.notes)


def test_what_has_no_covariance_or_too_wide_a_one_is_skipped(run, images, tmp_path, given, monkeypatch):
    (tmp_path / "list.txt").write_text("val/class0/000.png 0\n")
    alone = Data("alone", {"test": lambda: ImageList(images, str(tmp_path / "list.txt"))})
    with pytest.raises(Unavailable, match="has 1 image"):
        Geometry().check(subject(run, alone, tmp_path))
    monkeypatch.setattr("evaluate.tasks.geometry.WIDEST", 15)
    with pytest.raises(Unavailable, match="16 dimensions does not fit"):
        Geometry().check(given)
    with pytest.raises(ValueError, match="uniformity_images=1"):
        Geometry(uniformity_images=1)


def test_features_that_are_not_finite_fail_with_one_line(tmp_path, run, images):
    broken = importer.load(run)
    broken.vit.norm.bias.fill_(float("nan"))
    place = tmp_path / "runs" / "broken"
    digest = write_tensors(place / "backbone.safetensors", dict(broken.state_dict()))
    info = read_json(run / "run.json") | {"name": "broken", "binary": False}
    write_json(place / "run.json", info | {"sha256": {"backbone.safetensors": digest}})
    bench = evaluator(tmp_path, folder_data(images))
    bench.evaluate({str(place): [as_item("geometry", "folder")]})
    [status] = bench.unfit
    assert status.status == "failed" and "NaN" in status.reason and "\n" not in status.reason


# ---- every epoch that is kept


def keep_epochs(runs: Path, *epochs: int) -> Path:
    run = save_tiny_run(runs, name="a", epoch=float(max(epochs)), seed=max(epochs), data={"name": "folder"})
    for epoch in epochs:
        made = save_tiny_run(run / "epochs", seed=epoch, name="a", epoch=float(epoch), data={"name": "folder"})
        made.rename(made.with_name(f"{epoch:03d}"))
    return run


def test_epochs_by_one_name_are_all_that_a_run_kept_in_order(tmp_path):
    run = keep_epochs(tmp_path, 2, 10, 1000)
    expected = [str(run / "epochs" / name) for name in ("002", "010", "1000")]
    assert importer.expand([f"{run}/epochs"]) == importer.expand(["a/epochs"], tmp_path) == expected
    assert importer.expand(["a/epochs@student"], tmp_path) == [f"{path}@student" for path in expected]
    assert importer.expand(["a", "a/epochs/002"], tmp_path) == ["a", "a/epochs/002"]
    assert set(make_plan(["a/epochs"], [{"task": "geometry", "data": "folder"}], str(tmp_path), False)) == set(expected)


def test_a_run_without_kept_epochs_says_what_keeps_them(tmp_path):
    run = save_tiny_run(tmp_path, name="a")
    (run / "epochs").mkdir()
    with pytest.raises(CheckpointError, match=r"no kept epoch in .*a/epochs; train with trainer.keep_every"):
        importer.expand(["a/epochs"], tmp_path)
    with pytest.raises(CheckpointError, match="runs/NAME/epochs"):
        make_plan(["b/epochs"], None, str(tmp_path), False)


def test_the_page_gets_the_trajectory_of_geometry(undrawn, tmp_path, images):
    keep_epochs(tmp_path / "runs", 1, 2, 3)
    bench = evaluator(tmp_path, folder_data(images), runs=str(tmp_path / "runs"))
    plan = make_plan(["a", "a/epochs"], [{"task": "geometry", "data": "folder"}], str(tmp_path / "runs"), False)
    bench.evaluate(plan)
    found = {figure.key: figure for figure in curves.figures(build(records.read_all(bench.root)))}
    assert {"explained_variance", "effective_dimension_by_epoch", "effective_rank_by_epoch"} <= set(found)
    [line] = found["effective_rank_by_epoch"].curves
    assert line.name == "a" and line.x == [1, 2, 3]
    by_epoch = {record.checkpoint["epoch"]: record.scores["effective_rank"].value for record in bench.written}
    assert line.y == pytest.approx([by_epoch[epoch] for epoch in (1, 2, 3)], rel=1e-3)
