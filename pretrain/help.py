"""`--help` of the entry points at 80 columns, read from the configurations, so that it tells what there is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

WIDTH = 80
COLUMN = 30
SETTING = re.compile(r"^( *)(\w+):(?: +(?!#)(.*?))?(?:\s+# (.*))?$")

MORE = """\
--cfg job              print the settings that a command would run with
--multirun             run once for every combination of values: seed=0,1,2
-sc install=bash       shell completion (zsh, fish), see docs/index.md
--hydra-help           everything else that Hydra takes"""


def help_text(configs: Path, config_name: str) -> str:
    """Usage, choices and settings of an entry point, from configs/<config_name>.yaml and the groups that it names."""
    lines = (configs / f"{config_name}.yaml").read_text("utf-8").splitlines()
    about = [line[2:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    parts = [[part for line in about for part in wrapped(line, 0)], ["", "Choices, GROUP=NAME:"]]
    for group in groups(lines, configs):
        names = ", ".join(sorted(file.stem for file in (configs / group).glob("*.yaml")))
        parts.append(pair(f"+{group}" if group == "experiment" else group, names))
    parts += [["", "Settings, KEY=VALUE, with their defaults:"], list(settings(lines)), ["", "Also:"]]
    parts.append([f"  {line}" for line in MORE.splitlines()])
    return "\n".join(line for part in parts for line in part)


def groups(lines: list[str], configs: Path) -> list[str]:
    """Groups of configurations that a choice may be taken from."""
    named = [match[1] for line in lines if (match := re.match(r"\s+- (?:optional )?(\w+): ", line))]
    return [name for name in [*named, "experiment"] if (configs / name).is_dir()][: None if len(named) > 2 else 1]


def settings(lines: list[str]) -> Iterator[str]:
    """A line or two for every setting; nested ones are named in full."""
    path: list[tuple[int, str]] = []
    skipped = ("defaults", "hydra")
    for line in lines:
        found = SETTING.match(line)
        if not found or line.startswith("#"):
            continue
        indent, name, value, comment = len(found[1]), found[2], found[3] or "", found[4] or ""
        path = [(depth, key) for depth, key in path if depth < indent] + [(indent, name)]
        keys = [key for _, key in path]
        if keys[0] in skipped or name == "_target_":
            continue
        if value or comment:
            yield from pair(".".join(keys) + (f"={value}" if value else ""), comment)


def pair(left: str, right: str) -> list[str]:
    """A name and what it means, side by side where there is room."""
    if not right:
        return wrapped(left, 2, 4)
    body = wrapped(right, COLUMN)
    if len(left) + 4 > COLUMN:
        return [*wrapped(left, 2, 4), *body]
    return [f"  {left}".ljust(COLUMN) + body[0].lstrip(), *body[1:]]


def wrapped(text: str, indent: int, further: int | None = None) -> list[str]:
    """Text in lines of at most 80 columns."""
    first, rest = " " * indent, " " * (indent if further is None else further)
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [""]
