"""Scores of a folder of masks: the golden DAVIS results read from disk, and what is wrong with a folder, by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate import davis
from evaluate.metrics.video import summarize_sequences
from pretrain.datasets.indexed import encode_labels
from pretrain.datasets.videos import Davis
from pretrain.shapeworld import davis_palette

GOLDEN = Path(__file__).parent / "golden" / "eval"
MINI = GOLDEN / "davis_mini"


def test_results_on_disk_score_as_in_the_golden_file():
    golden, data = np.load(GOLDEN / "davis_jf.npz"), Davis(MINI, "val")
    sequences = davis.score_results(data, MINI / "results")
    for video, scores in zip(data.videos, sequences, strict=True):
        np.testing.assert_allclose(scores.j, golden[f"J__{video.name}"], atol=1e-9, rtol=0)
        np.testing.assert_allclose(scores.f, golden[f"F__{video.name}"], atol=1e-9, rtol=0)
    for key, value in summarize_sequences(sequences).items():
        assert value == pytest.approx(float(golden[key]), abs=1e-9), key


def test_the_command_prints_the_totals_and_writes_both_tables(tmp_path, capsys):
    davis.main([str(MINI / "results"), "--data-root", str(MINI), "--output", str(tmp_path)])
    golden, out = np.load(GOLDEN / "davis_jf.npz"), capsys.readouterr().out.splitlines()
    assert out[1].split() == ["jf", f"{100 * float(golden['JF_mean']):.2f}"]
    lines = (tmp_path / "per_object.csv").read_text().splitlines()
    assert len(lines) == 1 + len(golden["object_names"]) and (tmp_path / "per_sequence.csv").is_file()


def spoil(folder: Path, kind: str) -> None:
    """Make one mask of the second sequence unusable."""
    file = sorted((folder / "dogs-jump").glob("*.png"))[2]
    labels = np.asarray(Image.open(file))
    if kind == "missing":
        file.unlink()
    elif kind == "damaged":
        file.write_bytes(file.read_bytes()[:60])
    elif kind == "coloured":
        Image.fromarray(np.dstack([labels] * 3)).save(file)
    else:
        changed = labels[:-1] if kind == "small" else np.full_like(labels, 9)
        file.write_bytes(encode_labels(changed, davis_palette()))


@pytest.mark.parametrize(
    "kind, words",
    [
        ("missing", "dogs-jump, frame 2: no mask"),
        ("damaged", "cannot decode mask"),
        ("coloured", "holds RGB colours"),
        ("small", "dogs-jump, frame 2: the prediction is"),
        ("label", "dogs-jump, frame 2: the prediction has label 9"),
    ],
)
def test_a_mask_that_cannot_be_scored_ends_in_one_line_naming_sequence_and_frame(tmp_path, capsys, kind, words):
    shutil.copytree(MINI / "results", tmp_path / "results")
    spoil(tmp_path / "results", kind)
    with pytest.raises(SystemExit) as end:
        davis.main([str(tmp_path / "results"), "--data-root", str(MINI)])
    error = capsys.readouterr().err
    assert end.value.code == 1 and words in error and error.count("\n") == 1
    assert "dogs-jump" in error and ("frame 2" in error)
