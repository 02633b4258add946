"""Records: what one checkpoint scored on one task and dataset under one protocol, and why the number can be trusted.

A record is one JSON file; its per-sample outcomes lie beside it in one `.npz`, so that any two checkpoints can be
compared by a paired test later. Both appear whole or not at all: the outcomes are written first under a name never used
before, then the record that names them replaces the older one. Many processes may write into one folder.

    results/records/<checkpoint>-<digest>/<task>--<dataset>--<fingerprint>.json    and .<token>.npz
    results/records/status/...                                                     what was skipped or failed

This module imports no torch. Command line: `python -m evaluate.records list|verify|export`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import marshal
import math
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.leaderboard.escape import terminal
from evaluate.storage import StoredArrays, one_line, pack, plain, slug, write_whole
from pretrain.arguments import Parser

SCHEMA = 2
KINDS = ("run", "baseline", "foreign")
READERS = 8  # files read at a time
PORTION = 100  # files handed to a reader at a time: a hand-over costs as much as reading a few
STATUSES = ("skipped", "failed")
BOUNDS = ("value", "low", "high")
FIELDS = {"checkpoint": dict, "task": str, "task_version": int, "dataset": str, "protocol": dict, "main": str}
FIELDS |= {"higher_is_better": bool, "scores": dict, "skipped": dict, "provenance": dict, "notes": list}


@dataclass(frozen=True)
class Score:
    """One number with its 95 % interval over `n` samples of the kind `unit` ("image", "query", "object").

    `scale` says how to print it: "fraction" is a share (shown as percent, refused outside [-1, 1] when written); any
    other word ("bits", "dimensions") names the unit of the value itself. NaN means undefined.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    unit: str = "image"
    scale: str = "fraction"


@dataclass(eq=False)
class Record:
    """Scores of one checkpoint on one task and dataset, with everything needed to repeat and to compare them.

    `checkpoint` holds name, objective, kind ("run", "baseline", "foreign"), weights_digest, backbone, images_seen,
    epoch, label (shown wherever the row appears), seed, parent; optionally recipe (what several seeds share).
    `protocol` holds every choice that moves the number, `main` the headline key of `scores`. `outcomes` holds
    per-sample arrays: "sample_id" identifies the samples, `main_outcomes` finds the array that belongs to `main`,
    an optional "group" names the independent unit of each sample (the video of a frame).
    `provenance` holds dataset_fingerprint, and where, when and with what the number was made.
    """

    checkpoint: dict
    task: str
    task_version: int
    dataset: str
    protocol: dict
    main: str
    higher_is_better: bool
    scores: dict[str, Score]
    outcomes: Mapping[str, np.ndarray] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA
    path: Path | None = None  # the file it was read from; not stored

    @property
    def fingerprint(self) -> str:
        """Short hash of every choice that moves the number: records are comparable exactly when theirs are equal."""
        return fingerprint(self.task, self.task_version, self.provenance["dataset_fingerprint"], self.protocol)

    @property
    def key(self) -> str:
        """Short name of what is measured: these weights on this task, dataset and protocol."""
        return f"{checkpoint_key(self.checkpoint)}-{self.fingerprint}"

    @property
    def score(self) -> Score:
        """The headline score."""
        return self.scores[self.main]

    def main_outcomes(self) -> np.ndarray | None:
        """Per-sample values behind the headline score: named as `main`, else "correct", "ap", the only ones, None."""
        names = [name for name in self.outcomes if name not in ("sample_id", "group")]
        for name in (self.main, "correct", "ap"):
            if name in names:
                return self.outcomes[name]
        return self.outcomes[names[0]] if len(names) == 1 else None


@dataclass(frozen=True)
class Status:
    """Why there is no record: a task that could not run ("skipped") or that raised ("failed"), and what would help."""

    checkpoint: dict
    task: str
    dataset: str
    status: str
    reason: str
    remedy: str


# ---- identity


