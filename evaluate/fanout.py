"""A suite shared out: checkpoints x tasks to processes of this machine or jobs of a cluster, results from the disk.

Nothing is handed back but files: a record, or a note why there is none. So a worker may be killed, or pre-empted and
queued again, at any time, and the same command finishes what is left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluate import importer, records
from evaluate.claims import Claims
from evaluate.evaluator import FAILURES, Evaluator, Item, one_line, sentence, written_at
from evaluate.launchers import Launcher
from evaluate.records import Record
from pretrain import cli

Entries = Mapping[str, Sequence[dict[str, Any]]]
POLL = 0.5  # seconds


@dataclass(frozen=True)
class Unit:
    """One task by one checkpoint: name on the command line, entry in the suite, and the record without its scores."""

    name: str
    entry: dict[str, Any]
    item: Item
    record: Record

    @property
    def key(self) -> str:
        """What it is claimed by."""
        return self.item.key


def claims_of(output: str | Path) -> Claims:
    """The claims on what is written below a folder of results."""
    return Claims(Path(output) / ".claims")


def pending(evaluator: Evaluator, entries: Entries, plan: Mapping[str, Sequence[Item]]) -> list[Unit]:
    """What is not recorded yet and can be computed; everything else is counted or noted by the evaluator."""
    found: dict[str, Unit] = {}
    evaluator.prepare_data(plan)  # here, so that no two workers draw or download the same data
    for name, items in plan.items():
        try:
            checkpoint = importer.open_checkpoint(name, evaluator.runs)
        except FAILURES as error:
            for item in items:
                evaluator.note({"name": name}, item, "failed", one_line(error), "restore the file or train it again")
            continue
        for entry, item in zip(entries[name], items, strict=True):
            if wanted := evaluator.look(checkpoint, item):
                record = wanted[0]
                found.setdefault(record.key, Unit(name, entry, replace(item, key=record.key), record))
    return list(found.values())


def fan_out(evaluator: Evaluator, units: Sequence[Unit], launcher: Launcher, config: dict[str, Any]) -> list[str]:
    """Have units computed by workers, and gather what they leave; returns a line for each that none of them finished.

    config: settings of `python -m evaluate` for the workers. Raises cli.Interrupted on Ctrl-C.
    """
    claims = claims_of(config["output"])
    paths = {unit.key: records.record_path(evaluator.root, unit.record) for unit in units}
    outdated = {str(path): written_at(path) for path in paths.values() if path.exists()} if evaluator.overwrite else {}
    for unit in units:
        claims.clear(unit.key)
    request = {"config": config, "outdated": outdated}
    pairs = [{"name": unit.name, "entry": unit.entry, "key": unit.key} for unit in units]
    gathered = Gathered(evaluator, claims, units, paths, outdated)
    try:
        launcher.start(request, pairs)
        with evaluator.store.progress("checkpoints x tasks", len(units), "record") as bar:
            while launcher.is_running() or gathered.others():
                bar.update(gathered.collect())
                time.sleep(POLL)
            bar.update(gathered.collect())
    except KeyboardInterrupt:
        raise cli.Interrupted(launcher.stop()) from None
    lost = launcher.finish()
    for unit in units:
        claims.clear(unit.key)
    return [
        f"{unit.item.task.name} on {unit.item.data}, {unit.name}: no worker finished it{lost}" for unit in gathered.left
    ]


class Gathered:
    """What workers have left so far; `left` are the units that nothing is known of yet."""

    def __init__(
        self,
        evaluator: Evaluator,
        claims: Claims,
        units: Sequence[Unit],
        paths: Mapping[str, Path],
        outdated: Mapping[str, int],
    ):
        self.evaluator, self.claims, self.paths, self.outdated = evaluator, claims, paths, outdated
        self.left, self.total = list(units), len(units)

    def others(self) -> bool:
        """Whether somebody whom this command did not start is at work on what is left."""
        return any(self.claims.owner(unit.key) for unit in self.left)

    def collect(self) -> int:
        """Take up new records and notes; returns how many there were."""
        before = len(self.left)
        self.left = [unit for unit in self.left if not self._take(unit)]
        return before - len(self.left)

    def _take(self, unit: Unit) -> bool:
        path = self.paths[unit.key]
        if written_at(path) != self.outdated.get(str(path), 0):
            record = records.read(path)
            self.evaluator.written.append(record)
            place = f"[{len(self.evaluator.written)}/{self.total}]"
            self.evaluator.say(f"{place} {record.checkpoint['name']}: {sentence(record)}")
            return True
        if found := self.claims.noted(unit.key):
            about = (found["status"], found["reason"], found["remedy"])
            self.evaluator.note(unit.record.checkpoint, unit.item, *about)
            return True
        return False
