"""The table as plain text for a terminal: one block a task, the best and tied marked by an asterisk."""

from __future__ import annotations

from evaluate.leaderboard.escape import terminal as escape
from evaluate.leaderboard.grid import ABOUT, Block, Entry, blocks, status_lines
from evaluate.leaderboard.table import Table


def render(table: Table) -> str:
    """The whole table; control characters in names are removed."""
    parts = [_block(block) for block in blocks(table)] or ["No records yet."]
    lines = [*table.notes, *status_lines(table.statuses), *table.problems]
    return "\n\n".join([*parts, "\n".join(map(escape, lines))]).strip() + "\n"


def _block(block: Block) -> str:
    rows = [[escape(cell) for cell in block.header]]
    rows += [[_cell(entry) for entry in line.entries] for line in block.lines]
    return f"{escape(block.task)}\n{aligned(rows, left=len(ABOUT))}"


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
