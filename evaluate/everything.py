"""`python -m evaluate.everything`: evaluate every finished run; with none there, pre-train a few on ShapeWorld first,
and, where asked (`everything.adapt_to`), let each go on on other images.

This is `make eval-all`: on a fresh machine one command trains, evaluates and ranks; given again, it computes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from evaluate import adaptation
from evaluate import run as evaluation
from evaluate.processes import Processes
from pretrain import cli, trainings
from pretrain.checkpoint import CheckpointError, read_run, write_json

PLAN = ".eval-all.json"  # below `runs`: what was begun, so that an interrupted first time is completed, not forgotten


def finished_runs(runs: Path) -> dict[str, Path]:
    """Name and folder of every finished run, by folder name; a damaged one is named on stderr and left out."""
    found = {}
    for file in sorted(runs.glob("*/run.json")):
        try:
            info = read_run(file.parent)
        except CheckpointError as error:
            print(f"left out: {cli.printable(error)}", file=sys.stderr)
            continue
        if info.get("finished"):
            found[file.parent.name] = file.parent
    return found


def wanted_runs(runs: Path, objectives: Sequence[str], data: str, options: Sequence[str] = ()) -> dict[str, list[str]]:
    """Runs still to be trained, with what tells them apart; none when somebody's own finished run is there."""
    plan, finished = runs / PLAN, finished_runs(runs)
    if plan.exists():
        wanted = json.loads(plan.read_text())
    elif finished:
        return {}
    else:
        wanted = {f"{name}-{data}": [f"objective={name}", f"data={data}", *options] for name in objectives}
        write_json(plan, wanted)
    return {name: options for name, options in wanted.items() if name not in finished}


def adapt(config: DictConfig) -> list[str]:
    """Let the planned runs go on on other images; returns the names of those that failed, nothing without a plan."""
    runs, targets = Path(config.runs), list(config.everything.adapt_to)
    if not (runs / PLAN).exists() or not targets:
        return []
    finished = finished_runs(runs)
    names = [str(runs / name) for name in json.loads((runs / PLAN).read_text()) if name in finished]
    config.adaptation.epochs = config.everything.adapt_epochs
    return adaptation.train(config, adaptation.pairings(names, targets, config.runs)) if names else []


def run(config: DictConfig) -> None:
    """Train what is missing, then evaluate the checkpoints given, or all finished runs."""
    runs, failed = Path(config.runs), list[str]()
    if not config.checkpoints:
        settings = config.everything
        wanted = wanted_runs(runs, settings.objectives, settings.data, settings.options)
        if wanted and Processes.from_environment().world > 1:
            raise ValueError("torchrun shares out an evaluation, not these trainings: run the command once without it")
        if wanted:
            print(f"no finished run in {runs}: training {', '.join(wanted)}" if not config.quiet else "", flush=True)
            place = {"data_root": config.data_root, "runs": config.runs, "quiet": config.quiet}
            told = trainings.placed(wanted, **place)
            failed = trainings.train_all(told, trainings.side_by_side(settings.at_once))
        failed += adapt(config)
        if not failed:
            (runs / PLAN).unlink(missing_ok=True)
        config.checkpoints = [str(path) for path in finished_runs(runs).values()]
        if not config.checkpoints:
            raise ValueError(f"no run could be trained ({', '.join(failed)}); see above")
    evaluation.run(config, adaptation.curves(config.checkpoints, config.adaptation, config.runs))
    if failed:
        print(f"not trained: {', '.join(failed)}; the same command tries again", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point of `python -m evaluate.everything`."""
    cli.run(run, "evaluate")


if __name__ == "__main__":
    main()
