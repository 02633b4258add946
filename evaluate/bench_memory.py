"""Peak memory of k-NN and mAP while the database grows: `python -m evaluate.bench --memory`.

The database is a file of 384-d features, mapped; every size runs in a process of its own, watched from outside. What
counts is the memory that the process asked for. The resident set also holds pages of the mapped file, which the system
takes back whenever somebody needs them.
"""

from __future__ import annotations

import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH = 384
CLASSES = 1000
SIZES = (10_000, 100_000, 1_000_000)
QUERIES = 200

WORK = """
import sys, time
import numpy as np
from evaluate.metrics import {name}
database = np.load(sys.argv[1], mmap_mode="r")
g = np.random.default_rng(1)
queries = g.standard_normal(({queries}, {width}), np.float32)
labels, truth = g.integers(0, {classes}, len(database)), g.integers(0, {classes}, {queries})
small = database[:2000]
{call_small}  # compiles
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
{call}
print(time.perf_counter() - start, flush=True)
sys.stdin.readline()
"""
CALLS = {
    "knn_classify": "knn_classify({db}, labels[:len({db})], queries, truth, ks=[20], num_classes=1000)",
    "retrieval_ap": "retrieval_ap(queries, {db}, truth, labels[:len({db})])",
}


def write_features(path: Path, rows: int) -> None:
    """A file of random features (rows, 384) float32, written piece by piece."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, WIDTH))
    g = np.random.default_rng(0)
    for start in range(0, rows, 50_000):
        array[start : start + 50_000] = g.standard_normal((min(50_000, rows - start), WIDTH), np.float32)
    array.flush()


def status(process: int) -> tuple[int, int]:
    """Bytes that a process has asked for and holds, and its resident set with pages of files (Linux)."""
    text = Path(f"/proc/{process}/status").read_text()
    fields = {key: 1024 * int(value) for key, value in re.findall(r"(Rss\w+|VmRSS):\s+(\d+) kB", text)}
    return fields["RssAnon"], fields["VmRSS"]


def watch(name: str, file: Path) -> tuple[float, int, int, int]:
    """Seconds of one call, and bytes held before it, at its peak, and resident at its peak."""
    calls = {key: CALLS[name].format(db=db) for key, db in (("call", "database"), ("call_small", "small"))}
    code = WORK.format(name=name, queries=QUERIES, width=WIDTH, classes=CLASSES, **calls)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin and process.stdout
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} on {file.name} ended early, see above")
        before = status(process.pid)[0]
        peak = resident = 0
        process.stdin.write("\n")
        process.stdin.flush()
        while not readable(process.stdout.fileno()):
            held, whole = status(process.pid)
            peak, resident = max(peak, held), max(resident, whole)
            time.sleep(0.002)
        seconds = float(process.stdout.readline())
        process.stdin.write("\n")
    return seconds, before, peak, resident


def readable(descriptor: int) -> bool:
    """Whether a pipe has something to read, without waiting."""
    return bool(select.select([descriptor], [], [], 0)[0])


def main(quick: bool = False) -> None:
    """Print one line for each routine and size."""
    print(f"{QUERIES} queries, {WIDTH} dimensions, float32 database mapped from a file; megabytes")
    print(f"{'rows':>9}  {'file':>6}  {'routine':13} {'before':>7} {'peak':>7} {'added':>7} {'resident':>9}  seconds")
    with tempfile.TemporaryDirectory() as folder:
        for rows in SIZES[:2] if quick else SIZES:
            file = Path(folder) / f"{rows}.npy"
            write_features(file, rows)
            for name in CALLS:
                seconds, before, peak, resident = watch(name, file)
                sizes = [round(x / 1e6) for x in (before, peak, peak - before, resident)]
                print(f"{rows:>9}  {file.stat().st_size / 1e6:>6.0f}  {name:13} {sizes[0]:>7} {sizes[1]:>7} "
                      f"{sizes[2]:>7} {sizes[3]:>9} {seconds:>8.1f}", flush=True)  # fmt: skip
            file.unlink()
