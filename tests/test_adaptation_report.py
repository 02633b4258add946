"""The report on adaptation, from records alone: gains, forgetting, curves, signals, and the paper's layout."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from example_records import checkpoint, record
from scipy import stats

from evaluate.leaderboard import adaptation, paper, published
from evaluate.leaderboard.__main__ import rebuild
from evaluate.leaderboard.table import build
from evaluate.records import Score, write

TASKS = {"retrieval": "map", "knn": "top1_k20", "linear": "top1"}


def frozen(name="bits_fixed-a", objective="bits_fixed", **changes):
    return checkpoint(name, objective=objective, data="a", **changes)


def adapted(target, origin, epoch=3.0, kept=False, **changes):
    name = f"{origin['name']}-to-{target}"
    about = {"adapted_from": origin["weights_digest"], "source": origin["data"], "data": target, "epoch": epoch}
    about |= {"parent": name if kept else origin["name"], "objective": origin["objective"], "images_seen": 60}
    return checkpoint(f"{name}/epochs/{epoch:03.0f}" if kept else name, **about | changes)


def scored(about, task, dataset, correct, metric=None):
    metric = metric or TASKS[task]
    correct = np.asarray(correct, float)
    score = Score(float(correct.mean()), None, None, len(correct))
    fields = {"task": task, "dataset": dataset, "main": metric, "scores": {metric: score}}
    fields["outcomes"] = {"correct": correct, "sample_id": np.arange(len(correct))}
    return record(about["name"], checkpoint=about, **fields)


def gap(about, target, frechet, rank):
    scores = {"frechet": Score(frechet, None, None, 9, scale="squared distance")}
    scores["effective_rank"] = Score(rank, None, None, 9, scale="dimensions")
    fields = {"task": "domain_gap", "dataset": target, "main": "frechet", "scores": scores, "outcomes": {}}
    return record(about["name"], checkpoint=about, higher_is_better=False, **fields)


def world():
    """Five runs frozen and adapted to b: gains 0.1, 0.2 ..., forgetting of 0.2 each, a curve of three epochs."""
    found = []
    for i in range(5):
        one = frozen(f"run{i}", "bits_fixed" if i % 2 else "dino")
        other = adapted("b", one)
        gained = [1] * (40 + 10 * i) + [0] * (60 - 10 * i)
        found += [scored(one, "knn", "b", [1] * 30 + [0] * 70), scored(other, "knn", "b", gained)]
        found += [scored(one, "knn", "a", [1] * 60 + [0] * 40), scored(other, "knn", "a", [1] * 40 + [0] * 60)]
        found += [scored(one, "knn", "c", [1] * 50 + [0] * 50), scored(other, "knn", "c", [0] * 50 + [1] * 50)]
        found += [scored(adapted("b", one, e, True), "knn", "b", [1] * int(30 + e) + [0] * int(70 - e)) for e in (1, 2)]
        found += [
            gap(one, "b", 5.0 - i, 10 + i),
            gap(other, "b", 1.0, 12),
            gap(adapted("b", one, 1, True), "b", 2.0, 11),
        ]
    return found


def test_gains_pair_each_adapted_run_with_its_origin_and_say_what_was_forgotten():
    found = adaptation.gains(world(), samples=500)
    assert len(found) == 15 and {gain.role for gain in found} == {"target", "source", "other"}
    target = {g.adapted["name"]: g.comparison for g in found if g.role == "target"}
    assert [round(target[f"run{i}-to-b"].difference, 3) for i in range(5)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    best = target["run4-to-b"]
    assert best.low is not None and best.low > 0.3 and best.verdict == "better" and best.test == "McNemar"
    lost = [g.comparison for g in found if g.role == "source"]
    assert all(c.difference == pytest.approx(-0.2) and c.verdict == "worse" for c in lost)
    other = [g.comparison for g in found if g.role == "other"]
    assert all(c.difference == 0 and c.verdict == "no difference shown" for c in other)


def test_a_run_whose_origin_was_measured_otherwise_is_not_compared():
    one = frozen()
    records = [scored(one, "knn", "b", [1, 0]), scored(adapted("b", one), "knn", "b", [1, 1])]
    records[1].protocol["k"] = 10
    assert adaptation.gains(records) == []
    assert adaptation.gains([records[1]]) == []


def test_signals_stand_before_and_after_and_correlate_by_rank_with_the_gain():
    records = world()
    by_run, found = adaptation.signals(records), adaptation.gains(records, samples=200)
    assert by_run["run1-to-b"] == [("frechet", 4.0, 1.0), ("effective_rank", 11.0, 12.0)]
    related = {(c.signal, c.task): c for c in adaptation.correlations(found, by_run)}
    assert related["frechet, before", "knn"].rho == pytest.approx(-1) and related["frechet, before", "knn"].runs == 5
    assert related["frechet, change", "knn"].rho == pytest.approx(1)
    assert related["effective_rank, before", "knn"].rho == pytest.approx(1)
    x, y = np.random.default_rng(0).integers(0, 5, (2, 30))
    assert adaptation.spearman(list(zip(x, y, strict=True))) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(adaptation.spearman([(1, 2), (2, 3), (3, 4)]))
    assert math.isnan(adaptation.spearman([(1, 2), (1, 3), (1, 4), (1, 5)]))


def test_curves_begin_with_the_frozen_checkpoint_and_end_with_the_run():
    drawn = {figure.key: figure for figure in adaptation.figures(world())}
    curve = next(c for c in drawn["knn-top1_k20"].curves if c.name == "run4-to-b")
    assert curve.x == [0, 1, 2, 3] and curve.y == pytest.approx([30, 31, 32, 80])
    during = next(c for c in drawn["domain_gap-frechet"].curves if c.name == "run0-to-b")
    assert (during.x, during.y) == ([0, 1, 3], [5.0, 2.0, 1.0])


@pytest.mark.thorough
def test_the_report_is_written_beside_the_leaderboard_and_names_are_escaped(tmp_path):
    hostile = frozen("x<script>|*a*", "dino")
    records = [*world(), scored(hostile, "knn", "b", [1, 0] * 50), scored(adapted("b", hostile), "knn", "b", [1] * 100)]
    for one in records:
        write(tmp_path / "records", one)
    rebuild(tmp_path / "records", tmp_path, None)
    folder = tmp_path / "adaptation"
    text = (folder / "adaptation.md").read_text()
    assert "run4-to-b | dino | 3 | 60 | b | target | knn | top1_k20 | 30.00 | 80.00 | +50.00 |" in text.replace(
        "\\", ""
    )
    assert "<script>" not in text and "Layout of Table 14 on other targets" in text
    rows = list(csv.DictReader((folder / "gains.csv").read_text().splitlines()))
    assert float(next(r for r in rows if r["run"] == "run0-to-b" and r["role"] == "source")["gain"]) == pytest.approx(
        -0.2
    )
    assert all(row["parent_weights"].startswith("digest-of-") for row in rows)
    assert "knn-top1_k20,b (" in (folder / "curves.csv").read_text()
    assert len(list(folder.glob("*.png"))) == 3 and (folder / "tables.tex").read_text().count("tabular") == 2
    assert "rank_correlation" in (folder / "signals.csv").read_text().splitlines()[0]


def test_nothing_is_written_where_no_run_was_adapted(tmp_path):
    write(tmp_path / "records", scored(frozen(), "knn", "a", [1, 0]))
    rebuild(tmp_path / "records", tmp_path, None)
    assert not (tmp_path / "adaptation").exists()


def measured(about, dataset, value):
    outcomes = [1] * int(100 * value) + [0] * (100 - int(100 * value))
    return [scored(about, task, dataset, outcomes) for task in TASKS]


def test_tables_8_and_14_hold_measured_frozen_and_adapted_rows_beside_the_published():
    about = {"backbone": "vit_base_patch16_224-224px", "epoch": 100}
    one = frozen("bits_reset-imagenet", "bits_reset", **about)
    records = measured(one, "birds525", 0.30) + measured(adapted("birds525", one), "birds525", 0.70)
    records += measured(adapted("birds525", one, 2.0, True), "birds525", 0.99)
    tables = {table.layout.key: table for table in paper.fill(build(records))[1]}
    for key, width in ((8, 1), (14, 3)):
        shown = [
            [[e.text for e in line.entries][:width] for line in rows if line.source.startswith("measured")]
            for _, rows in tables[key].blocks
        ]
        assert shown == [[["30.00"] * width], [["70.00"] * width]]
        row = next(line for line in tables[key].blocks[1][1] if line.method == "BITS-reset")
        assert row.published and row.entries[0].text == {8: "95.35", 14: "70.52"}[key]
    gaps = [command for gap in tables[14].gaps for command in gap.commands if "adaptation" in command]
    assert 'make adaptation CHECKPOINTS=runs/bits_reset-imagenet TARGETS="food101 inat2019 plantnet"' in gaps
    assert adaptation.layout(build(records)) == []  # the paper has this target itself


def test_the_layout_on_other_targets_has_a_row_for_each_origin_in_both_groups():
    one, two = frozen("bits_reset-a", "bits_reset"), frozen("dino-a", "dino")
    records = measured(one, "b", 0.3) + measured(adapted("b", one), "b", 0.7)
    records += measured(two, "b", 0.4) + measured(adapted("c", two), "c", 0.2)
    [table] = adaptation.layout(build(records))
    assert table.layout.labels == [f"{t} {m}" for t in "bc" for m in ("mAP", "k-NN", "LP")]
    cells = {h: {line.method: [e.text for e in line.entries] for line in rows} for h, rows in table.blocks}
    assert cells["frozen"] == {"DINO": ["40.00"] * 3 + ["gap"] * 3, "BITS-reset": ["30.00"] * 3 + ["gap"] * 3}
    assert cells["adapted to the target"]["BITS-reset"] == ["70.00"] * 3 + ["gap"] * 3
    assert cells["adapted to the target"]["DINO"] == ["gap"] * 3 + ["20.00"] * 3
    assert list(cells["frozen"]) == ["DINO", "BITS-reset"]  # the paper's order
    assert published.read_tables()[1]
