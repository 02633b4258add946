"""Tables: like with like, what is best and how sure, and names that stay text in every format."""

import csv
import io
import json
import re
import time

import numpy as np
import pytest
from example_records import checkpoint, record

from evaluate.leaderboard import escape, export, grid, latex, markdown, page, text
from evaluate.leaderboard.__main__ import main, rebuild
from evaluate.leaderboard.table import BASELINES, SMOKE, build
from evaluate.metrics import seed_mean_interval
from evaluate.records import Score, Status, read_all, write, write_status

MUSIC = "inferred loss and IMSVD hyper-parameters"
HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "$x^2$",
    "=cmd()|' /C calc'!A0",
    "[link](http://evil.example)",
    "`code`",
    "**bold** _it_",
    "\\input{/etc/passwd}",
    "100% & #1 ~x~",
    "@user www.evil.example",
    "![i](x)",
    "&lt;b&gt;",
]


def outcomes(seed: int, share: float, n: int = 400) -> np.ndarray:
    """0/1 outcomes of which `share` are right."""
    return (np.random.default_rng(seed).random(n) < share).astype(np.uint8)


def cells(table, name):
    """Cells of the row called `name`, in order of the columns."""
    row = next(row for row in table.rows if row.checkpoint["name"] == name)
    return [row.cells.get(column) for column in table.columns]


def all_formats(records, statuses=()):
    table = build(records, statuses)
    return [markdown.render(table), latex.render(table), text.render(table), export.to_csv(export.flat(table))]


def test_a_changed_protocol_field_splits_the_column_and_names_the_field():
    table = build([record(), record("dino-s0", protocol={"k": 10, "features": {"token": "cls"}})])
    assert [c.label for c in table.columns] in (
        ["cifar10 top1 (k=20)", "cifar10 top1 (k=10)"],
        ["cifar10 top1 (k=10)", "cifar10 top1 (k=20)"],
    )
    assert sum(cell is None for cell in cells(table, "bits-s0")) == 1
    assert all(cell.best for row in table.rows for cell in row.cells.values())


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"protocol": {"k": 20, "features": {"token": "avg"}}}, "features.token=avg"),
        ({"protocol": {"k": 20}}, "features.token=absent"),
        ({"provenance": {"dataset_fingerprint": "data-2"}}, "dataset fingerprint=data-2"),
        ({"task_version": 2}, "task version=2"),
    ],
)
def test_every_kind_of_difference_is_named(change, label):
    table = build([record(), record("dino-s0", **change)])
    assert label in {column.differing for column in table.columns}


def test_one_protocol_is_one_column_without_a_label():
    table = build([record(), record("dino-s0")])
    assert [column.label for column in table.columns] == ["cifar10 top1"]


def test_the_best_and_what_is_statistically_tied_are_marked():
    best = outcomes(0, 0.8)
    near, far = best.copy(), outcomes(1, 0.6)
    near[np.flatnonzero(near)[:1]] = 0  # one image of 400 differs
    table = build([record("best", best), record("near", near), record("far", far)])
    assert [(c.best, c.tied) for c in (cells(table, n)[0] for n in ("best", "near", "far"))] == [(1, 0), (0, 1), (0, 0)]


def test_pairing_separates_what_the_intervals_alone_cannot():
    best = outcomes(0, 0.7)
    worse = best.copy()
    worse[np.flatnonzero(worse)[:16]] = 0  # wrong on 16 more images and better on none
    unpaired = record("worse", worse, outcomes={})
    assert not cells(build([record("best", best), record("worse", worse)]), "worse")[0].tied
    assert cells(build([record("best", best), unpaired]), "worse")[0].tied
    shuffled = np.random.default_rng(2).permutation(400)
    paired = record("worse", worse, outcomes={"correct": worse[shuffled], "sample_id": np.arange(400)[shuffled]})
    assert not cells(build([record("best", best), paired]), "worse")[0].tied


