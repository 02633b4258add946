"""What a training takes of its machine: processor, memory, GPU; read from Linux itself, at the cost of a few files.

RUN/system.csv    a row wherever log.csv has one: step, seconds and the figures below
"""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import time
from pathlib import Path

import torch

TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def taken(pid: int) -> tuple[float, float]:
    """Seconds of processor time and bytes of memory of a process so far; nothing of one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS, int(fields[21]) * PAGE


class System:
    """Figures of this process and its decoding processes since they were last asked for.

    cpu_cores: cores kept busy; memory_mb: held now, pages that processes share counted in each; gpu_memory_mb: most
    held since; gpu_percent: share of the last moments in which the GPU was at work, where nvidia-ml-py is installed.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.since, self.before = time.monotonic(), self._processes()

    def _processes(self) -> dict[int, tuple[float, float]]:
        children = [child.pid for child in multiprocessing.active_children() if child.pid]
        return {pid: taken(pid) for pid in (os.getpid(), *children)}

    def figures(self) -> dict[str, float]:
        """The figures by name."""
        now, here = time.monotonic(), self._processes()
        spent = sum(time_used - self.before.get(pid, (0.0, 0.0))[0] for pid, (time_used, _) in here.items())
        found = {"cpu_cores": max(0.0, spent) / max(1e-9, now - self.since)}
        found["memory_mb"] = sum(memory for _, memory in here.values()) / 2**20
        if self.device.type == "cuda":
            found["gpu_memory_mb"] = torch.cuda.max_memory_allocated(self.device) / 2**20
            torch.cuda.reset_peak_memory_stats(self.device)
            with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # no nvidia-ml-py, or an older driver
                found["gpu_percent"] = float(torch.cuda.utilization(self.device))
        self.since, self.before = now, here
        return found


def add_row(path: Path, step: int, seconds: float, figures: dict[str, float]) -> None:
    """Add a row to system.csv; a run that goes on adds to what it has."""
    row = {"step": str(step), "seconds": f"{seconds:.1f}"} | {name: f"{value:.6g}" for name, value in figures.items()}
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)
