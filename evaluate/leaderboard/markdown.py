"""Markdown: a summary grid for each dataset, the single seeds behind it, and what did not run."""

from __future__ import annotations

from collections.abc import Sequence

from evaluate.leaderboard.escape import markdown as escape
from evaluate.leaderboard.grid import Block, Entry, seeds, status_lines, summary
from evaluate.leaderboard.table import Table

HEAD = """# Leaderboard

Generated from the records in this repository's results by `python -m evaluate.leaderboard`; do not edit.
Shares are in percent, with 95 % intervals in parentheses. Columns with different protocols are never merged.
"""


def render(table: Table) -> str:
    """The whole document; every name is escaped."""
    parts = [HEAD, _bullets(table.notes)] if table.notes else [HEAD]
    parts += ["## Summary\n", *map(_grid, summary(table))] if table.columns else ["No records yet.\n"]
    if single := seeds(table):
        parts += ["## Single seeds\n", *map(_grid, single)]
    if table.statuses:
        parts.append("## Skipped and failed\n\n" + _bullets(status_lines(table.statuses)))
    if table.problems:
        parts.append("## Records that could not be read\n\n" + _bullets(table.problems))
    return "\n".join(parts)


def _grid(block: Block) -> str:
    rule = [":--"] * block.names + ["--:"] * (len(block.header) - block.names)
    lines = ["| " + " | ".join(map(escape, block.header)) + " |", "|" + "|".join(rule) + "|"]
    lines += ["| " + " | ".join(_cell(entry, line.italic) for entry in line.entries) + " |" for line in block.lines]
    facts = f"{escape(' '.join(block.facts))}\n\n" if block.facts else ""
    return f"### {escape(block.title)}\n\n{facts}" + "\n".join(lines) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {escape(line)}\n" for line in lines)


def _cell(entry: Entry, italic: bool) -> str:
    text = escape(entry.text)
    text = f"**{text}**" if entry.bold else f"*{text}*" if italic else text
    return f"{text} ({escape(entry.detail)})" if entry.detail else text
