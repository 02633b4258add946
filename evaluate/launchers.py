"""What starts the workers of a fan-out: processes of this machine, or jobs of a cluster by submitit."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from pretrain.checkpoint import write_json

KINDS = ("processes", "slurm", "submitit_local")


class Launcher(Protocol):
    """Starts workers and watches them."""

    def start(self, request: dict[str, Any], units: Sequence[dict[str, Any]]) -> None:
        """Start workers for all units; `request` holds what they share."""

    def is_running(self) -> bool:
        """Whether a worker is at work or waits for its turn."""

    def stop(self) -> str:
        """Act on Ctrl-C; returns what the user must know."""

    def finish(self) -> str:
        """Clean up after the last worker; returns words on those that did not end well, or nothing."""


def open_launcher(kind: str, jobs: int, folder: Path, cluster: Mapping[str, Any]) -> Launcher:
    """The launcher of a name; raises ValueError naming what is unknown or missing."""
    if kind not in KINDS:
        raise ValueError(f"unknown launcher {kind!r}; use {', '.join(KINDS)}")
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    folder = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if kind == "processes":
        return LocalProcesses(jobs, folder)
    if importlib.util.find_spec("submitit") is None:
        raise ValueError(f"launcher={kind} needs submitit; pip install -e '.[slurm]', or launcher=processes")
    if kind == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("launcher=slurm: there is no sbatch here; run this where jobs are submitted")
    return Submitit("slurm" if kind == "slurm" else "local", jobs, folder, cluster)


class LocalProcesses:
    """So many processes of this machine, each with its share of the cores and a GPU in turn; all work on one list."""

    def __init__(self, jobs: int, folder: Path):
        self.jobs, self.folder = jobs, folder
        self.workers: list[subprocess.Popen] = []

    def start(self, request: dict[str, Any], units: Sequence[dict[str, Any]]) -> None:
        """Start the workers, each at another place of the list."""
        count = min(self.jobs, len(units))
        threads = str(max(1, (os.cpu_count() or 1) // count))
        environment = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads} | os.environ
        for k in range(count):
            first = k * len(units) // count
            own = request | {"units": [*units[first:], *units[:first]], "local_world": count}
            own["config"] = request["config"] | {"device": device_of(k, request["config"]["device"])}
            file = self.folder / f"{k}.json"
            write_json(file, own)
            with open(file.with_suffix(".log"), "wb") as log:
                command = [sys.executable, "-m", "evaluate.worker", str(file)]
                # A process group of its own: Ctrl-C reaches a worker once, through us.
                self.workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, process_group=0))

    def is_running(self) -> bool:
        """Whether one of them is alive."""
        return any(worker.poll() is None for worker in self.workers)

    def stop(self) -> str:
        """End all of them; what one was at is left to the next command."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait()
        return "what is recorded stays; the same command goes on from there"

    def finish(self) -> str:
        """Remove the requests and logs where all is well."""
        failed = [k for k, worker in enumerate(self.workers) if worker.wait()]
        if not failed:
            shutil.rmtree(self.folder, ignore_errors=True)
            return ""
        ends = ", ".join(how_it_ended(self.workers[k].returncode) for k in failed)
        return f" ({len(failed)} of {len(self.workers)} workers {ends}; logs in {self.folder})"


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def device_of(k: int, asked: str) -> str:
    """The device of the k-th worker of a machine: a GPU in turn, unless one is named."""
    if asked in ("auto", "cuda") and torch.cuda.device_count() > 1:
        return f"cuda:{k % torch.cuda.device_count()}"
    return asked


class Submitit:
    """One job for every checkpoint and task, at most so many at a time: on SLURM, or processes that submitit starts."""

    def __init__(self, cluster: str, jobs: int, folder: Path, settings: Mapping[str, Any]):
        import submitit

        self.cluster, self.at_once, self.folder = cluster, jobs, folder
        self.executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        given = {key: value for key, value in settings.items() if value is not None}
        if cluster == "slurm":
            given["slurm_array_parallelism"] = jobs
        else:
            given = {key: value for key, value in given.items() if not key.startswith("slurm_")}
            given["gpus_per_node"] = 0
        try:
            self.executor.update_parameters(**given)
        except NameError as error:  # what submitit raises for a setting that it does not know
            raise ValueError(f"cluster settings: {error}") from error
        self.jobs: list[Any] = []
        self.waiting: list[dict[str, Any]] = []

    def start(self, request: dict[str, Any], units: Sequence[dict[str, Any]]) -> None:
        """Queue a job for every unit."""
        from evaluate.worker import Job

        self.waiting = [request | {"units": [unit], "local_world": 1} for unit in units]
        if self.cluster == "slurm":
            self.jobs, self.waiting = self.executor.map_array(Job(), self.waiting), []
        self._submit()

    def is_running(self) -> bool:
        """Whether a job is queued or at work."""
        self._submit()
        return bool(self.waiting) or not all(job.done() for job in self.jobs)

    def _submit(self) -> None:
        from evaluate.worker import Job

        while self.waiting and sum(not job.done() for job in self.jobs) < self.at_once:
            self.jobs.append(self.executor.submit(Job(), self.waiting.pop(0)))

    def stop(self) -> str:
        """Jobs of a cluster go on alone; processes of this machine are ended."""
        if self.cluster == "slurm":
            first = self.jobs[0].job_id.partition("_")[0] if self.jobs else "none"
            return f"the jobs go on (scancel {first} ends them); the same command gathers what they record"
        for job in self.jobs:
            job.cancel()
        return "what is recorded stays; the same command goes on from there"

    def finish(self) -> str:
        """Remove submitit's files where all is well."""
        failed = [job.job_id for job in self.jobs if job.exception() is not None]
        if not failed:
            shutil.rmtree(self.folder, ignore_errors=True)
            return ""
        some = ", ".join(failed[:5])
        return f" ({len(failed)} of {len(self.jobs)} jobs did not end well: {some}; logs in {self.folder})"
