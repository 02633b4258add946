"""The paper's tables and figures: published beside measured, never in one row, and gaps that say what fills them."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from example_records import checkpoint, record

from evaluate.leaderboard import curves, latex, paper, paper_plan, paper_text, published
from evaluate.leaderboard.__main__ import rebuild
from evaluate.leaderboard.table import build
from evaluate.records import Score, write

VIT_B = "vit_base_patch16_224-224px"
HOSTILE = r"\input{/etc/passwd} <script> $x$ |a| _b_ 漢字 ü &% #1 ~^"


def measured(
    task, metric, value, name="dino-imagenet", *, objective="dino", backbone=VIT_B, dataset="imagenet", **more
):
    about = {"objective": objective, "backbone": backbone, "epoch": 100} | more.pop("about", {})
    about = checkpoint(name, **about)
    score = Score(value, value - 0.01, value + 0.01, 50_000)
    fields = {"checkpoint": about, "task": task, "dataset": dataset, "main": metric, "scores": {metric: score}}
    return record(name, **fields, **{"outcomes": {}} | more)


def filled(*records):
    return {table.layout.key: table for table in paper.fill(build(records))[1]}


def lines(table, block=0):
    return [(line.method, line.source, [e.text for e in line.entries]) for line in table.blocks[block][1]]


def test_every_published_row_stands_first_and_complete():
    tables = filled(measured("knn", "top1_k20", 0.7))
    for layout in published.read_tables()[1]:
        found = tables[layout.key]
        rows = [line for _, block in found.blocks for line in block if line.published]
        wanted = [(m, values) for group in layout.groups for m, values in group.rows.items()]
        assert [(line.method, [e.text for e in line.entries]) for line in rows] == [
            (m, [published.written(v) for v in values]) for m, values in wanted
        ]
        for _, block in found.blocks:  # a published row, then what was measured of it, or that nothing was
            assert all(line.published or line.source.startswith(("measured: ", "not measured")) for line in block)
            assert [line.published for line in block][::2] == [True] * (len(block) // 2)


def test_a_measured_number_has_a_row_of_its_own_below_the_published_one():
    rows = lines(filled(measured("knn", "top1_k20", 0.7123))[1])
    assert rows[0] == ("DINO", "published", ["35.68", "72.39", "76.3"])
    assert rows[1][1].startswith("measured: dino-imagenet, vit_base") and rows[1][2] == ["gap", "71.23", "gap"]
    assert rows[3] == ("", "not measured", ["gap"] * 3)


def test_no_cell_holds_a_published_number_in_a_measured_row():
    tables = filled(measured("knn", "top1_k20", 0.7), measured("retrieval", "map", 0.4))
    for table in tables.values():
        for _, block in table.blocks:
            texts = {e.text for line in block if not line.published for e in line.entries}
            assert texts <= {"gap", "70.00", "40.00"}


def test_seeds_of_one_recipe_are_one_row_with_their_deviation():
    seeds = [measured("knn", "top1_k20", v, f"dino-s{i}", about={"seed": i}) for i, v in enumerate((0.70, 0.72))]
    _, source, values = lines(filled(*seeds)[1])[1]
    assert source.startswith("measured: dino, ") and source.endswith("2 seeds") and values[1] == "71.00"


def test_a_gap_names_the_commands_that_fill_it():
    tables = filled(measured("knn", "top1_k20", 0.7))
    by_method = {gap.method: gap for gap in tables[1].gaps}
    assert by_method["DINO"].columns == ["mAP", "linear"]
    assert by_method["DINO"].commands == ["make eval-all CHECKPOINTS=runs/dino-imagenet SUITE=imagenet"]
    train, evaluate = by_method["BITS-reset"].commands
    assert train == 'make pretrain OBJECTIVE=bits_reset DATA=imagenet ARGS="backbone.name=vit_base_patch16_224"'
    assert evaluate == "make eval-all CHECKPOINTS=runs/bits_reset-imagenet SUITE=imagenet"


def test_another_backbone_is_shown_but_leaves_the_gap_open():
    table = filled(measured("knn", "top1_k20", 0.3, "small", backbone="vit_tiny_patch16_224-32px"))[1]
    assert "vit_tiny" in lines(table)[1][1] and lines(table)[1][2][1] == "30.00"
    assert next(gap for gap in table.gaps if gap.method == "DINO").columns == ["mAP", "k-NN", "linear"]


def test_a_setting_is_found_by_the_name_of_its_run_and_never_taken_for_the_method():
    name = "bits_fixed-imagenet-beta0.2-stop_after_epoch10"
    tables = filled(measured("retrieval", "map", 0.07, name, objective="bits_fixed"))
    assert lines(tables[4])[1][2] == ["gap", "gap", "7.00", "gap"]
    assert all("7.00" not in values for _, _, values in lines(tables[1]))


@pytest.mark.thorough
def test_names_of_runs_are_those_that_their_commands_write():
    for entry in paper_plan.read_plan(build([])).spec["by_setting"].values():
        for objective, *options in entry["runs"]:
            run = paper.Run(objective, tuple(options))
            command = paper._pretrain_command(paper_plan.read_plan(build([])), run)
            assert f"OBJECTIVE={objective} DATA=imagenet" in command
            assert ("RUN=" in command) == bool(options) and all(option in command for option in options)
            assert run.name("imagenet").startswith(f"{objective}-imagenet")


def test_settings_of_the_commands_exist_in_the_configs():
    root = published.ROOT / "configs"
    spec = yaml.safe_load((root.parent / "evaluate" / "leaderboard" / "paper.yaml").read_text())
    known = yaml.safe_load((root / "pretrain.yaml").read_text())
    bits = yaml.safe_load((root / "objective" / "bits_fixed.yaml").read_text())
    for entry in spec["by_setting"].values():
        for objective, *options in entry["runs"]:
            assert (root / "objective" / f"{objective}.yaml").is_file()
            for option in [*options, *spec["setting"]]:
                place = bits if option.startswith("objective.") else known
                for key in option.partition("=")[0].split("."):
                    assert key in place, option
                    place = place[key]


def test_two_protocols_never_meet_in_a_column():
    protocol = {"k": 20, "resize": 518}
    others = [measured("knn", "top1_k20", 0.6, f"simdino-{i}", objective="simdino", about={"seed": None}) for i in "ab"]
    odd = measured("knn", "top1_k20", 0.9, protocol=protocol)
    table = filled(*others, odd)[1]
    assert "90.00" not in {text for _, _, values in lines(table) for text in values}
    assert sum(values[1] == "60.00" for _, _, values in lines(table)) == 2


def test_a_name_that_is_no_plain_word_never_reaches_a_command():
    for table in filled(measured("knn", "top1_k20", 0.7, "x'; rm -rf $(HOME) '")).values():
        assert all("rm -rf" not in command for gap in table.gaps for command in gap.commands)


def test_the_layout_is_repeated_for_other_data_with_measured_rows_alone():
    small = [
        measured(t, m, v, dataset="shapeworld")
        for t, m, v in (("retrieval", "map", 0.1), ("linear_cached", "top1", 0.3))
    ]
    (table,) = paper.elsewhere(build(small))
    assert table.layout.columns == ["mAP", "k-NN", "linear (linear_cached)"]
    assert [line.published for line in table.blocks[0][1]] == [False] and lines(table)[0][0] == "DINO"
    assert lines(table)[0][2] == ["10.00", "gap", "30.00"]


def test_markdown_and_latex_mark_measured_rows_and_escape_names():
    tables = list(filled(measured("knn", "top1_k20", 0.7123, HOSTILE)).values())
    document = paper_text.markdown("a setting", tables)
    assert "| DINO | published | 35.68 | 72.39 | 76.3 |" in document and "71.23 (70.23–72.23)" in document
    assert "<script>" not in document and r"\|a\|" in document
    source = paper_text.latex(tables)
    assert r"\textit{71.23}" in source and r"\input{" not in source
    assert r"\multicolumn{3}{c}{detection}" in source and source.count(r"\begin{tabular}") == 16


@pytest.mark.thorough
def test_figures_are_drawn_from_curves_beside_records(tmp_path):
    curve = np.linspace([0.1, 0.2], [0.5, 0.4], 10)  # two heads, the first ends better
    probe = measured("linear", "top1", 0.5, outcomes={"curve_top1": curve, "sample_id": np.arange(3)})
    epochs = [
        measured("retrieval", "map", v, name, about={"epoch": e, "parent": parent, "weights_digest": f"w{e}"})
        for e, v, name, parent in ((10, 0.2, "r/epochs/010", "r"), (20, 0.3, "r/epochs/020", "r"), (30, 0.4, "r", ""))
    ]
    for each in (probe, *epochs):
        write(tmp_path / "records", each)
    rebuild(tmp_path / "records", tmp_path, None)
    drawn = {figure.key: figure for figure in curves.figures(build([probe, *epochs]))}
    assert drawn["probing_by_epoch"].curves[0].y == pytest.approx(curve[:, 0].tolist(), abs=1e-4)
    (line,) = drawn["map_by_epoch"].curves
    assert (line.name, line.x, line.y) == ("r", [10, 20, 30], [0.2, 0.3, 0.4])
    files = sorted(path.name for path in (tmp_path / "paper" / "figures").iterdir())
    assert len(files) == 4 and {name.rpartition(".")[2] for name in files} == {"svg", "pdf"}
    before = {name: (tmp_path / "paper" / "figures" / name).read_bytes() for name in files}
    rebuild(tmp_path / "records", tmp_path, None)
    assert {name: (tmp_path / "paper" / "figures" / name).read_bytes() for name in files} == before
    assert re.findall(r"!\[.*\]\((figures/.*svg)\)", (tmp_path / "paper" / "bits.md").read_text())
    for path in (tmp_path / "records").glob("*/*.npz"):
        path.unlink()
    rebuild(tmp_path / "records", tmp_path, None)  # lost outcomes: the figure is gone, the rest is there
    assert len(list((tmp_path / "paper" / "figures").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("names", [("dino-imagenet", "cifar10"), (HOSTILE, HOSTILE)])
def test_latex_compiles_without_edits(tmp_path, names):
    program = shutil.which("tectonic") or shutil.which("pdflatex")
    if not program:
        pytest.skip("neither tectonic nor pdflatex on PATH")
    curve = {"curve_top1": np.linspace(0.1, 0.5, 10), "sample_id": np.arange(3)}
    records = [
        measured("linear", "top1", 0.5, names[0], outcomes=curve),
        measured("knn", "top1_k20", 0.5, names[0], dataset=names[1], notes=[names[0]]),
    ]
    for each in records:
        write(tmp_path / "records", each)
    rebuild(tmp_path / "records", tmp_path, None)
    source = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}%s\end{document}"
    for folder, names_of_files in ((tmp_path, ["leaderboard"]), (tmp_path / "paper", ["bits", "figures"])):
        inputs = "".join(rf"\input{{{name}.tex}}" for name in names_of_files)
        (folder / "main.tex").write_text(source % inputs)
        halt = [] if program.endswith("tectonic") else ["-halt-on-error", "-interaction=nonstopmode"]
        done = subprocess.run([program, *halt, "main.tex"], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (folder / "main.pdf").stat().st_size > 5000


def test_what_latex_cannot_print_is_named_by_its_number():
    assert latex.escape("ü") == "ü" and latex.escape("漢") == "{[}U+6F22{]}"
