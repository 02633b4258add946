"""`python -m pretrain objective=bits_reset data=cifar10`: train a backbone (see `pretrain.train`)."""

from __future__ import annotations

import sys
from typing import Any

from pretrain import cli


def train(cfg: Any) -> Any:
    """Train once the configuration is known to be sound: importing the networks takes seconds."""
    from pretrain.train import train

    return train(cfg)


def main() -> None:
    """Entry point of `python -m pretrain`; with --multirun, an experiment that is a sweep trains all its runs."""
    words = [word for word in sys.argv[1:] if word not in ("-m", "--multirun")]
    if len(words) < len(sys.argv) - 1 and any(word.lstrip("+").startswith("experiment=") for word in words):
        from pretrain import sweep  # it starts this program for every run

        return sweep.main(words)
    cli.run(train, "pretrain")


if __name__ == "__main__":
    main()
