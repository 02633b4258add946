"""Start-up time and memory of the data pipeline by number of images: `python -m pretrain.bench --data`.

The index is simulated, a list file of so many lines that name a few JPEGs as large as photographs; decoding and
cropping are real. Each size runs in a process of its own, so that memory counts from the same start.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from pretrain.datasets import ImageList
from pretrain.views import Crops, EpochBatches, multi_crop

SIZES = (10_000, 100_000, 1_000_000)
FILES, WORKERS = 32, 2
#: images of a batch and batches that the rate is taken over
FULL, QUICK = (64, 8), (16, 4)
GLOBAL, LOCAL = {"size": 224, "scale": (0.4, 1.0)}, {"size": 96, "scale": (0.05, 0.4)}


def write_index(folder: Path, lines: int) -> None:
    """A list file of so many lines over a few JPEGs of 500 x 375 pixels, as ImageNet has them on average."""
    random = np.random.default_rng(0)
    for i in range(FILES):
        small = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.jpg", quality=90)
    with open(folder / "index.txt", "w") as file:
        file.writelines(f"{i % FILES:02d}.jpg {i % 1000}\n" for i in range(lines))


def resident() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure(folder: Path, lines: int, batch: int, count: int) -> dict[str, float]:
    """Seconds to open and to fingerprint an index, to the first batch, memory on top, and images/s of the loader."""
    write_index(folder, lines)
    before, began = resident(), time.perf_counter()
    images = ImageList(folder, "index.txt")
    opened = time.perf_counter()
    assert images.fingerprint
    marked = time.perf_counter()
    batches = EpochBatches(len(images), batch, seed=0)
    views = multi_crop(GLOBAL, {}, {}, 2, LOCAL)
    loader = iter(DataLoader(Crops(images, views, 0), batch_sampler=batches, num_workers=WORKERS))
    next(loader)
    first = time.perf_counter()
    for _ in range(count):
        next(loader)
    rate = count * batch / (time.perf_counter() - first)
    figures = {"open s": opened - began, "fingerprint s": marked - opened, "first batch s": first - marked}
    return figures | {"memory MiB": resident() - before, "images/s": rate}


def _measure_apart(lines: int, batch: int, count: int, queue: multiprocessing.Queue) -> None:
    multiprocessing.set_start_method(None, force=True)  # for the loader what training has, not what began this process
    with tempfile.TemporaryDirectory() as folder:
        queue.put(measure(Path(folder), lines, batch, count))


def bench_data(quick: bool = False, sizes: tuple[int, ...] = SIZES) -> None:
    """Measure and print one table; `quick` with smaller and fewer batches."""
    batch, count = QUICK if quick else FULL
    print(f"{date.today()}  {platform.machine()}, {WORKERS} decoding processes, 2 + 2 crops of 224 and 96 px")
    print(f"python -m pretrain.bench --data{' --quick' if quick else ''}: {count} batches of {batch}")
    context = multiprocessing.get_context("spawn")
    for i, lines in enumerate(sizes):
        queue = context.Queue()
        process = context.Process(target=_measure_apart, args=(lines, batch, count, queue))
        process.start()
        figures = queue.get()
        process.join()
        if i == 0:
            print(f"{'images':>10}" + "".join(f"{name:>16}" for name in figures))
        print(f"{lines:>10,}" + "".join(f"{value:>16.3g}" for value in figures.values()), flush=True)
