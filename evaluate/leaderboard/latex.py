"""LaTeX: one booktabs table a task. Needs \\usepackage{booktabs} and nothing else."""

from __future__ import annotations

from evaluate.leaderboard.escape import latex as escape
from evaluate.leaderboard.grid import ABOUT, Block, Entry, blocks, status_lines
from evaluate.leaderboard.table import Table

HEAD = "% Generated from records by `python -m evaluate.leaderboard`; do not edit. Needs \\usepackage{booktabs}.\n"


def render(table: Table) -> str:
    """All tables, with the notes in each caption and what did not run as comments."""
    notes = " ".join(map(escape, table.notes))
    comments = [*status_lines(table.statuses), *table.problems]
    head = HEAD + "".join(f"% {escape(line)}\n" for line in comments)
    return head + "\n".join(_table(block, notes) for block in blocks(table))


def _table(block: Block, notes: str) -> str:
    width = len(block.header)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(block.task)}: percent where no unit is given, 95\,\% intervals beside. {notes}}}",
        rf"\begin{{tabular}}{{{'l' * len(ABOUT)}{'r' * (width - len(ABOUT))}}}",
        r"\toprule",
        " & ".join(map(escape, block.header)) + r" \\",
        r"\midrule",
    ]
    for i, line in enumerate(block.lines):
        if line.italic and i and not block.lines[i - 1].italic:
            lines.append(r"\midrule")
        lines.append(" & ".join(_cell(entry, line.italic) for entry in line.entries) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _cell(entry: Entry, italic: bool) -> str:
    text = escape(entry.text)
    text = rf"\textbf{{{text}}}" if entry.bold else rf"\textit{{{text}}}" if italic else text
    return rf"{text} {{\scriptsize [{escape(entry.detail)}]}}" if entry.detail else text
