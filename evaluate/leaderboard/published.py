"""Numbers that papers publish, read from results/published: never measured here, never mixed with what is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "published"
Number = float | int | str  # a word where the paper has a word ("collapse")


@dataclass(frozen=True)
class Group:
    """A block of rows under one heading, each with a number for every column."""

    name: str
    rows: dict[str, list[Number]]


@dataclass(frozen=True)
class PublishedTable:
    """A table as printed: `spans` are the heads above the columns with their widths, `axis` names what columns are."""

    key: int | str
    caption: str
    unit: str
    columns: list[str]
    groups: list[Group]
    spans: list[tuple[str, int]]
    axis: str = ""

    @property
    def title(self) -> str:
        """Number and caption."""
        return f"Table {self.key}. {self.caption}" if isinstance(self.key, int) else self.caption

    @property
    def labels(self) -> list[str]:
        """Columns with what stands above or before them: "detection AP50", "beta = 0.1"."""
        above = [name for name, width in self.spans for _ in range(width)] or [""] * len(self.columns)
        before = f"{self.axis} = " if self.axis else ""
        return [f"{span} {before}{column}".strip() for span, column in zip(above, self.columns, strict=True)]


@dataclass(frozen=True)
class Other:
    """A figure of another source: model, where and how it was obtained, and its numbers."""

    model: str
    source: str
    setting: str
    values: list[float | None]


def read_tables(folder: Path = FOLDER) -> tuple[str, list[PublishedTable]]:
    """Setting in words and every table of the BITS paper; raises FileNotFoundError when the file is not there."""
    data = yaml.safe_load((folder / "bits.yaml").read_text("utf-8"))
    return f"{data['setting']} (arXiv {data['source']['arxiv']})", [
        _table(key, table, data["unit"]) for key, table in data["tables"].items()
    ]


def _table(key: int | str, data: dict[str, Any], unit: str) -> PublishedTable:
    groups = [Group(group.get("name", ""), group["rows"]) for group in data["groups"]]
    spans = [(name, width) for name, width in data.get("spans", [])]
    shared = {"columns": data["columns"], "groups": groups, "spans": spans, "axis": data.get("axis", "")}
    return PublishedTable(key, data["caption"], data.get("unit", unit), **shared)


def read_others(folder: Path = FOLDER) -> tuple[list[str], list[Other]]:
    """Columns and rows of what other sources publish."""
    data = yaml.safe_load((folder / "others.yaml").read_text("utf-8"))
    return data["columns"], [Other(**row) for row in data["rows"]]


def written(value: Number | None) -> str:
    """A published number as it is printed; a dash where there is none."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:g}"


def missing_configs(task: str, dataset: str, configs: Path = ROOT / "configs") -> list[str]:
    """Files of a task and of a dataset that this suite does not have (yet)."""
    files = (f"task/{task}.yaml", f"data/{dataset}.yaml")
    return [f"configs/{file}" for file in files if not (configs / file).is_file()]


def suite_with(places: Sequence[tuple[str, str]], names: Sequence[str], configs: Path = ROOT / "configs") -> str | None:
    """The first of these suites that holds all (task, dataset) pairs."""
    for name in names:
        file = configs / "suite" / f"{name}.yaml"
        if file.is_file():
            entries = {(e["task"], e["data"]) for e in yaml.safe_load(file.read_text("utf-8"))["tasks"]}
            if entries.issuperset(places):
                return name
    return None
