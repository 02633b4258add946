"""What the pages take from the repository itself while they are built, so that it cannot drift.

<!-- protocols -->, suites, datasets, objectives, sweeps, importer; <!-- file: PATH -->, <!-- readme: TITLE -->
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def header(file: Path) -> str:
    """The comment that a configuration opens with, as one text; lines that are commands are left out."""
    lines = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# python -m", "# @package", "# Command:")):
            lines.append(line[2:])
    return " ".join(lines)


def safe(text: str) -> str:
    """Text that Markdown shows as it is, with DOIs and arXiv numbers as links."""
    text = re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def described(group: str, *, keep: Any = lambda spec: True) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, opening comment and content of the configurations of a group."""
    files = sorted((CONFIGS / group).glob("*.yaml"))
    found = [(file.stem, header(file), yaml.safe_load(file.read_text("utf-8")) or {}) for file in files]
    return [each for each in found if keep(each[2])]


def protocols() -> str:
    """Every task: source and settings."""
    parts = []
    for name, about, spec in described("task"):
        settings = ", ".join(f"`{key}={value}`" for key, value in spec.items() if key != "_target_")
        source = spec["_target_"].rpartition(".")[0].replace(".", "/") + ".py"
        parts.append(f"### {name}\n\n{safe(about)}\n\n{settings or 'No settings.'} Code: `{source}`.")
    return "\n\n".join(parts)


def suites() -> str:
    """Every suite and its tasks by dataset."""
    lines = ["| Suite | What it is | Tasks |", "|:--|:--|:--|"]
    for name, about, spec in described("suite"):
        by_data: dict[str, list[str]] = {}
        for entry in spec["tasks"]:
            by_data.setdefault(entry["data"], []).append(entry["task"])
        tasks = "; ".join(f"{data}: {', '.join(dict.fromkeys(names))}" for data, names in by_data.items())
        lines.append(f"| {name} | {safe(about)} | {safe(tasks)} |")
    return "\n".join(lines)


def datasets() -> str:
    """Every dataset: layout and splits."""
    lines = ["| Name | Where its files lie | Splits |", "|:--|:--|:--|"]
    for name, about, spec in described("data"):
        lines.append(f"| {name} | {safe(about)} | {', '.join(spec['splits'])} |")
    return "\n".join(lines)


def objectives() -> str:
    """Every objective with its source."""
    return "\n".join(f"- **{name}**: {safe(about)}" for name, about, _ in described("objective"))


def sweeps() -> str:
    """Every ablation with its command."""
    found = described("experiment", keep=lambda spec: "sweep" in spec)
    lines = ["| Ablation | Command |", "|:--|:--|"]
    for name, _, spec in found:
        lines.append(f"| {safe(spec['title'])} | `make ablation TABLE={name.removeprefix('table')}` |")
    return "\n".join(lines)


def importer() -> str:
    """What names of checkpoints mean, as the program itself documents it."""
    said = ast.get_docstring(ast.parse((ROOT / "evaluate" / "importer.py").read_text("utf-8"))) or ""
    return "\n".join(said.splitlines()[2:]).split("\n\n")[0]


GENERATED = {"protocols": protocols, "suites": suites, "datasets": datasets, "objectives": objectives, "sweeps": sweeps}
GENERATED |= {"importer": importer}


def readme(title: str) -> str:
    """A section of README.md with its heading; nothing where there is none.

    Links into the repository become names; the marks around generated tables are left out.
    """
    text = re.sub(r"^<!-- .* -->\n", "", (ROOT / "README.md").read_text("utf-8"), flags=re.M)
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.M | re.S)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"`\1`", found[0]).rstrip() if found else ""


def fill(markdown: str) -> str:
    """A page with everything generated in its place; raises ValueError for a mark that is unknown."""

    def part(match: re.Match[str]) -> str:
        word = match[1].strip()
        if word.startswith("file: "):
            return (ROOT / word.removeprefix("file: ")).read_text("utf-8").rstrip()
        if word.startswith("readme: "):
            return readme(word.removeprefix("readme: "))
        if word not in GENERATED:
            raise ValueError(f"unknown mark <!-- {word} -->; use {', '.join(GENERATED)}, file: PATH or readme: TITLE")
        return GENERATED[word]()

    return re.sub(r"<!--(.*?)-->", part, markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown)
