"""`python -m evaluate.leaderboard.readme`: put summaries of leaderboards between their markers in README.md.

A block `<!-- NAME: path/to/leaderboard.md -->` ... `<!-- end -->` is replaced by that file's summary, so that no number
in the README is typed by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from evaluate.records import write_whole

BLOCK = re.compile(r"(<!-- \w+: (?P<path>[\w./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(leaderboard: str) -> str:
    """The summary of a generated leaderboard, each grid under its dataset's name in bold."""
    _, _, summary = leaderboard.partition("\n## Summary\n")
    sections = re.split(r"^### ", re.split(r"^## ", summary, flags=re.MULTILINE)[0], flags=re.MULTILINE)[1:]
    return "\n".join(map(_shortened, sections))


def _shortened(section: str) -> str:
    """Title and facts of a grid in one line, then its table."""
    head, _, table = section.partition("\n|")
    title, _, facts = head.partition("\n")
    return " ".join(filter(None, [f"**{title}**", facts.strip()])) + f"\n\n|{table.rstrip()}\n"


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
