"""The cache of frozen features: how much lies in it, and clearing it without harm to an evaluation that runs.

python -m evaluate.cache                                size by checkpoint and dataset
python -m evaluate.cache --clear all                    or older-than=DAYS, or keys as shown

A folder of features is locked (flock) by whoever fills or reads it and kept while it is. Only files that the store
writes are removed, only below the cache, and a link is never followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.leaderboard.escape import terminal
from pretrain.arguments import Parser

KEY = re.compile(r"[0-9a-f]{24}")
OWN_FILE = re.compile(r"\d{9}(\.rows)?\.npy|meta\.json|\.lock|\..+\.\d+\.tmp")
DAY = 86_400.0


class Hold:
    """A lock on a folder of features, until it is released or collected: shared for users, exclusive for clearing.

    Raises BlockingIOError when an exclusive lock is wanted and somebody uses the folder.
    """

    def __init__(self, folder: Path, *, exclusive: bool = False):
        self._file = -1
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(self._file), os.stat(folder / ".lock")):
                    return
            except FileNotFoundError:
                pass  # cleared meanwhile: start over in a new folder
            except OSError:
                self.release()
                raise
            self.release()

    def release(self) -> None:
        """Give the folder free."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.release()


def hold(folder: Path) -> Hold | None:
    """A shared lock on a folder of features; None where the file system has no locks or the cache is read-only."""
    try:
        return Hold(folder)
    except OSError:
        return None


@dataclass(frozen=True)
class Entry:
    """Stored features of one checkpoint and image set; `changed` in seconds since the epoch."""

    folder: Path
    kind: str
    checkpoint: str
    dataset: str
    size: int
    shards: int
    changed: float

    @property
    def key(self) -> str:
        """Name of the folder."""
        return self.folder.name


def entries(cache: Path) -> list[Entry]:
    """What is stored, by checkpoint and dataset."""
    folders = [folder for kind in subfolders(cache) for folder in subfolders(kind) if KEY.fullmatch(folder.name)]
    return sorted(map(read_entry, folders), key=lambda entry: (entry.checkpoint, entry.dataset, entry.key))


def subfolders(folder: Path) -> list[Path]:
    """Real directories right below a folder, links left out."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def read_entry(folder: Path) -> Entry:
    """Size and origin of a folder of features; a damaged description leaves its digests unknown."""
    try:
        meta: Any = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        meta = {}
    meta = meta if isinstance(meta, dict) else {}
    facts = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
            facts.append(path.lstat())
    weights, images = str(meta.get("weights", "unknown")), str(meta.get("dataset", "unknown"))
    return Entry(
        folder,
        folder.parent.name,
        str(meta.get("checkpoint") or f"weights {weights}"),
        str(meta.get("dataset_name") or f"images {images}"),
        sum(fact.st_size for fact in facts),
        len(list(folder.glob("?????????.npy"))),
        max((fact.st_mtime for fact in facts), default=0.0),
    )


def table(found: Sequence[Entry], now: float) -> str:
    """Entries as lines: size, shards, age, key, checkpoint and dataset, and the total."""
    lines = [f"{'size':>9}  {'shards':>6}  {'days':>5}  {'key':24}  checkpoint, dataset"]
    for e in found:
        what = terminal(f"{e.checkpoint}, {e.dataset}") + ("" if e.kind == "features" else f" ({e.kind})")
        lines.append(f"{size(e.size):>9}  {e.shards:>6}  {(now - e.changed) / DAY:>5.1f}  {e.key}  {what}")
    return "\n".join([*lines, f"{size(sum(e.size for e in found)):>9}  in {len(found)} sets of features"])


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def choose(found: Sequence[Entry], what: str, now: float) -> list[Entry]:
    """Entries meant by `all`, `older-than=DAYS` or a key; raises ValueError for anything else."""
    if what == "all":
        return list(found)
    if what.startswith("older-than="):
        days = what.removeprefix("older-than=")
        if not re.fullmatch(r"\d+(\.\d+)?", days):
            raise ValueError(f"older-than={days} is no number of days; for example older-than=30")
        return [entry for entry in found if now - entry.changed > float(days) * DAY]
    chosen = [entry for entry in found if entry.key == what]
    if not chosen:
        raise ValueError(f"nothing stored under {what!r}; use all, older-than=DAYS, or a key that the list shows")
    return chosen


def clear(entry: Entry) -> bool:
    """Remove one set of features; False when it is in use and stays. Files that are not the store's stay too."""
    try:
        lock = Hold(entry.folder, exclusive=True)
    except BlockingIOError:
        return False
    for path in entry.folder.iterdir():
        if OWN_FILE.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink()
    with contextlib.suppress(OSError):  # somebody else's file is in it
        entry.folder.rmdir()
    lock.release()
    return True


def main() -> None:
    """Show what is stored, or clear what --clear names."""
    parser = Parser(prog="python -m evaluate.cache", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="the folder given as cache= to evaluate")
    parser.add_argument("--clear", nargs="+", metavar="WHAT", help="all, older-than=DAYS, or keys as shown")
    arguments = parser.parse_args()
    found, now = entries(arguments.cache), time.time()
    if arguments.clear is None:
        print(table(found, now) if found else f"no features are stored below {arguments.cache}")
        return
    try:
        chosen = {entry.key: entry for what in arguments.clear for entry in choose(found, what, now)}
        busy = [entry for entry in chosen.values() if not clear(entry)]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    freed = sum(entry.size for entry in chosen.values() if entry not in busy)
    print(f"removed {len(chosen) - len(busy)} of {len(found)} sets of features, {size(freed)}")
    for entry in busy:
        print(f"kept {entry.key}: an evaluation uses it", file=sys.stderr)


if __name__ == "__main__":
    main()
