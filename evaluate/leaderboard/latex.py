"""LaTeX: a booktabs table for each grid of the summary and of its seeds. Needs \\usepackage{booktabs}, nothing else."""

from __future__ import annotations

from evaluate.leaderboard.escape import latex as escape
from evaluate.leaderboard.grid import Block, Entry, seeds, status_lines, summary
from evaluate.leaderboard.table import Table

HEAD = "% Generated from records by `python -m evaluate.leaderboard`; do not edit. Needs \\usepackage{booktabs}.\n"
WIDTH = 4  # columns of scores that fit a page
SEEDS = "The single seeds behind the summary."


def render(table: Table) -> str:
    """All tables, with the notes in each caption and what did not run as comments."""
    notes = " ".join(map(escape, table.notes))
    comments = [*status_lines(table.statuses), *table.problems]
    head = HEAD + "".join(f"% {escape(line)}\n" for line in comments)
    tables = [_table(block, notes) for block in summary(table, WIDTH)]
    return head + "\n".join([*tables, *(_table(block, SEEDS) for block in seeds(table, WIDTH))])


def _table(block: Block, notes: str) -> str:
    facts = "".join(f" {escape(fact)}" for fact in block.facts)
    lines = [
        r"\begin{table}",
        r"\centering\footnotesize",
        rf"\caption{{{escape(block.title)}: percent where no unit is given, 95\,\% intervals beside.{facts} {notes}}}",
        rf"\begin{{tabular}}{{{'l' * block.names}{'r' * (len(block.header) - block.names)}}}",
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