def test_grouped_outcomes_are_tested_by_group():
    group = np.repeat(np.arange(8), 50)
    best, worse = np.full(400, 0.7), np.full(400, 0.7)
    worse[group == 0] = 0.3  # one video of eight: certain by frames, one of many draws by videos
    kept = {"sample_id": np.arange(400)}
    grouped = [
        record(n, x, outcomes={**kept, "correct": x, "group": group}) for n, x in (("best", best), ("worse", worse))
    ]
    single = [record(n, x, outcomes={**kept, "correct": x}) for n, x in (("best", best), ("worse", worse))]
    for each in (*grouped, *single):
        each.scores["top1"] = Score(each.score.value, 0.4, 0.9, 400)
    assert cells(build(grouped), "worse")[0].tied
    assert not cells(build(single), "worse")[0].tied


def test_lower_can_be_better():
    records = [
        record(n, scores={"error": Score(v, None, None, 4)}, main="error", higher_is_better=False)
        for n, v in (("a", 0.2), ("b", 0.1))
    ]
    table = build(records)
    assert cells(table, "b")[0].best and not cells(table, "a")[0].best
    assert [row.checkpoint["name"] for row in table.rows] == ["b", "a"]
    assert "↓" in markdown.render(table)


def test_an_undefined_score_is_printed_as_such_and_never_best():
    undefined = record("none", scores={"top1": Score(float("nan"), None, None, 0)})
    table = build([record(correct=[0, 0, 0, 0]), undefined])
    assert cells(table, "bits-s0")[0].best and not cells(table, "none")[0].best
    assert "undefined" in markdown.render(table)


def test_baselines_stand_last_in_italics_and_never_win():
    pixels = record("raw pixels", [1, 1, 1, 1], checkpoint=checkpoint("raw pixels", kind="baseline", objective="none"))
    table = build([pixels, record(correct=[0, 1, 0, 0])])
    assert [row.checkpoint["name"] for row in table.rows] == ["bits-s0", "raw pixels"]
    assert cells(table, "bits-s0")[0].best and not cells(table, "raw pixels")[0].best
    document = markdown.render(table)
    assert "| *raw pixels* |" in document and "*100.00*" in document and "no method at all" in document
    assert r"\textit{raw pixels}" in latex.render(table)
    assert BASELINES not in build([record()]).notes


@pytest.mark.parametrize("dataset", ["shapeworld", "ShapeWorld-fine", "shape_world/val"])
def test_shapeworld_numbers_carry_the_smoke_sentence(dataset):
    for document in all_formats([record(dataset=dataset)])[:3]:
        assert SMOKE in document
    assert SMOKE not in markdown.render(build([record()]))


def test_a_label_is_shown_wherever_its_row_appears():
    seeds = [record(f"music-s{s}", checkpoint=checkpoint(f"music-s{s}", seed=s, label=MUSIC)) for s in range(2)]
    for document in all_formats(seeds):
        lines = [line for line in document.splitlines() if "music" in line]
        assert lines and all(MUSIC in line for line in lines)
    assert [mean.label for mean in build(seeds).seed_means] == [MUSIC]


def test_seeds_are_rows_of_their_own_with_a_mean_beside():
    values = {0: [1, 1, 0, 0], 1: [1, 1, 1, 0], 2: [1, 1, 1, 1]}
    seeds = [record(f"bits-s{s}", c, checkpoint=checkpoint(f"bits-s{s}", seed=s)) for s, c in values.items()]
    table = build([*seeds, record("dino-s0")])
    (mean,) = table.seed_means
    value = mean.values[table.columns[0]]
    assert (mean.name, *value[:3]) == ("bits", 0.75, pytest.approx(0.25), 3)
    halves = [(s.high - s.low) / 2 for s in (seed.score for seed in seeds)]
    assert value[3:] == pytest.approx(seed_mean_interval([0.5, 0.75, 1.0], halves)[1:])
    document = markdown.render(table)
    assert "75.00 ± 25.00" in document and all(f"| bits-s{s} |" in document for s in values)
    assert build([seeds[0], record("other", checkpoint=checkpoint("other", seed=1))]).seed_means == []


