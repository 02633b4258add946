"""The README's numbers come from generated tables, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from evaluate.leaderboard.readme import BLOCK, fill, tables

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_in_the_readme_equal_the_generated_ones() -> None:
    assert len(list(BLOCK.finditer(README))) == 3
    assert fill(README, ROOT) == README


def test_the_summary_is_kept_whole_and_everything_after_it_left_out() -> None:
    source = "# Leaderboard\n\nnotes\n\n## Summary\n\n### cifar10\n\nfacts\n\n| a |\n|:--|\n| 1 |\n\n"
    source += "### voc\n\n| b |\n|:--|\n| 2 |\n\n## Single seeds\n\n### cifar10\n\n| c |\n|:--|\n| 3 |\n"
    assert tables(source) == "**cifar10** facts\n\n| a |\n|:--|\n| 1 |\n\n**voc**\n\n| b |\n|:--|\n| 2 |\n"


def test_every_file_and_make_target_that_the_readme_names_exists() -> None:
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / link).exists(), link
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)) <= targets
    tree = re.search(r"    pretrain/ .*?\n\n", README, re.DOTALL)
    assert tree is not None
    for name in re.findall(r"\b(\w+\.py)\b", tree[0]):
        assert list(ROOT.glob(f"pretrain/{name}")) or list(ROOT.glob(f"evaluate/{name}")), name
