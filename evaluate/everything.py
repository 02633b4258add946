"""`python -m evaluate.everything`: evaluate every finished run; with none there, pre-train a few on ShapeWorld first.

This is `make eval-all`: on a fresh machine one command trains, evaluates and ranks; given again, it computes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import torch
from omegaconf import DictConfig

from evaluate import run as evaluation
from evaluate.processes import Processes
from pretrain import cli
from pretrain.checkpoint import CheckpointError, read_run, write_json

PLAN = ".eval-all.json"  # below `runs`: what was begun, so that an interrupted first time is completed, not forgotten


def finished_runs(runs: Path) -> dict[str, Path]:
    """Name and folder of every finished run, by folder name; a damaged one is named on stderr and left out."""
    found = {}
    for file in sorted(runs.glob("*/run.json")):
        try:
            info = read_run(file.parent)
        except CheckpointError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if info["finished"]:
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


def quoted(key: str, value: str) -> str:
    """An override that Hydra reads as this text, whatever is in it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def pretrain(config: DictConfig, wanted: Mapping[str, list[str]], at_once: int) -> list[str]:
    """Train runs, so many at a time with an equal share of the cores; returns the names of those that failed."""
    cores = os.cpu_count() or 1
    shared = [quoted("data_root", config.data_root), quoted("runs", config.runs), f"quiet={config.quiet}"]
    waiting, running, failed = list(wanted), dict[str, subprocess.Popen](), list[str]()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                command = [sys.executable, "-m", "pretrain", *wanted[name], quoted("name", name), *shared]
                threads = {"OMP_NUM_THREADS": str(max(1, cores // at_once)), "TQDM_POSITION": str(len(running))}
                # A process group of its own: Ctrl-C reaches it once, through us, and it saves before it ends.
                running[name] = subprocess.Popen(command, env={**threads, **os.environ}, process_group=0)
            time.sleep(0.2)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode:
                    failed.append(name)
    except KeyboardInterrupt:
        stop(list(running.values()))
        raise cli.Interrupted("trainings are saved; the same command goes on from there") from None
    return failed


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """Ask trainings to save and end, and wait for them; a second Ctrl-C is passed on too."""
    for _ in range(2):
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        try:
            for process in processes:
                process.wait()
            return
        except KeyboardInterrupt:
            continue
    for process in processes:
        process.wait()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


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
            at_once = settings.at_once or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))
            failed = pretrain(config, wanted, at_once)
        if not failed:
            (runs / PLAN).unlink(missing_ok=True)
        config.checkpoints = [str(path) for path in finished_runs(runs).values()]
        if not config.checkpoints:
            raise ValueError(f"no run could be trained ({', '.join(failed)}); see above")
    evaluation.run(config)
    if failed:
        print(f"not trained: {', '.join(failed)}; the same command tries again", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point of `python -m evaluate.everything`."""
    cli.run(run, "evaluate")


if __name__ == "__main__":
    main()