def test_the_summary_has_one_line_a_recipe_and_marks_by_the_two_level_test():
    """Three seeds that scatter: the best single seed beats all, yet the recipes cannot be told apart."""
    shares = {"bits": (0.9, 0.5, 0.7), "dino": (0.66, 0.66, 0.66), "weak": (0.1, 0.11, 0.12)}
    records = [
        record(f"{name}-s{s}", outcomes(10 * i + s, share), checkpoint=checkpoint(f"{name}-s{s}", seed=s))
        for i, (name, each) in enumerate(shares.items())
        for s, share in enumerate(each)
    ]
    single = record("alone", outcomes(99, 0.02), checkpoint=checkpoint("alone", objective="vicreg", parent="dino-s0"))
    table = build([*records, single])
    (block,) = grid.summary(table)
    assert block.header == ["Checkpoint", "Objective", "From", "Seeds", "knn top1 ↑"] and block.names == 4
    assert [line.entries[0].text for line in block.lines] == ["bits", "dino", "weak", "alone"]
    assert [line.entries[-1].bold for line in block.lines] == [True, True, False, False]
    assert [line.entries[3].text for line in block.lines] == ["3", "3", "3", "1"]
    assert block.lines[3].entries[2].text == "dino-s0"
    assert not cells(table, "dino-s0")[0].tied, "seed by seed the best seed of the other recipe is better"
    assert re.fullmatch(r"\d\d\.\d\d ± \d\d\.\d\d", block.lines[0].entries[-1].text)
    (seeds,) = grid.seeds(table)
    assert len(seeds.lines) == 12 and seeds.lines[0].entries[0].text == "bits, 3 seeds"


def test_what_all_methods_share_is_said_once_and_a_kept_epoch_needs_no_parent():
    names = ("bits-a", "bits-a/epochs/010", "bits-b")
    parents = ("", "bits-a", "")
    records = [record(n, checkpoint=checkpoint(n, parent=p)) for n, p in zip(names, parents, strict=True)]
    (block,) = grid.summary(build(records))
    assert block.header == ["Checkpoint", "knn top1 ↑"] and block.facts == ["Backbone: vit_tiny."]


def test_datasets_share_a_grid_where_the_same_checkpoints_were_measured():
    records = [record(name, dataset=data) for name in ("a", "b") for data in ("cifar10", "food101")]
    records += [record("a", dataset="voc", task=f"task{i}") for i in range(10)]
    found = grid.summary(build(records))
    assert [(block.title, len(block.header) - block.names) for block in found] == [
        ("cifar10, food101", 2),
        ("voc", 5),
        ("voc", 5),
    ]
    assert found[0].header[-1] == "food101 knn top1 ↑"


def test_what_did_not_run_is_listed_with_reason_and_remedy(tmp_path):
    write(tmp_path / "records", record())
    write(tmp_path / "records", record("dino-s0", dataset="food101"))
    write_status(tmp_path / "records", checkpoint(), "knn", "food101", "failed", "out of memory", "set batch=16")
    write_status(tmp_path / "records", {"name": "gone.pth"}, "knn", "food101", "skipped", "no such file", "check it")
    shown = rebuild(tmp_path / "records", tmp_path)
    for ending in ("md", "tex", "json", "html"):
        document = (tmp_path / f"leaderboard.{ending}").read_text()
        assert "out of memory" in document and "set batch=16" in document and "gone.pth" in document
    assert "set batch=16" in shown
    row = next(line for line in shown[shown.index("food101") :].splitlines() if line.startswith("  bits-s0"))
    assert row.split()[-1] == "failed"


def test_what_did_not_run_for_one_reason_is_said_once():
    names = ("a", "b", "c")
    missing = [Status(checkpoint(n), "hamming", "cifar10", "skipped", "no bits.", "train BITS") for n in names]
    other = Status(checkpoint("a"), "knn", "cifar10", "failed", "no memory", "set batch=16")
    assert grid.status_lines([*missing, other]) == [
        "hamming on cifar10, a, b, c: skipped, no bits. Remedy: train BITS",
        "knn on cifar10, a: failed, no memory. Remedy: set batch=16",
    ]


def test_a_status_belongs_to_weights_and_only_without_them_to_a_name():
    others = checkpoint(weights_digest="other weights of the same name")
    places = [record(), record("dino-s0", dataset="food101")]
    for known, shown in ((checkpoint(), True), ({"name": "bits-s0"}, True), (others, False)):
        table = build(places, [Status(known, "knn", "food101", "failed", "no memory", "set batch=16")])
        document = text.render(table)
        food = document[document.index("food101") : document.index("Marked")]
        row = [line.split() for line in food.splitlines() if line.startswith("  bits-s0")]
        assert row == ([["bits-s0", "failed"]] if shown else [])


