"""The summary as plain text for a terminal, the best and tied marked by an asterisk."""

from __future__ import annotations

from evaluate.leaderboard.escape import terminal as escape
from evaluate.leaderboard.grid import Block, Entry, status_lines, summary
from evaluate.leaderboard.table import Table

WIDTH = 4  # columns of scores beside each other


def render(table: Table) -> str:
    """The summary with its notes; control characters in names are removed."""
    parts = [_block(block) for block in summary(table, WIDTH)] or ["No records yet."]
    lines = [*table.notes, *status_lines(table.statuses), *table.problems]
    return "\n\n".join([*parts, "\n".join(map(escape, lines))]).strip() + "\n"


def _block(block: Block) -> str:
    rows = [[escape(cell) for cell in block.header]]
    rows += [[_cell(entry) for entry in line.entries] for line in block.lines]
    head = escape(" ".join([f"{block.title}." if block.facts else block.title, *block.facts]))
    return f"{head}\n{aligned(rows, left=block.names)}"


def aligned(rows: list[list[str]], left: int) -> str:
    """Rows as columns of text: the first `left` columns flush left, the rest flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join("  " + line.rstrip() for line in lines)


def _cell(entry: Entry) -> str:
    text = escape(entry.text) + ("*" if entry.bold else " " if entry.detail else "")
    return f"{text} ({entry.detail})" if entry.detail else text
