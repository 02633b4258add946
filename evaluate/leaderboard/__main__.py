"""`python -m evaluate.leaderboard`: rewrite results/leaderboard.{md,csv,json,tex,html} and print the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate.leaderboard import export, latex, markdown, page, text
from evaluate.leaderboard.table import build
from evaluate.records import read_all, read_statuses, write_whole


def rebuild(records: str | Path = "results/records", output: str | Path = "results") -> str:
    """Write the five files of the leaderboard, each whole or not at all; returns the table as text for a terminal."""
    problems: list[str] = []
    stored, statuses = read_all(records, problems), read_statuses(records, problems)
    table = build(stored, statuses, records, problems)
    rows = export.flat(table)
    files = {
        "md": markdown.render(table.headline),
        "tex": latex.render(table.headline),
        "csv": export.to_csv(rows),
        "json": export.to_json(table, rows),
        "html": page.render(table),
    }
    for ending, content in files.items():
        write_whole(Path(output) / f"leaderboard.{ending}", content.encode())
    return text.render(table.headline)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite leaderboard.{md,csv,json,tex,html} from the records and print the table."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.leaderboard", description=main.__doc__)
    parser.add_argument("--records", default="results/records", help="folder of the records (default: %(default)s)")
    parser.add_argument("--output", default="results", help="folder to write to (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not Path(options.records).is_dir():
        parser.error(f"--records {options.records}: no such folder; evaluate a checkpoint first")
    sys.stdout.write(rebuild(options.records, options.output))
    print(f"\nWrote {options.output}/leaderboard.md, .csv, .json, .tex and .html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
