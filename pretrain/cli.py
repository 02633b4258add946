"""Entry points: compose a Hydra configuration, and end with one clear line when the user's input is at fault."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.help import help_text

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Interrupted(Exception):
    """Work that was stopped on request after saving; the message says how to go on."""


def run(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `main` with configs/<config_name>.yaml and the command line's overrides.

    Faults in the input end in one line on stderr and exit code 1, interruption in 130; BITSBENCH_DEBUG=1 shows
    tracebacks. Anything else is a bug and keeps its traceback.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        return print(help_text(CONFIGS, config_name))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would otherwise print and exit on its own

    def job(cfg: DictConfig) -> Any:
        with one_line_errors(config_name):  # inside Hydra's own reporting, which would add lines of its own
            return main(cfg)

    with one_line_errors(config_name):
        hydra.main(config_path=str(CONFIGS), config_name=config_name, version_base=None)(job)()


@contextlib.contextmanager
def one_line_errors(config_name: str) -> Iterator[None]:
    """Turn faults in the input into one line on stderr and an exit code."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        print(f"stopped{f': {printable(error)}' if str(error) else ''}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("BITSBENCH_DEBUG"):
            raise
        print(f"error: {printable(explain(error, config_name))}", file=sys.stderr)
        sys.exit(1)


def printable(text: object) -> str:
    """One line in which names that a file gave cannot drive a terminal: what does not print becomes a space."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def explain(error: Exception, config_name: str) -> str:
    """One line for an error, with the nearest known name where a configuration key or choice is unknown."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, config_name)  # what the class itself said
    text = str(error).strip()
    if "Original Traceback" in text:  # raised in a loader's worker, which wraps the message in a traceback
        text = text.splitlines()[-1].split(": ", 1)[-1]
    missing = re.search(r"[Cc]ould not (?:find|load) '?([\w/.-]+)'?", text)
    if missing and (CONFIGS / missing[1].split("/")[0]).is_dir() and "/" in missing[1]:
        group, _, choice = missing[1].rpartition("/")
        known = sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
        return f"unknown {group} {choice!r}; {nearest(choice, known)}"
    unknown = re.search(r"(?:Key|Could not override) '([\w.@/-]+)'", text)
    if unknown and ("not in struct" in text or "Could not override" in text):
        full = re.search(r"full_key: ([\w.]+)", text)
        name = full[1] if full else unknown[1]
        return f"unknown configuration key {name!r}; {nearest(name, list(known_keys(config_name)))}"
    return " ".join(text.split()) or type(error).__name__


def nearest(name: str, known: list[str]) -> str:
    """`did you mean ...` with the closest of the known names, or the list of them."""
    leaf = {key.rsplit(".", 1)[-1]: key for key in known}
    close = difflib.get_close_matches(name, known, 1) or [
        leaf[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaf), 1)
    ]
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known[:20])}"


def known_keys(config_name: str) -> Iterator[str]:
    """All dotted keys of the default configuration."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        config = hydra.compose(config_name)
    stack: list[tuple[str, Any]] = [("", OmegaConf.to_container(config, resolve=False))]
    while stack:
        prefix, node = stack.pop()
        for key, value in node.items() if isinstance(node, dict) else ():
            yield f"{prefix}{key}"
            stack.append((f"{prefix}{key}.", value))
