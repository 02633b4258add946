"""`python -m evaluate.leaderboard`: rewrite leaderboard.{md,csv,json,tex,html} and paper/ in results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate.leaderboard import (
    ablations,
    adaptation,
    adaptation_text,
    curves,
    escape,
    export,
    figures,
    latex,
    markdown,
    page,
    paper,
    paper_text,
    published,
    text,
)
from evaluate.leaderboard.curves import Figure
from evaluate.leaderboard.table import Table, build
from evaluate.records import read_all, read_statuses, write_whole
from pretrain.arguments import Parser


def rebuild(
    records: str | Path = "results/records", output: str | Path = "results", runs: str | Path | None = "runs"
) -> str:
    """Write the leaderboard and the paper's tables and figures, each file whole or not at all.

    runs: folder in which logs of training are looked for. Returns the table as text for a terminal.
    """
    problems: list[str] = []
    stored, statuses = read_all(records, problems), read_statuses(records, problems)
    table = build(stored, statuses, records, problems)
    headline = table.headline
    drawn, rows = curves.figures(table), export.flat(table)
    files = {
        "md": markdown.render(headline),
        "tex": latex.render(headline),
        "csv": export.to_csv(rows),
        "json": export.to_json(table, rows),
        "html": page.render(table, drawn, Path(runs) if runs else None, output),
    }
    for ending, content in files.items():
        write_whole(Path(output) / f"leaderboard.{ending}", content.encode())
    write_paper(table, drawn, Path(output) / "paper")
    adaptation_text.write(stored, table, Path(output) / "adaptation")
    return text.render(headline)


def write_paper(table: Table, drawn: Sequence[Figure], folder: Path) -> None:
    """The paper's tables and figures with what was measured; nothing where the published numbers are not installed."""
    if not (published.FOLDER / "bits.yaml").is_file():
        return
    setting, tables = paper.fill(table)
    tables += [*paper.elsewhere(table), *ablations.tables(table), *adaptation.layout(table)]
    images = figures.write(drawn, folder / "figures")
    document = paper_text.markdown(setting, tables, [(title, f"figures/{name}.svg") for title, name in images])
    others = paper_text.others_markdown(*published.read_others())
    files = {"bits.md": document, "others.md": others, "bits.tex": paper_text.latex(tables)}
    for name, content in (files | {"figures.tex": figures.latex(images)}).items():
        write_whole(folder / name, content.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite leaderboard.{md,csv,json,tex,html} and paper/ from the records and print the table."""
    parser = Parser(prog="python -m evaluate.leaderboard", description=main.__doc__)
    parser.add_argument("--records", default="results/records", help="folder of the records (default: %(default)s)")
    parser.add_argument("--output", default="results", help="folder to write to (default: %(default)s)")
    parser.add_argument("--runs", default="runs", help="folder of runs, for logs of training (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not Path(options.records).is_dir():
        parser.error(f"--records {options.records}: no such folder; evaluate a checkpoint first")
    try:
        sys.stdout.write(rebuild(options.records, options.output, options.runs))
    except OSError as error:
        parser.error(f"cannot write to {options.output}: {escape.terminal(error)}")
    print(f"\nWrote {options.output}/paper and {options.output}/leaderboard.md, .csv, .json, .tex and .html")
    print(f"Open {(Path(options.output) / 'leaderboard.html').resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