def _whole_floats_as_ints(value: Any) -> Any:
    """1.0 -> 1 at every depth: YAML writes the same setting either way, and it moves no number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole_floats_as_ints(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole_floats_as_ints(item) for key, item in value.items()}
    return value


def fingerprint(task: str, task_version: int, dataset_fingerprint: str, protocol: Mapping) -> str:
    """Hash (12 hex digits) of every choice that moves a number; the order of keys and 1 against 1.0 do not matter."""
    choices = {"task": task, "task_version": task_version, "dataset": dataset_fingerprint, "protocol": protocol}
    try:
        return _hash_again(marshal.dumps(choices, 2))  # equal bytes are equal choices; version 2: without references
    except ValueError:  # not of builtin types alone
        return _hash(choices)


@lru_cache(maxsize=4096)
def _hash_again(choices: bytes) -> str:
    """Thousands of records share few protocols."""
    return _hash(marshal.loads(choices))


def _hash(choices: Mapping) -> str:
    text = json.dumps(_whole_floats_as_ints(plain(choices, "protocol")), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def checkpoint_key(checkpoint: Mapping) -> str:
    """Short identity of the weights: hash of their digest, or of the name if they could not be read.

    A label is part of it: IMSVD and MUSIC, whose loss is inferred to be the same, end with the same weights, and what
    must be said of the one need not be said of the other.
    """
    identity = checkpoint.get("weights_digest") or "name:" + checkpoint["name"]
    identity += f" {checkpoint['label']}" if checkpoint.get("label") else ""
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def record_path(root: str | Path, record: Record) -> Path:
    """Where `record` belongs below `root`: readable names, then short hashes of the weights and of the protocol."""
    folder = f"{slug(record.checkpoint['name'])}-{checkpoint_key(record.checkpoint)}"
    return Path(root) / folder / f"{slug(record.task)}--{slug(record.dataset)}--{record.fingerprint}.json"


def _status_path(root: str | Path, checkpoint: Mapping, task: str, dataset: str) -> Path:
    name = f"{slug(checkpoint['name'])}-{checkpoint_key(checkpoint)}--{slug(task)}--{slug(dataset)}.json"
    return Path(root) / "status" / name


# ---- writing


def write(root: str | Path, record: Record) -> Path:
    """Store `record` in place of an older one of the same weights, task, dataset and protocol; return its file.

    Clears the skipped or failed entry of the same checkpoint, task and dataset. Raises ValueError naming what cannot be
    stored.
    """
    _check(record)
    path = record_path(root, record)
    twins = [old for old in Path(root).glob(f"*-{checkpoint_key(record.checkpoint)}/{path.name}") if old != path]
    replaced = [file for old in (path, *twins) if old.exists() for file in _outcome_files(old)]
    data = _to_json(record)
    if record.outcomes:
        content = pack(record.outcomes)
        file = f"{path.stem}.{secrets.token_hex(4)}.npz"
        write_whole(path.parent / file, content)
        data["outcomes"] = {"file": file, "sha256": hashlib.sha256(content).hexdigest()}
        data["outcomes"]["names"] = list(record.outcomes)
    write_whole(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
    for stale in (*replaced, *twins):  # only now: a kill before this line leaves the older record complete
        stale.unlink(missing_ok=True)
    for known in (record.checkpoint, {"name": record.checkpoint["name"]}):
        _status_path(root, known, record.task, record.dataset).unlink(missing_ok=True)
    return path


def write_status(
    root: str | Path, checkpoint: Mapping, task: str, dataset: str, status: str, reason: str, remedy: str
) -> Path:
    """Note that `task` was "skipped" or "failed" for `checkpoint`, the reason and what would help, a line each."""
    if status not in STATUSES:
        raise ValueError(f"status {status!r} is unknown: use one of {', '.join(STATUSES)}")
    path = _status_path(root, checkpoint, task, dataset)
    entry = Status(plain(checkpoint, "checkpoint"), task, dataset, status, reason, remedy)
    write_whole(path, (json.dumps(asdict(entry), indent=1) + "\n").encode())
    return path


def _check(record: Record) -> None:
    for name, kind in FIELDS.items():
        if not isinstance(getattr(record, name), kind):
            raise ValueError(f"{name} = {getattr(record, name)!r:.80} is no {kind.__name__}")
    for key, value in record.checkpoint.items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"checkpoint.{key} = {value!r:.80}: use text, a number or nothing")
    for key in ("name", "weights_digest", "objective"):
        if not isinstance(record.checkpoint.get(key), str) or not record.checkpoint[key]:
            raise ValueError(f"checkpoint.{key} = {record.checkpoint.get(key)!r}: a record needs it as text")
    if record.checkpoint.get("kind") not in KINDS:
        raise ValueError(f"checkpoint.kind = {record.checkpoint.get('kind')!r}: use one of {', '.join(KINDS)}")
    if not isinstance(record.provenance.get("dataset_fingerprint"), str):
        raise ValueError("provenance.dataset_fingerprint is missing: without it no two records are comparable")
    if record.main not in record.scores:
        raise ValueError(f"main = {record.main!r} is no score of this record: it has {', '.join(record.scores)}")
    for name, score in record.scores.items():
        numbers, words = (score.value, score.low or 0, score.high or 0, score.n), (score.unit, score.scale)
        if not (all(isinstance(v, Real) for v in numbers) and all(isinstance(word, str) for word in words)):
            raise ValueError(f"score {name} = {score} needs numbers, and text as unit and scale")
        if score.scale == "fraction" and abs(score.value) > 1 + 1e-9:
            raise ValueError(f"score {name} = {score.value} is no fraction: divide by 100, or name its unit as scale")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _to_json(record: Record) -> dict:
    """JSON form without outcomes; an undefined (NaN) score becomes null."""
    scores = {
        name: plain(asdict(s) | {k: _number(getattr(s, k)) for k in BOUNDS}, name) for name, s in record.scores.items()
    }
    fields = {name: plain(getattr(record, name), name) for name in FIELDS if name != "scores"}
    return {"schema": SCHEMA, "fingerprint": record.fingerprint, **fields, "scores": scores}


# ---- reading


def _name_outcomes(data: dict) -> dict:
    """Schema 1 -> 2: a record says which arrays lie beside it; those of an older one are known once it is opened."""
    return data if "outcomes" not in data else data | {"outcomes": data["outcomes"] | {"names": None}}


MIGRATIONS: dict[int, Callable[[dict], dict]] = {1: _name_outcomes}  # schema n -> the same record in schema n + 1


def migrate(data: dict, steps: Mapping[int, Callable[[dict], dict]] = MIGRATIONS, newest: int = SCHEMA) -> dict:
    """Bring the JSON of a record to the newest schema; raises ValueError for a schema this program does not know."""
    schema = data.get("schema")
    if not isinstance(schema, int) or schema < newest and schema not in steps:
        raise ValueError(f"schema {schema!r} is unknown: expected {newest}")
    if schema > newest:
        raise ValueError(f"schema {schema} is newer than this program reads ({newest}): update it")
    while data["schema"] < newest:
        data = {**steps[data["schema"]](data), "schema": data["schema"] + 1}
    return data


def read(path: str | Path) -> Record:
    """The record in one file, its outcomes loaded when used.

    Raises ValueError naming the file when it is damaged or its schema too new.
    """
    return _parse(Path(path), Path(path).read_bytes())


def _parse(path: Path, content: bytes) -> Record:
    try:
        data = migrate(json.loads(content))
        stored = data.pop("outcomes", None)
        outcomes = _stored(path.parent, **stored) if stored else {}
        data["scores"] = {name: _score(score) for name, score in data["scores"].items()}
        claimed = data.pop("fingerprint")
        record = Record(**data, outcomes=outcomes, path=path)
        _check(record)
        if record.fingerprint != claimed:
            raise ValueError(f"it claims fingerprint {claimed} but its protocol gives {record.fingerprint}")
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: damaged record ({one_line(error)}); evaluate it again or delete the file") from error
    return record


def _stored(folder: Path, file: str, sha256: str, names: list[str] | None) -> StoredArrays:
    """Arrays beside a record; a name with folders in it cannot lead elsewhere."""
    return StoredArrays(folder / Path(file).name, sha256, names)


def _score(data: dict) -> Score:
    return Score(**{**data, "value": math.nan if data["value"] is None else data["value"]})


def _record_files(root: str | Path) -> list[Path]:
    return sorted(path for path in Path(root).glob("*/*.json") if path.parent.name != "status")


def _read_each(files: Sequence[Path], problems: list[str] | None) -> Iterator[Record]:
    portions = [files[start : start + PORTION] for start in range(0, len(files), PORTION)]
    with ThreadPoolExecutor(READERS) as pool:  # waiting for the disk is most of the work where there are many
        for portion, contents in zip(portions, pool.map(_contents, portions), strict=True):
            for path, content in zip(portion, contents, strict=True):
                if content is None:
                    continue
                try:
                    yield _parse(path, content)
                except ValueError as error:
                    _report(str(error), problems)


def _contents(paths: Sequence[Path]) -> list[bytes | None]:
    """Files, or nothing where another process replaced one under a new name meanwhile."""
    found: list[bytes | None] = []
    for path in paths:
        try:
            found.append(path.read_bytes())
        except FileNotFoundError:
            found.append(None)
    return found


def _report(line: str, problems: list[str] | None) -> None:
    if problems is None:
        warnings.warn(terminal(line), stacklevel=2)
    else:
        problems.append(line)


def read_all(root: str | Path, problems: list[str] | None = None) -> list[Record]:
    """All records below `root`; a damaged file becomes a line of `problems` (else a warning), the rest is read."""
    return list(_read_each(_record_files(root), problems))


def find(
    root: str | Path,
    *,
    weights_digest: str | None = None,
    label: str = "",
    task: str | None = None,
    dataset: str | None = None,
    fingerprint: str | None = None,
) -> list[Record]:
    """The records that have all the given properties; a damaged file counts as absent, with a warning.

    label: of the checkpoint that `weights_digest` names.
    """
    key = checkpoint_key({"weights_digest": weights_digest, "label": label}) if weights_digest else "*"
    parts = (slug(part) if part else "*" for part in (task, dataset))
    pattern = f"*-{key}/{'--'.join(parts)}--{fingerprint or '*'}.json" if weights_digest else "*/*.json"
    wanted = {"task": task, "dataset": dataset, "fingerprint": fingerprint}
    files = sorted(path for path in Path(root).glob(pattern) if path.parent.name != "status")
    return [
        record
        for record in _read_each(files, None)
        if weights_digest in (None, record.checkpoint["weights_digest"])
        and all(value in (None, getattr(record, name)) for name, value in wanted.items())
    ]


def read_statuses(root: str | Path, problems: list[str] | None = None) -> list[Status]:
    """All skipped and failed entries below `root`, in order of file name; damaged ones as in `read_all`."""
    entries = []
    for path in sorted((Path(root) / "status").glob("*.json")):
        try:
            entry = Status(**json.loads(path.read_bytes()))
            names = (entry.checkpoint["name"], entry.task, entry.dataset, entry.status, entry.reason, entry.remedy)
            if not all(isinstance(name, str) for name in names):
                raise ValueError("every field is text")
            entries.append(entry)
        except FileNotFoundError:
            continue  # its record was written meanwhile
        except (KeyError, TypeError, ValueError) as error:
            _report(f"{path}: damaged status ({one_line(error)}); delete it", problems)
    return entries


def _outcome_files(path: Path) -> list[Path]:
    """The outcomes that the record in `path` names; none if it has none or cannot be read."""
    try:
        outcomes = read(path).outcomes
    except (ValueError, FileNotFoundError):
        return []
    return [outcomes.path] if isinstance(outcomes, StoredArrays) else []


def verify(root: str | Path) -> list[str]:
    """One line for each thing wrong below `root`: damaged or misplaced records, lost, changed or orphaned outcomes."""
    problems: list[str] = []
    referenced = set()
    for record in read_all(root, problems):
        assert record.path is not None
        if record.path.name != record_path(root, record).name:
            problems.append(f"{record.path}: the file name is not that of its content; delete or rename it")
        if isinstance(record.outcomes, StoredArrays):
            referenced.add(record.outcomes.path)
            try:
                record.outcomes.check()
            except (FileNotFoundError, ValueError) as error:
                problems.append(str(error))
    read_statuses(root, problems)
    for path in sorted(Path(root).glob("*/*.npz")):
        if path not in referenced:
            problems.append(f"{path}: outcomes that no record names, left by an interrupted write; safe to delete")
    leftovers = sorted(Path(root).glob("*/.*.tmp"))
    return problems + [f"{path}: left by an interrupted write; safe to delete" for path in leftovers]


# ---- command line


def _is_chosen(record: Record, options: argparse.Namespace) -> bool:
    about = {"checkpoint": record.checkpoint["name"], "objective": record.checkpoint["objective"]}
    about |= {name: getattr(record, name) for name in ("task", "dataset", "fingerprint")}
    return all(getattr(options, name) in (None, value) for name, value in about.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """`list`, `verify` or `export` the records of a folder; the exit status is 1 when `verify` found something."""
    from evaluate.leaderboard import export

    parser = Parser(prog="python -m evaluate.records", description=main.__doc__)
    parser.add_argument("action", choices=("list", "verify", "export"))
    parser.add_argument("--root", default="results/records", help="folder of the records (default: %(default)s)")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--dataset", help="only this dataset")
    parser.add_argument("--fingerprint", help="only this protocol")
    parser.add_argument("--checkpoint", help="only checkpoints of this name")
    parser.add_argument("--objective", help="only checkpoints of this objective")
    parser.add_argument("--to", default="records.csv", help="export to this .csv or .parquet (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not Path(options.root).is_dir():
        parser.error(f"--root {options.root}: no such folder; evaluate a checkpoint first")
    if options.action == "verify":
        problems = verify(options.root)
        print("\n".join(map(terminal, problems)) or f"{len(_record_files(options.root))} records, nothing wrong")
        return 1 if problems else 0
    chosen = [record for record in read_all(options.root) if _is_chosen(record, options)]
    try:
        print(export.listing(chosen) if options.action == "list" else export.export(chosen, options.to, options.root))
    except (ValueError, OSError) as error:
        parser.error(terminal(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
