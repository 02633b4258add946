"""The papers' numbers in results/published: what was transcribed is what is published, and agrees with itself."""

import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "published"
BITS = yaml.safe_load((PUBLISHED / "bits.yaml").read_text())
OTHERS = yaml.safe_load((PUBLISHED / "others.yaml").read_text())
TABLES = BITS["tables"]
METHODS = ["DINO", "SimDINO", "BITS-fixed", "BITS-reset"]


def rows(number, group=0):
    return TABLES[number]["groups"][group]["rows"]


def cell(number, row, column, group=0):
    return rows(number, group)[row][TABLES[number]["columns"].index(column)]


@pytest.mark.parametrize("number", list(TABLES))
def test_every_row_has_a_cell_for_every_column(number):
    table = TABLES[number]
    assert table["caption"] and sum(width for _, width in table.get("spans", [["", len(table["columns"])]])) == len(
        table["columns"]
    )
    for group in table["groups"]:
        assert all(len(values) == len(table["columns"]) for values in group["rows"].values())


def test_the_fourteen_tables_are_there_with_their_source():
    assert [number for number in TABLES if isinstance(number, int)] == list(range(1, 15))
    assert BITS["source"]["arxiv"] == "2602.09764"
    assert all(list(rows(n)) == METHODS for n in (1, 2, 5, 6, 7, 8, 14))


@pytest.mark.parametrize(
    ("number", "row", "column", "group", "value"),
    [
        (1, "BITS-reset", "mAP", 0, 50.64),
        (1, "SimDINO", "k-NN", 0, 69.52),
        (2, "BITS-reset", "r_eff", 0, 480),
        (3, "mAP", "cosine", 0, 36.34),
        (4, "mAP", "0.1", 0, 10.46),
        (5, "BITS-fixed", "COCO", 0, 85.4),
        (6, "BITS-reset", "AP50", 0, 6.4),
        (7, "BITS-fixed", "(J&F)_m", 0, 62.78),
        (8, "BITS-fixed", "iNat2019", 1, 54.39),
        (9, "mAP", "infinity", 0, 43.44),
        (10, "mAP", "soft tau=1", 0, "collapse"),
        (11, "mAP", "512", 0, 39.32),
        (13, "mAP", "1e-6", 0, 43.05),
        ("codes", "mAP", "32 bits", 0, 40.35),
    ],
)
def test_cells_are_those_of_the_paper(number, row, column, group, value):
    assert cell(number, row, column, group) == value


SUMS = {1: "763.21", 2: "2605", 3: "79.78", 4: "18.99", 5: "1135.87", 6: "69.3", 7: "747.28", 8: "2214.37"}
SUMS |= {9: "239.44", 10: "216.03", 11: "120.83", 12: "213.72", 13: "86.49", 14: "5076.21"}


@pytest.mark.parametrize("number", list(SUMS))
def test_the_numbers_of_a_table_add_up_to_the_sum_taken_from_the_paper(number):
    """The sums were taken apart from this transcription, so that a wrong digit shows where the paper is not at hand."""
    values = [v for group in TABLES[number]["groups"] for row in group["rows"].values() for v in row if v != "collapse"]
    assert sum(Decimal(str(v)) for v in values) == Decimal(SUMS[number])


def test_table_8_is_the_linear_columns_of_table_14():
    for group in range(2):
        assert {m: values[2::3] for m, values in rows(14, group).items()} == rows(8, group)


def test_the_bits_rows_of_table_1_are_the_best_of_the_ablations():
    fixed, reset = cell(1, "BITS-fixed", "mAP"), cell(1, "BITS-reset", "mAP")
    assert fixed == cell(3, "mAP", "BCE") == cell(9, "mAP", "infinity") == cell(10, "mAP", "hard")
    assert fixed == cell(13, "mAP", "5e-5") and reset == cell(9, "mAP", "10") == cell("codes", "mAP", "features")
    assert cell(11, "mAP", "256") == cell(12, "mAP", "1") == cell(13, "mAP", "1e-6")


def test_other_sources_are_named_for_every_row():
    for row in OTHERS["rows"]:
        assert row["source"] in OTHERS["sources"] and row["setting"] and len(row["values"]) == len(OTHERS["columns"])
    assert len({(r["model"], r["source"], r["setting"]) for r in OTHERS["rows"]}) == len(OTHERS["rows"]) == 17


# ---- against the document they were transcribed from


