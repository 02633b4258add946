"""The loop of evaluation: checkpoints x (task, dataset) -> records.

What is recorded already is not computed again; a task that cannot run is noted with its reason and what would help; one
that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from evaluate import importer, records
from evaluate.claims import Claims
from evaluate.features import Store
from evaluate.leaderboard.escape import terminal
from evaluate.leaderboard.table import interval, number
from evaluate.processes import Processes
from evaluate.records import Record, Status
from evaluate.storage import write_whole
from evaluate.tasks.base import Data, Result, Subject, Task, Unavailable

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
FAILURES = (ValueError, OSError, FloatingPointError, torch.cuda.OutOfMemoryError)
MEND = "mend what the reason names, run it again"
LIVES = 3  # processes that may end while at work on one item


@dataclass(frozen=True)
class Item:
    """One entry of a suite: a task and the name of its dataset; where several processes share a plan, its key there."""

    task: Task
    data: str
    key: str = ""


@dataclass
class Evaluator:
    """Where results go, what they are computed with, and what happened so far.

    root: folder of the records; open_data: name -> dataset; runs: folder in which checkpoints are found by name.
    claims: set where several processes work through one plan; what another one has is put aside in `busy`. outdated:
    file of a record -> when it was written (ns), for those that are to be computed again; spent: seconds of computing.
    """

    store: Store
    root: Path
    open_data: Callable[[str], Data]
    runs: str | Path = "runs"
    overwrite: bool = False
    quiet: bool = False
    seed: int = 0
    datasets: dict[str, Data] = field(default_factory=dict)
    written: list[Record] = field(default_factory=list)
    standing: list[Record] = field(default_factory=list)
    unfit: list[Status] = field(default_factory=list)
    claims: Claims | None = None
    busy: list[tuple[str, Item]] = field(default_factory=list)
    outdated: Mapping[str, int] = field(default_factory=dict)
    spent: float = 0.0

    def prepare(self, plan: Mapping[str, Sequence[Item]], processes: Processes) -> bool:
        """Fill the store for a plan together with other processes; True in the main one, which then goes on alone.

        What fails here is left to the main process, which meets it again and notes it.
        """
        if processes.rank == 0:
            self.prepare_data(plan)  # one process downloads or draws what is not there
        if processes.meet():
            for name, items in plan.items():
                self.prepare_checkpoint(name, items)
            processes.meet()
        processes.part()
        self.store.rank, self.store.world, self.store.local_world = 0, 1, 1
        return processes.rank == 0

    def prepare_data(self, plan: Mapping[str, Sequence[Item]]) -> None:
        """Open every dataset of a plan."""
        for name in dict.fromkeys(item.data for items in plan.values() for item in items):
            with contextlib.suppress(*FAILURES):
                self.data(name)

    def prepare_checkpoint(self, name: str, items: Sequence[Item]) -> None:
        """This process's share of what the items of one checkpoint read from the store."""
        try:
            checkpoint = importer.open_checkpoint(name, self.runs)
        except FAILURES:
            return
        self.store.label = checkpoint.record["name"]
        for item in items:
            with contextlib.suppress(*FAILURES):
                subject = self.subject(checkpoint, item)
                item.task.check(subject)
                if self.overwrite or not self.is_recorded(blank_record(checkpoint, item.task, subject)):
                    item.task.prepare(subject)

    def evaluate(self, plan: Mapping[str, Sequence[Item]]) -> None:
        """Work through the plan: items by checkpoint."""
        total, place = sum(map(len, plan.values())), 0
        for name, items in plan.items():
            try:
                checkpoint = importer.open_checkpoint(name, self.runs)
            except FAILURES as error:
                for item in items:
                    self.note({"name": name}, item, "failed", one_line(error), "restore the file or train it again")
                place += len(items)
                continue
            for line in checkpoint.report:
                self.say(line)
            self.store.label = checkpoint.record["name"]
            for item in items:
                place += 1
                if not self.evaluate_item(checkpoint, item, place, total):
                    self.busy.append((name, item))

    def look(self, checkpoint: importer.Checkpoint, item: Item) -> tuple[Record, Subject] | None:
        """What one item still needs computed; None where it is recorded, or cannot be computed, which is noted."""
        try:
            subject = self.subject(checkpoint, item)
            item.task.check(subject)
            record = blank_record(checkpoint, item.task, subject)
        except Unavailable as error:
            self.note(checkpoint.record, item, "skipped", error.reason, error.remedy)
        except FAILURES as error:
            self.note(checkpoint.record, item, "failed", one_line(error), MEND)
        else:
            if self.overwrite or not (found := self.recorded(record)):
                return record, subject
            self.standing.append(found[0])
        return None

    def evaluate_item(self, checkpoint: importer.Checkpoint, item: Item, place: int, total: int) -> bool:
        """One task on one dataset: record it, or note why not; False where another process is at work on it."""
        found = self.look(checkpoint, item)
        if found is None or self.claims is None:
            if found:
                self.compute(checkpoint, item, *found, place, total)
            return True
        claim = self.claims.take(item.key)
        if claim is None:
            return False
        try:
            if claim.number > LIVES:
                reason = f"the processes at work on it ended {LIVES} times: killed, or out of memory"
                self.note(checkpoint.record, item, "failed", reason, "give it more memory, or jobs=1 to see why")
            elif not self.claims.noted(item.key) and not self.is_recorded(found[0]):  # either may be new
                self.compute(checkpoint, item, *found, place, total)
        finally:
            claim.release()
        return True

    def compute(
        self, checkpoint: importer.Checkpoint, item: Item, record: Record, subject: Subject, place: int, total: int
    ) -> None:
        """Run a task and write its record, or note why that failed; says so as number `place` of `total`."""
        began = time.monotonic()
        try:
            files = run_task(record, checkpoint, item.task, subject)
        except Unavailable as error:
            return self.note(checkpoint.record, item, "skipped", error.reason, error.remedy)
        except FAILURES as error:
            return self.note(checkpoint.record, item, "failed", one_line(error), MEND)
        keep_files(self.root, record, files)
        records.write(self.root, record)
        self.written.append(record)
        self.spent += time.monotonic() - began
        self.say(f"[{place}/{total}{self.left(total - place)}] {checkpoint.record['name']}: {sentence(record)}")

    def left(self, items: int) -> str:
        """How long so many more items will take if they are like those computed; unknown where others share them."""
        if self.claims is not None or not items:
            return ""
        return f", about {tqdm.format_interval(self.spent / len(self.written) * items)} left"

    def subject(self, checkpoint: importer.Checkpoint, item: Item) -> Subject:
        """What an item's task is given."""
        parts = checkpoint.backbone, checkpoint.head, self.data(item.data), self.store, self.seed
        source = checkpoint.record.get("source") or checkpoint.data
        return Subject(*parts, segments=checkpoint.segments, source=source, open_data=self.data)

    def data(self, name: str) -> Data:
        """A dataset, opened once."""
        if name not in self.datasets:
            self.datasets[name] = self.open_data(name)
        return self.datasets[name]

    @property
    def current(self) -> int:
        """How many items needed nothing, because their records were there."""
        return len(self.standing)

    def is_recorded(self, record: Record) -> bool:
        """Whether the same weights have a record of the same task, data and protocol."""
        return bool(self.recorded(record))

    def recorded(self, record: Record) -> list[Record]:
        """The records of the same weights, task, data and protocol, without those that are to be computed again."""
        about = record.checkpoint
        key = {"weights_digest": about["weights_digest"], "label": about.get("label", "")}
        key["fingerprint"] = record.fingerprint
        found = records.find(self.root, task=record.task, dataset=record.dataset, **key)
        return [old for old in found if old.path and self.outdated.get(str(old.path)) != written_at(old.path)]

    def note(self, checkpoint: dict, item: Item, status: str, reason: str, remedy: str) -> None:
        """Keep why an item has no record."""
        records.write_status(self.root, checkpoint, item.task.name, item.data, status, reason, remedy)
        if self.claims is not None:
            self.claims.note(item.key, status=status, reason=reason, remedy=remedy)
        self.unfit.append(Status(checkpoint, item.task.name, item.data, status, reason, remedy))
        if status == "failed":
            self.say(f"failed: {item.task.name} on {item.data}, {checkpoint['name']}: {reason}")

    def say(self, line: str) -> None:
        """A line for the person who watches, above any progress bar."""
        if not self.quiet:
            tqdm.write(terminal(line))
            sys.stdout.flush()  # a log file is read while it grows