def test_every_number_leads_to_its_record(tmp_path):
    for name in ("bits-s0", "dino-s0"):
        write(tmp_path / "records", record(name, protocol={"k": len(name)}))
    rebuild(tmp_path / "records", tmp_path)
    rows = json.loads((tmp_path / "leaderboard.json").read_text())["scores"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    assert len(rows) == len(lines) == 2
    for row in (*rows, *lines):
        stored = json.loads((tmp_path / "records" / row["record"]).read_text())
        assert stored["scores"]["top1"]["value"] == float(row["value"]) and stored["fingerprint"] == row["fingerprint"]
        assert json.loads(row["protocol"]) == stored["protocol"] and row["commit"] == "abc123"


def test_numbers_are_percent_with_intervals_and_others_keep_their_unit():
    scores = {"d_eff": Score(233.4, 230.0, 240.0, 100, scale="dimensions")}
    table = build(
        [record(scores={"top1": Score(0.7239, 0.7, 0.75, 100)}), record(task="geometry", scores=scores, main="d_eff")]
    )
    document = markdown.render(table)
    assert "**72.39** (70.00–75.00)" in document
    assert "**233.4** (230–240)" in document and r"d_eff \[dimensions\] ↑" in document


def test_only_main_metrics_fill_the_tables_and_all_fill_the_files():
    scores = {"top1": Score(0.75, None, None, 4), "top5": Score(1.0, None, None, 4)}
    table = build([record(scores=scores)])
    assert "top5" not in markdown.render(table.headline) and "top1" in markdown.render(table.headline)
    assert [row["metric"] for row in export.flat(table)] == ["top1", "top5"]
    assert not export.flat(table)[1]["best"], "which way top5 is better is not recorded"


def test_the_newest_of_two_records_in_one_cell_counts():
    old = record(correct=[0, 0, 0, 0])
    new = record(correct=[1, 1, 1, 1], provenance={"dataset_fingerprint": "data-1", "date": "2026-02-01"})
    assert cells(build([new, old]), "bits-s0")[0].score.value == 1.0


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text_in_markdown(name):
    parser = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"html": True, "linkify": False})
    hostile = record(checkpoint=checkpoint(name, label=name), dataset=name)
    parsed = parser.parse(markdown.render(build([hostile, record("plain")])))
    plain = parser.parse(markdown.render(build([record(dataset="!"), record("plain")])))
    assert [token.type for token in parsed] == [token.type for token in plain], "the name changed the structure"
    inline = [token.children for token in parsed if token.type == "inline"]
    kinds = {child.type for children in inline for child in children}
    assert kinds <= {"text", "text_special", "softbreak", "code_inline", "strong_open", "strong_close"}
    assert [c.content for children in inline for c in children if c.type == "code_inline"] == [
        "python -m evaluate.leaderboard"
    ]
    assert f"{name} ({name})" in ["".join(child.content for child in children) for children in inline]


def test_bare_addresses_do_not_become_links_in_markdown():
    assert "http://" not in escape.markdown("http://evil.example") and "www." not in escape.markdown("www.evil.example")


@pytest.mark.parametrize("name", [*HOSTILE, "^ _ { } \\", '"quoted"', "[x] *y"])
def test_a_hostile_name_stays_text_in_latex(name):
    safe = escape.latex(name)
    words = "textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|ldots|char96"
    left = re.sub(rf"\\({words})\{{\}}|\\[{{}}$&#%_]|\{{[\[\]*]\}}", "", safe)
    assert not set(left) & set('\\{}$&#%_^~<>|"`[]*'), left


def test_a_row_that_begins_with_a_bracket_does_not_become_an_argument_of_the_line_end():
    document = latex.render(build([record("plain"), record("[1cm]")]))
    assert not re.search(r"\\\\\s*[\[*]", document)


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1+1", "@SUM(A1)", "\t=x", "\r=x", " =x", "%x", "|x"])
def test_no_cell_of_the_csv_is_a_formula(name):
    rows = export.flat(build([record(checkpoint=checkpoint(name, label=name), dataset=name)]))
    (row,) = csv.DictReader(io.StringIO(export.to_csv(rows), newline=""))
    assert row["name"] == row["label"] == row["dataset"] == f"'{escape.terminal(name)}"
    assert float(row["value"]) == 0.75


