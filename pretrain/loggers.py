"""Optional logs beside log.csv: TensorBoard, Weights & Biases, MLflow, imported only where a run asks for them."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


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


class MLflow:
    """An MLflow run in RUN/mlflow.db, or where MLFLOW_TRACKING_URI points; `mlflow ui --backend-store-uri` shows it.

    A run that goes on adds to what it has.
    """

    def __init__(self, directory: Path, info: Mapping[str, Any], step: int):
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.metric = Metric
        place = directory.resolve()
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place / 'mlflow.db'}")
        found = self.client.get_experiment_by_name("bitsbench")
        experiment = found.experiment_id if found else self.client.create_experiment(
            "bitsbench", None if "MLFLOW_TRACKING_URI" in os.environ else (place / "mlflow").as_uri()
        )  # fmt: skip
        tag = f"tags.folder = '{place}'"
        begun = self.client.search_runs([experiment], tag, max_results=1) if step else []
        if begun:
            self.run = begun[0].info.run_id
            return
        self.run = self.client.create_run(experiment, run_name=info["name"], tags={"folder": str(place)}).info.run_id
        settings = {
            f"{group}.{key}": value for group, values in info["config"].items() for key, value in _items(values)
        }
        params = [Param(key.rstrip("."), str(value)[:500]) for key, value in settings.items()]
        for first in range(0, len(params), 100):  # the most that one call takes
            self.client.log_batch(self.run, params=params[first : first + 100])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures at their step."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.run, [self.metric(name, value, now, step) for name, value in figures.items()])

    def close(self) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.run)


def _items(values: Any) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, Mapping) else [("", values)]


def check_loggers(names: Sequence[str]) -> None:
    """Raise ValueError for a log that is unknown or not installed, before any work."""
    for name in names:
        if name not in MODULES:
            raise ValueError(f"trainer.loggers: unknown {name!r}; use {', '.join(MODULES)}")
        if importlib.util.find_spec(MODULES[name]) is None:
            raise ValueError(f"trainer.loggers: {name} is not installed; pip install -e '.[loggers]', or leave it out")


def open_loggers(names: Sequence[str], directory: Path, info: Mapping[str, Any], step: int) -> list[Logger]:
    """Open the logs of a run that goes on after `step`."""
    kinds: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    return [kinds[name](directory, info, step) for name in names]
