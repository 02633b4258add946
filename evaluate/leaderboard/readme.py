"""`python -m evaluate.leaderboard.readme`: put the tables of generated leaderboards between their markers in README.md.

A block `<!-- NAME: path/to/leaderboard.md -->` ... `<!-- end -->` is replaced by that file's tables, so that no number
in the README is typed by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from evaluate.records import write_whole

BLOCK = re.compile(r"(<!-- \w+: (?P<path>[\w./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(leaderboard: str) -> str:
    """The tables of a generated leaderboard, each under its task's name in bold; without notes and skipped tasks."""
    sections = re.split(r"^## ", leaderboard, flags=re.MULTILINE)[1:]
    shown = [section for section in sections if "\n|" in section]
    return "\n".join(f"**{title}**\n\n{body.strip()}\n" for title, _, body in (s.partition("\n") for s in shown))


def fill(readme: str, root: Path) -> str:
    """The README with every block filled from the file that it names, relative to `root`.

    Raises FileNotFoundError when a named file is missing.
    """
    return BLOCK.sub(lambda found: found[1] + tables((root / found["path"]).read_text()) + found[3], readme)


def main() -> None:
    """Rewrite README.md of this checkout."""
    root = Path(__file__).resolve().parents[2]
    write_whole(root / "README.md", fill((root / "README.md").read_text(), root).encode())


if __name__ == "__main__":
    main()
