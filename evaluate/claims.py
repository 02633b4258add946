"""Who works on what, told through a disk that several machines share, so that nothing is computed twice.

ROOT/<key>.<n>     the n-th claim on a key: who made it; its owner touches it every few seconds
ROOT/<key>.note    what those who gather results must know of it

A file of the next number is linked only where there is none, which is atomic on network file systems too: of several
that find an owner dead one takes over. No lock of the file system is needed. An owner on this machine is dead when its
process is; one elsewhere, when it has not touched its claim for a while by the clock of whoever looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluate.storage import write_whole

LEASE = 90.0  # seconds without a sign of life; network file systems may show one half a minute late
BEAT = 10.0
PARTS = 8  # a pass over images is claimed in so many parts, so that several processes share it


def process_start(pid: int) -> str:
    """When a process of this machine began, in clock ticks; empty when there is none or it only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def this_place() -> str:
    """What process numbers are unique in: this boot of this machine, or a container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def this_job() -> str:
    """The job of a cluster that this process belongs to; it stays the same when the job is queued again."""
    names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if "SLURM_ARRAY_JOB_ID" in os.environ else ("SLURM_JOB_ID",)
    return "_".join(os.environ.get(name, "") for name in names)


class Claim:
    """What this process works on, until it is released; `number` counts those who began before and ended, and it."""

    def __init__(self, path: Path, number: int, forget: Callable[[Claim], None]):
        self.path, self.number, self._forget = path, number, forget

    def release(self) -> None:
        """Give it free; nothing where somebody else has taken it over meanwhile."""
        self._forget(self)
        self.path.unlink(missing_ok=True)


class Claims:
    """Claims below `root`, seen and made by one process; lease and beat in seconds."""

    def __init__(self, root: str | Path, *, lease: float = LEASE, beat: float = BEAT):
        self.root, self.lease, self.beat = Path(root), lease, beat
        start = process_start(os.getpid())
        self.me = {"place": this_place(), "pid": os.getpid(), "start": start, "job": this_job()}
        self._held: set[Claim] = set()
        self._seen: dict[Path, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, key: str) -> Claim | None:
        """The claim on a key, or None while somebody else who is alive has it.

        What was done meanwhile must be looked up after this, not before.
        """
        number, latest = self._latest(key)
        if latest and self._is_alive(latest):
            return None
        path = self.root / f"{key}.{number + 1}"
        self.root.mkdir(parents=True, exist_ok=True)
        if not self._create(path):
            return None
        for older in range(1, number + 1):
            (self.root / f"{key}.{older}").unlink(missing_ok=True)
        claim = Claim(path, number + 1, self._forget)
        with self._lock:
            self._held.add(claim)
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, daemon=True)
                self._thread.start()
        return claim

    def _create(self, path: Path) -> bool:
        """Make a claim where there is none, at once with its content: an empty one would look like that of the dead."""
        written = self.root / f".{path.name}.{secrets.token_hex(4)}"
        written.write_text(json.dumps(self.me | {"host": os.uname().nodename}))
        try:
            os.link(written, path)
        except FileExistsError:
            return False
        finally:
            written.unlink()
        return True

    def owner(self, key: str) -> str:
        """Who works on a key, in words; empty when nobody does."""
        _, latest = self._latest(key)
        if not latest or not self._is_alive(latest):
            return ""
        about = self._read(latest)
        job = f"job {about['job']}, " if about.get("job") else ""
        return f"{job}process {about.get('pid', '?')} on {about.get('host', '?')}"

    def note(self, key: str, **facts: str) -> None:
        """Leave word on a key."""
        write_whole(self.root / f"{key}.note", json.dumps(facts).encode())

    def noted(self, key: str) -> dict[str, Any]:
        """What was left on a key, empty where nothing was."""
        return self._read(self.root / f"{key}.note")

    def clear(self, key: str) -> None:
        """Take away what was left on a key, and the folder with the last of it."""
        (self.root / f"{key}.note").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def _latest(self, key: str) -> tuple[int, Path | None]:
        numbers = [int(n) for path in self.root.glob(f"{key}.*") if (n := path.name[len(key) + 1 :]).isdigit()]
        return (max(numbers), self.root / f"{key}.{max(numbers)}") if numbers else (0, None)

    def _is_alive(self, path: Path) -> bool:
        owner = self._read(path)
        if owner.get("place") == self.me["place"]:
            return process_start(int(owner["pid"])) == owner["start"]
        if owner.get("job") and owner["job"] == self.me["job"]:
            return False  # this very job before it was queued again on another machine
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        before, since = self._seen.setdefault(path, (touched, time.monotonic()))
        if before != touched:
            self._seen[path] = touched, time.monotonic()
            return True
        return time.monotonic() - since < self.lease

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            about = json.loads(path.read_text())
        except (OSError, ValueError):  # released meanwhile, or its writer was killed before it had written
            return {}
        return about if isinstance(about, dict) else {}

    def _forget(self, claim: Claim) -> None:
        with self._lock:
            self._held.discard(claim)

    def _live(self) -> None:
        while True:
            time.sleep(self.beat)
            with self._lock:
                held = list(self._held)
            for claim in held:
                with contextlib.suppress(OSError):
                    os.utime(claim.path)


@contextlib.contextmanager
def taking(claims: Claims, keys: Sequence[str], most: int) -> Iterator[list[str]]:
    """At most so many of the keys, those that nobody has, for as long as the block runs."""
    taken: dict[str, Claim] = {}
    try:
        for key in keys:
            if len(taken) < most and (claim := claims.take(key)):
                taken[key] = claim
        yield list(taken)
    finally:
        for claim in taken.values():
            claim.release()


def share_out(
    claims: Claims | None, name: str, missing: Callable[[], list[int]], fill: Callable[[list[int]], None]
) -> None:
    """Have every missing part of `name` filled by one of the processes that come here; returns when all are.

    Without claims this process fills them all. What `fill` raises comes through, and gives its parts free.
    """
    left = missing()
    if claims is None:
        return fill(left)
    most, done = max(1, len(left) // PARTS), set[int]()
    while left:
        with taking(claims, [f"{name}-{part}" for part in left], most) as taken:
            numbers = {int(key.rpartition("-")[2]) for key in taken}
            mine = [part for part in missing() if part in numbers]  # again: somebody may have just finished
            if mine:
                fill(mine)
        done |= set(mine)
        if not taken:
            time.sleep(0.1)
        left = [part for part in missing() if part not in done]