def written_at(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 where there is none (any more)."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def blank_record(checkpoint: importer.Checkpoint, task: Task, subject: Subject) -> Record:
    """The record before its scores: enough to know whether it exists already."""
    return Record(
        checkpoint=checkpoint.record,
        task=task.name,
        task_version=task.version,
        dataset=subject.data.name,
        protocol=task.protocol(subject),
        main=task.main(subject),
        higher_is_better=task.higher_is_better,
        scores={},
        provenance={"dataset_fingerprint": subject.data.fingerprint(task.reads(subject))},
    )


def run_task(record: Record, checkpoint: importer.Checkpoint, task: Task, subject: Subject) -> dict[str, bytes]:
    """Run a task and complete its record; warnings of the metrics become notes. Returns its pictures by file name."""
    began = time.monotonic()
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", UserWarning)
        result: Result = task.run(subject)
    record.scores, record.outcomes = result.scores, result.outcomes
    record.skipped = {what: count for what, count in result.skipped.items() if count}
    heard = [str(warning.message) for warning in raised if issubclass(warning.category, UserWarning)]
    smoke = ["a smoke world, not a benchmark"] if subject.data.smoke else []
    record.notes = list(dict.fromkeys([*result.notes, *checkpoint.notes, *heard, *smoke]))
    record.provenance |= provenance(subject) | {"seconds": round(time.monotonic() - began, 3)}
    return result.files


def keep_files(root: Path, record: Record, files: Mapping[str, bytes]) -> None:
    """Write a task's pictures to figures/ beside the records, and name them in the provenance of its record."""
    place = records.record_path("figures", record).with_suffix("")
    for name, content in files.items():
        write_whole(root.parent / place / name, content)
    if files:
        record.provenance["files"] = [str(place / name) for name in files]


def provenance(subject: Subject) -> dict[str, Any]:
    """Where, when and with what a number is made."""
    on_gpu = subject.device.type == "cuda"
    processor = torch.cuda.get_device_name(subject.device) if on_gpu else platform.processor() or platform.machine()
    memory = torch.cuda.max_memory_allocated(subject.device) if on_gpu else 1024 * peak_kilobytes()
    return {
        "commit": commit(),
        "packages": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{processor}, {torch.get_num_threads()} threads",
        "device": str(subject.device),
        "seed": subject.seed,
        "peak_memory_mb": round(memory / 2**20),
        "normalisation": {"mean": subject.backbone.mean, "std": subject.backbone.std},
    }


@cache
def commit() -> str:
    """The commit of the code, "-dirty" where files differ from it; asked once, as code is loaded once."""
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def peak_kilobytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def sentence(record: Record) -> str:
    """A finished record in words."""
    score = record.score
    shown = f"{record.main} {number(score.value, score.scale)}"
    shown += f" ({interval(score)})" if interval(score) else ""
    return f"{record.task} on {record.dataset}, {shown}, {record.provenance['seconds']:.1f} s"


def one_line(error: BaseException) -> str:
    """Message of an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
