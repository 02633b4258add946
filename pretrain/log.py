"""What a person watches: progress with an estimate, log.csv, and a word when training goes wrong."""

from __future__ import annotations

import csv
import io
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from pretrain import diagnostics
from pretrain.checkpoint import atomic_file
from pretrain.loggers import open_loggers
from pretrain.system import System, add_row

PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow")


def describe_machine(fabric: Fabric) -> dict[str, Any]:
    """Commit, package versions and hardware, for run.json."""
    root = Path(__file__).resolve().parent.parent
    try:
        asked = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True)
        commit = asked.stdout.strip()
    except OSError:  # no git here
        commit = ""
    cuda = torch.cuda.get_device_name() if fabric.device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "commit": commit or "unknown",
        "packages": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hardware": f"{fabric.world_size} x {cuda}, {torch.get_num_threads()} threads",
    }


class Progress:
    """A progress bar over steps with images per second and time left; now and then a line where no terminal is."""

    def __init__(self, total: int, run: Any, quiet: bool):
        self.bar = tqdm(
            total=total,
            initial=run.step,
            disable=quiet,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 20,
            desc=run.info["name"],
        )
        self.batch, self.first, self.began = run.batches.batch_size, run.step, time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def advance(self, scalars: dict[str, Tensor]) -> None:
        """One step done."""
        done = self.bar.n + 1 - self.first
        if not self.bar.disable and done % 10 == 0:
            rate = self.batch * done / (time.monotonic() - self.began)
            self.bar.set_postfix_str(f"loss {scalars['loss'].item():.3f}, {rate:.0f} images/s", refresh=False)
        self.bar.update()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()


class Log:
    """log.csv of a run: a row every `trainer.log_every` steps (means since the last row) and at each epoch's end."""

    def __init__(self, run: Any, fresh: bool):
        self.main, self.path = run.fabric.is_global_zero, run.directory / "log.csv"
        self.every = run.trainer["log_every"]
        self.file: TextIO | None = None
        self.columns: list[str] = []
        if self.main:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                open(self.path, "a").close()
            except OSError as error:
                raise OSError(
                    f"cannot write {self.path}: {error.strerror}; choose a folder you may write: runs=..."
                ) from error
        self.said: set[str] = set()
        self.system = System(run.fabric.device)
        self.loggers = open_loggers(run.trainer["loggers"] if self.main else [], run.directory, run.info, run.step)
        self.rows = [] if fresh or not self.main else self._rows_until(run.step)
        if fresh and self.main:
            self.path.with_name("system.csv").unlink(missing_ok=True)

    def _rows_until(self, step: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [
                row for row in csv.DictReader(file) if (row.get("step") or "").isdigit() and int(row["step"]) <= step
            ]

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
        for logger in self.loggers:
            logger.close()

    def add(self, run: Any, scalars: dict[str, Tensor]) -> None:
        """Add a step's figures; writes a row when one is due."""
        if not self.main:
            return
        run.sums["count"] = run.sums.get("count", 0.0) + 1
        for name, value in scalars.items():
            run.sums[name] = run.sums.get(name, 0.0) + float(value)
        if self.every and run.step % self.every == 0:
            self._write(run, {})

    def end_epoch(self, run: Any, epoch: int, figures: dict[str, float]) -> None:
        """Write the epoch's row with its health figures, and say what newly looks wrong."""
        if not self.main:
            return
        highest = max((float(row["effective_rank"]) for row in self.rows if row.get("effective_rank")), default=0.0)
        self._write(run, figures)
        means = {name: self._latest(name) for name in ("agreement", "rate_over_bound")}
        found = diagnostics.warnings(
            figures | {name: value for name, value in means.items() if value is not None},
            highest_rank=highest,
            chance=run.objective.chance,
            floor=run.objective.floor(run.batches.batch_size),
            done=(epoch + 1) / run.trainer["epochs"],
            binary=run.objective.binary,
        )
        self.remark(f"after epoch {epoch + 1}", [line for kind, line in found.items() if kind not in self.said])
        self.said = set(found)

    def remark(self, when: str, lines: Iterable[str]) -> None:
        """Say what looks wrong, on the main process."""
        for line in lines if self.main else ():
            tqdm.write(f"warning {when}: {line}", file=sys.stderr)

    def _latest(self, name: str) -> float | None:
        """The newest value of a figure in the log."""
        return next((float(row[name]) for row in reversed(self.rows) if row.get(name)), None)

    def _write(self, run: Any, figures: dict[str, float]) -> None:
        count = run.sums.pop("count", 0.0)
        means = {name: value / count for name, value in run.sums.items()} if count else {}
        run.sums.clear()
        step = run.step - 1
        row = {
            "step": run.step,
            "epoch": round(run.step / run.steps_per_epoch, 4),
            "images": run.step * run.batches.batch_size,
            "seconds": round(run.seconds, 1),
            "lr": run.optimizer.param_groups[0]["lr"],
            "weight_decay": run.schedules["weight_decay"][step],
            "ema": run.schedules["ema"][step],
            **means,
            **figures,
        }
        system = self.system.figures()
        add_row(self.path.with_name("system.csv"), run.step, run.seconds, system)
        told = row | {f"system/{name}": value for name, value in system.items()}
        for logger in self.loggers:
            logger.log(run.step, {key: float(value) for key, value in told.items() if key != "step"})
        self._append({key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in row.items()})

    def _append(self, row: dict[str, str]) -> None:
        self.rows.append(row)
        new = [key for key in row if key not in self.columns]
        if self.file is None or new:  # a new column (health figures after the first epoch): write the file anew
            for old in self.rows:
                self.columns += [key for key in old if key not in self.columns]
            if self.file is not None:
                self.file.close()
            text = io.StringIO(newline="")
            csv.DictWriter(text, self.columns).writeheader()
            csv.DictWriter(text, self.columns).writerows(self.rows)
            with atomic_file(self.path) as whole:
                whole.write(text.getvalue().encode())
            self.file = open(self.path, "a", newline="")  # noqa: SIM115
        else:
            csv.DictWriter(self.file, self.columns).writerow(row)
        self.file.flush()
