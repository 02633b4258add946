"""Evaluation: `python -m evaluate checkpoints=[runs/a,runs/b] suite=shapeworld`.

Names from the command line become checkpoints, tasks (configs/task) and datasets (configs/data) by way of suites
(configs/suite); `evaluator` does the work; records become the leaderboard.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from evaluate import fanout, importer
from evaluate.evaluator import Evaluator, Item, one_line
from evaluate.features import Store
from evaluate.launchers import open_launcher
from evaluate.leaderboard.__main__ import rebuild
from evaluate.leaderboard.escape import terminal
from evaluate.processes import Processes
from evaluate.tasks.base import Data, Task
from pretrain import cli
from pretrain.datasets.splits import image_split

DEFAULT_SUITE = "shapeworld"


def choices(group: str) -> list[str]:
    """Names that a group of configurations offers."""
    return sorted(file.stem for file in (cli.CONFIGS / group).glob("*.yaml"))


def build(config: Any, **more: Any) -> Any:
    """Instantiate a configuration, with more settings; what its constructor raises comes through as it is."""
    try:
        return hydra.utils.instantiate(config, _convert_="all", **more)
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


def read(group: str, name: str) -> DictConfig:
    """One configuration of a group; raises ValueError with the nearest name when there is none of this name."""
    if name not in choices(group):
        raise ValueError(f"unknown {group} {name!r}; {cli.nearest(name, choices(group))}")
    config = OmegaConf.load(cli.CONFIGS / group / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    return config


def load_task(name: str, **settings: Any) -> Task:
    """A task, with settings in place of those in its file; raises ValueError with the nearest setting when unknown."""
    config = read("task", name)
    known = [str(key) for key in config if key != "_target_"]
    for key in settings:
        if key not in known:
            raise ValueError(f"unknown setting {key!r} of task {name}; {cli.nearest(key, known)}")
    return build(OmegaConf.merge(config, settings))


def load_data(name: str, root: str | Path, *, skip_bad: bool = False) -> Data:
    """A dataset by name, prepared where it makes itself; its splits are opened when first used.

    Where all images are annotated, those of masks or instances are the train and test splits of tasks without labels.
    """
    config = read("data", name)
    config.data_root = str(root)
    if config.prepare is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it says so where there is nothing to do
            build(config.prepare)
    readers = {str(split): partial(open_split, reader, skip_bad) for split, reader in config.splits.items()}
    shared: dict[str, Any] = {}
    for part in ("train", "test"):
        with contextlib.suppress(ValueError):
            shared[part] = readers[image_split(readers, part)]
    return Data(config.name, readers | shared, bool(config.smoke))


def open_split(reader: DictConfig, skip_bad: bool) -> Any:
    """Open the reader of a split."""
    return build(reader, skip_bad=skip_bad)


def load_suite(name: str) -> list[dict[str, Any]]:
    """The entries of a suite: {"task": ..., "data": ..., and settings in place of those of the task's file}."""
    return as_entries(read("suite", name))


def as_entries(suite: DictConfig) -> list[dict[str, Any]]:
    """The entries of a suite's configuration."""
    entries: Any = OmegaConf.to_container(suite.tasks)
    for entry in entries:
        read("data", entry["data"])
    return entries


def make_plan(
    names: Iterable[str], suite: list[dict[str, Any]] | None, runs: str, baselines: bool
) -> dict[str, list[Item]]:
    """Which checkpoint is evaluated on what, as objects; see `plan_entries`."""
    return as_items(plan_entries(names, suite, runs, baselines))


def as_items(entries: fanout.Entries) -> dict[str, list[Item]]:
    """The entries of every checkpoint as objects."""
    return {name: [as_item(**entry) for entry in own] for name, own in entries.items()}


def plan_entries(
    names: Iterable[str], suite: list[dict[str, Any]] | None, runs: str, baselines: bool
) -> dict[str, list[dict[str, Any]]]:
    """Which checkpoint is evaluated on what; baselines take part in all that the runs of their architecture do.

    Without a suite, each run gets the one named like the data that it was trained on, else ShapeWorld's.

    Raises ValueError for a checkpoint, suite, task or dataset that does not exist, before any work.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    for name in importer.expand(names, runs):
        data = importer.trained_on(importer.resolve(name, runs))
        entries[name] = suite or load_suite(data if data in choices("suite") else DEFAULT_SUITE)
    for name, sharing in importer.baselines(list(entries), runs).items() if baselines else ():
        own = entries.setdefault(name, [])
        for entry in (entry for owner in sharing for entry in entries[owner]):
            own += [] if entry in own else [entry]
    return entries


def as_item(task: str, data: str, **settings: Any) -> Item:
    """An entry of a suite as objects."""
    return Item(load_task(task, **settings), data)


def make_evaluator(config: DictConfig, processes: Processes = Processes()) -> Evaluator:  # noqa: B008
    """The settings of a configuration as objects; raises ValueError naming the one that is unknown."""
    device = processes.device(config.device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device} cannot be used here ({one_line(error)[:80]}); use auto or cpu") from error
    options = {key: config[key] for key in ("precision", "store", "batch_size", "workers")}
    options |= {"rank": processes.rank, "world": processes.world, "local_world": processes.local_world}
    return Evaluator(
        Store(config.cache, device=device, quiet=config.quiet or processes.rank > 0, **options),
        Path(config.output) / "records",
        partial(load_data, root=config.data_root, skip_bad=config.skip_bad),
        runs=config.runs,
        overwrite=config.overwrite,
        quiet=config.quiet,
        seed=config.seed,
    )


def finish(done: Evaluator, output: str, lost: Sequence[str] = ()) -> None:
    """Rewrite and print the leaderboard, say what happened; exit with 1 when something failed or nothing could run.

    lost: a line for each item that no worker finished.
    """
    usable = len(done.written) + done.current
    if usable:
        sys.stdout.write(rebuild(done.root, output, done.runs) + "\n")
    failed = [status for status in done.unfit if status.status == "failed"]
    for status in failed if usable else done.unfit:
        where = f"{status.task} on {status.dataset}, {status.checkpoint['name']}"
        print(terminal(f"{status.status}: {where}: {status.reason}; {status.remedy}"), file=sys.stderr)
    for line in lost:
        print(terminal(f"unfinished: {line}; the same command goes on"), file=sys.stderr)
    if not done.written and not failed and not lost and usable:
        print(f"nothing to do: {done.current} records up to date")
    counts = {"recorded": len(done.written), "up to date": done.current}
    counts |= {"skipped": len(done.unfit) - len(failed), "failed": len(failed), "unfinished": len(lost)}
    where = f"; see {output}/leaderboard.html" if usable else "; no table was written"
    print(", ".join(f"{count} {what}" for what, count in counts.items() if count) + where)
    if failed or lost or not usable:
        sys.exit(1)


def run(config: DictConfig, more: fanout.Entries = MappingProxyType({})) -> None:
    """Evaluate what a configuration names, and `more` by checkpoint besides; rewrite the leaderboard."""
    if done := measure(config, more):
        finish(done[0], config.output, done[1])


def measure(config: DictConfig, more: fanout.Entries = MappingProxyType({})) -> tuple[Evaluator, list[str]] | None:
    """Evaluate what a configuration names: what became of it, and a line for each item that no worker finished.

    None in a process that torchrun started beside the main one.
    """
    if not config.checkpoints:
        raise ValueError(f"checkpoints=[] names nothing to evaluate; {importer.ACCEPTED}")
    suite = None if config.suite is None else as_entries(config.suite)
    entries = plan_entries(map(str, config.checkpoints), suite, config.runs, config.baselines)
    for name, own in more.items():
        known = entries.get(name, [])
        entries[name] = [*known, *(entry for entry in own if entry not in known)]
    plan = as_items(entries)
    processes = Processes.from_environment()
    evaluator = make_evaluator(config, processes)
    lost: list[str] = []
    try:
        if config.jobs != 1 or config.launcher != "processes":
            lost = evaluate_together(evaluator, entries, plan, config, processes)
        elif processes.world == 1 or evaluator.prepare(plan, processes):
            evaluator.evaluate(plan)
        else:
            return None
    except KeyboardInterrupt:
        raise cli.Interrupted("what is recorded stays; the same command goes on from there") from None
    return evaluator, lost


def settings(suite: str | None = None, **changes: Any) -> DictConfig:
    """The settings of `python -m evaluate` with some of them changed.

    Raises ValueError with the nearest name for a suite or setting that does not exist.
    """
    if suite is not None:
        read("suite", suite)
    with hydra.initialize_config_dir(str(cli.CONFIGS), version_base=None):
        config = hydra.compose("evaluate", [] if suite is None else [f"suite={suite}"])
    for key, value in changes.items():
        if key not in config:
            raise ValueError(f"unknown setting {key!r}; {cli.nearest(key, [str(known) for known in config])}")
        config[key] = str(value) if isinstance(value, Path) else value
    return config


def evaluate_together(
    evaluator: Evaluator, entries: fanout.Entries, plan: dict[str, list[Item]], config: DictConfig, processes: Processes
) -> list[str]:
    """Share a plan out to workers; returns a line for each item that none finished."""
    if processes.world > 1:
        raise ValueError(f"torchrun and jobs={config.jobs} both start processes: use one of them")
    settings: Any = OmegaConf.to_container(config, resolve=True)
    launcher = open_launcher(config.launcher, config.jobs, Path(config.output) / "jobs", settings["cluster"])
    units = fanout.pending(evaluator, entries, plan)
    return fanout.fan_out(evaluator, units, launcher, settings) if units else []


def main() -> None:
    """Entry point of `python -m evaluate`."""
    cli.run(run, "evaluate")
