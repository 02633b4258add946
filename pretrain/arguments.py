"""Command lines without Hydra: what is wrong is said in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An `argparse` parser that ends in one line on stderr and exit code 2; `--help` shows the usage."""

    def error(self, message: str) -> NoReturn:
        """End with `message`, which names the value and what would work."""
        self.exit(2, f"{self.prog}: error: {message}\n")
