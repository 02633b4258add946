"""Optional logs beside log.csv: TensorBoard and Weights & Biases, imported only where a run asks for them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Logger(Protocol):
    """Takes the figures of a step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a row of log.csv."""

    def close(self) -> None:
        """Write what is held back."""


class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir runs`."""

    def __init__(self, directory: Path, info: Mapping[str, Any], step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a scalar for each figure."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is held back."""
        self.writer.close()


class WandB:
    """A Weights & Biases run in RUN/wandb; offline unless WANDB_MODE says otherwise (`wandb sync` sends it later)."""

    def __init__(self, directory: Path, info: Mapping[str, Any], step: int):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        config, name = dict(info["config"]), info["name"]
        self.run = wandb.init(project="bitsbench", name=name, dir=str(directory), config=config, mode=mode)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures at their step."""
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        """Write what is held back."""
        self.run.finish()


def check_loggers(names: Sequence[str]) -> None:
    """Raise ValueError for a log that is unknown or not installed, before any work."""
    for name in names:
        if name not in MODULES:
            raise ValueError(f"trainer.loggers: unknown {name!r}; use {', '.join(MODULES)}")
        if importlib.util.find_spec(MODULES[name]) is None:
            raise ValueError(f"trainer.loggers: {name} is not installed; pip install -e '.[loggers]', or leave it out")


def open_loggers(names: Sequence[str], directory: Path, info: Mapping[str, Any], step: int) -> list[Logger]:
    """Open the logs of a run that goes on after `step`."""
    kinds: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB}
    return [kinds[name](directory, info, step) for name in names]