def test_negative_numbers_stay_numbers_in_the_csv():
    rows = export.flat(build([record(scores={"top1": Score(-0.25, -0.5, 0.0, 4)})]))
    (row,) = csv.DictReader(io.StringIO(export.to_csv(rows)))
    assert float(row["value"]) == -0.25


def test_the_terminal_receives_no_control_characters():
    shown = text.render(build([record(checkpoint=checkpoint("\x1b[31mred\x07\nnew line"), task="\x9bx")]))
    assert not {c for c in shown if not c.isprintable()} - {"\n"}


def test_a_failed_rewrite_leaves_the_old_files(tmp_path, monkeypatch):
    write(tmp_path / "records", record())
    rebuild(tmp_path / "records", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("leaderboard.*")}
    assert len(before) == 5
    write(tmp_path / "records", record("dino-s0"))

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        rebuild(tmp_path / "records", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_command_prints_the_table_and_names_damaged_records(tmp_path, capsys):
    write(tmp_path / "records", record())
    write(tmp_path / "records", record("dino-s0")).write_text("{")
    assert main(["--records", str(tmp_path / "records"), "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "75.00* (" in shown and "damaged record" in shown
    assert "damaged record" in (tmp_path / "leaderboard.md").read_text()
    with pytest.raises(SystemExit) as error:
        main(["--records", str(tmp_path / "nowhere")])
    assert error.value.code == 2 and "evaluate a checkpoint first" in capsys.readouterr().err


@pytest.mark.slow
def test_a_thousand_checkpoints_by_fifty_tasks_are_rebuilt_in_half_a_minute(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "records"
    for j in range(50):
        path = write(root, record("run-0", task=f"task-{j % 5}", dataset=f"dataset-{j // 5}", outcomes={}))
        whole = path.read_text()
        for i, value in enumerate(rng.random(1000)):
            folder = root / f"run-{i}-{i:012x}"
            folder.mkdir(exist_ok=True)
            own = whole.replace('"run-0"', f'"run-{i}"').replace("digest-of-run-0", f"digest-{i}")
            (folder / path.name).write_text(re.sub(r'"value": [\d.]+', f'"value": {value}', own))
        path.unlink()
    began = time.process_time()
    rebuild(root, tmp_path, None)
    seconds = time.process_time() - began  # of the processor: others may be at work beside
    print(f"{seconds:.1f} s, page of {(tmp_path / 'leaderboard.html').stat().st_size / 1e6:.1f} MB")
    assert seconds < 30 and (tmp_path / "leaderboard.html").stat().st_size < 10_000_000


def test_an_empty_folder_gives_an_empty_leaderboard(tmp_path):
    (tmp_path / "records").mkdir()
    assert "No records yet" in rebuild(tmp_path / "records", tmp_path)
    assert read_all(tmp_path / "records") == [] and len(list(tmp_path.glob("leaderboard.*"))) == 5


def test_kept_epochs_of_a_run_are_points_of_its_curve_and_no_methods():
    best = {"scores": {"top1": Score(0.99, 0.98, 1.0, 4)}}
    names = ("bits/epochs/001", "bits/epochs/002")
    steps = [record(name, checkpoint=checkpoint(name, parent="bits"), **best) for name in names]
    table = build([record("bits"), record("dino"), *steps])
    marked = {row.checkpoint["name"] for row in table.rows for cell in row.cells.values() if cell.mark}
    assert marked == {"bits", "dino"} and [row.checkpoint["name"] for row in table.rows][2:] == list(names)
    for shown in (markdown.render(table), latex.render(table), text.render(table)):
        assert "epochs/001" not in shown and "2 kept epochs of these runs" in shown
    assert "bits/epochs/001" in export.to_csv(export.flat(table))
    assert [row.get("step") for row in page.payload(table)["rows"]] == [None, None, 1, 1]
    alone = markdown.render(build([steps[0], record("dino")]))
    assert "bits/epochs/001" in alone and "Left out" not in alone