@pytest.fixture(scope="module")
def document():
    beside = Path(__file__).resolve().parents[2] / "shared" / "design" / "methods.md"
    path = Path(os.environ.get("BITSBENCH_METHODS") or beside)
    if not path.is_file():
        pytest.skip("no document with the published tables beside the checkout, and BITSBENCH_METHODS names none")
    return path.read_text("utf-8")


def markdown_rows(text):
    """Cells of the first table in `text` without its rule, as text."""
    block = re.search(r"(?:^\|.*\|\n?)+", text, re.M)
    lines = [[c.strip() for c in line.strip("|\n ").split("|")] for line in block[0].splitlines()]
    return [line for line in lines if not set("".join(line)) <= set("-: ")]


def section(document, number):
    begin = document.index(f"\nTable {number}.")
    end = re.search(r"\nTable \d+\.|\nBinary codes|\nCurves", document[begin + 5 :])
    return document[begin : begin + 5 + end.start()]


def transcribed(number):
    """Heads and rows of our table, groups as italic rows, every value as it would be written."""
    found = []
    for group in TABLES[number]["groups"]:
        found += [[f"*{group['name']}*"]] if "name" in group else []
        found += [[name, *map(as_written, values)] for name, values in group["rows"].items()]
    return found


def as_written(value):
    return value if isinstance(value, str) else f"{value:g}"


def normalised(lines):
    return [[as_written(float(c)) if re.fullmatch(r"[\d.]+", c) else c for c in line if c] for line in lines]


@pytest.mark.parametrize("number", [1, 2, 5, 6, 7, 8, 14])
def test_tables_of_methods_equal_the_document_cell_by_cell(document, number):
    head, *lines = markdown_rows(section(document, number))
    assert normalised(lines) == transcribed(number)
    heads = [f"{name} " * width for name, width in TABLES[number].get("spans", [])]
    spans = "".join(heads).split() or [""] * (len(head) - 1)
    for written, span, column in zip(head[1:], spans, TABLES[number]["columns"], strict=True):
        assert written.split()[-1] == column.split()[-1] and written[:3] in (column[:3], span[:3])


@pytest.mark.parametrize("number", [4, 9, 10, 12])
def test_tables_of_settings_equal_the_document_cell_by_cell(document, number):
    head, values = markdown_rows(section(document, number))
    named = head[0] == TABLES[number].get("axis")
    assert head[named:] == TABLES[number]["columns"]
    assert normalised([values[named:]])[0] == [as_written(v) for v in rows(number)["mAP"]]


@pytest.mark.parametrize(("number", "pattern"), [(3, r"(BCE|cosine) ([\d.]+\d)"), (11, r"(\d+) -> ([\d.]+\d)")])
def test_tables_in_a_sentence_equal_the_document(document, number, pattern):
    found = dict(re.findall(pattern, section(document, number)))
    assert found == dict(zip(TABLES[number]["columns"], map(as_written, rows(number)["mAP"]), strict=True))


def test_the_last_learning_rates_and_the_codes_equal_the_document(document):
    found = dict(re.findall(r"(\de-\d) -> ([\d.]+\d)", section(document, 13)))
    assert found == dict(zip(TABLES[13]["columns"], map(as_written, rows(13)["mAP"]), strict=True))
    line = next(line for line in document.splitlines() if line.startswith("Retrieval mAP with 256 / 128 / 64 / 32"))
    assert [float(v) for v in re.findall(r"\d+\.\d+", line)] == rows("codes")["mAP"]
    line = next(line for line in document.splitlines() if line.startswith("Binary codes (text)"))
    assert [float(v) for v in re.findall(r"about (\d\.\d)", line)] == rows("entropy")["mean"]


def test_other_figures_equal_the_document_row_by_row(document):
    lines = markdown_rows(document[document.index("12.2 Other published figures") :])[1:]
    lines = [line for line in lines if "not available" not in " ".join(line)]
    previous = ""
    for line, ours in zip(lines, OTHERS["rows"], strict=True):
        source = previous if line[1].startswith("same") else line[1]
        previous = source
        assert (line[0], source) == (ours["model"], ours["source"].replace("Barlow Twins", "Barlow"))
        assert [None if v == "-" else float(v) for v in line[3:]] == ours["values"]
        assert set(re.findall(r"\d+", line[2])) == set(re.findall(r"\d+", ours["setting"])), line
        assert "their run" not in ours["setting"] or "their run" in line[1]
