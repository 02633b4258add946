"""Markdown: one table a task, percent with 95 % intervals, notes and the list of what did not run."""

from __future__ import annotations

from evaluate.leaderboard.escape import markdown as escape
from evaluate.leaderboard.grid import ABOUT, Entry, blocks, status_lines
from evaluate.leaderboard.table import Table

HEAD = """# Leaderboard

Generated from the records in this repository's results by `python -m evaluate.leaderboard`; do not edit.
Shares are in percent, with 95 % intervals in parentheses. Columns with different protocols are never merged.
"""


def render(table: Table) -> str:
    """The whole document; every name is escaped."""
    parts = [HEAD, *(f"> {escape(note)}\n" for note in table.notes)]
    for block in blocks(table):
        rule = [":--" if i < len(ABOUT) else "--:" for i in range(len(block.header))]
        lines = ["| " + " | ".join(map(escape, block.header)) + " |", "|" + "|".join(rule) + "|"]
        lines += ["| " + " | ".join(_cell(entry, line.italic) for entry in line.entries) + " |" for line in block.lines]
        parts.append(f"## {escape(block.task)}\n\n" + "\n".join(lines) + "\n")
    if not table.columns:
        parts.append("No records yet.\n")
    if table.statuses:
        parts.append("## Skipped and failed\n\n" + _bullets(status_lines(table.statuses)))
    if table.problems:
        parts.append("## Records that could not be read\n\n" + _bullets(table.problems))
    return "\n".join(parts)


def _bullets(lines: list[str]) -> str:
    return "".join(f"- {escape(line)}\n" for line in lines)


def _cell(entry: Entry, italic: bool) -> str:
    text = escape(entry.text)
    text = f"**{text}**" if entry.bold else f"*{text}*" if italic else text
    return f"{text} ({escape(entry.detail)})" if entry.detail else text
