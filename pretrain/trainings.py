"""Trainings started by another program: processes of their own, so many side by side, stopped and resumed as one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import torch

from pretrain import cli


def side_by_side(at_once: int | None) -> int:
    """How many trainings share this machine: many small steps use two processors better, a GPU takes one."""
    return at_once or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))


def quoted(key: str, value: str) -> str:
    """An override that Hydra reads as this text, whatever is in it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def unquoted(text: str) -> str:
    """A value with or without the quotation marks of Hydra's grammar, as `quoted` sets them."""
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if len(text) > 1 and text[0] == text[-1] == '"' else text


def placed(wanted: Mapping[str, Sequence[str]], *, data_root: str, runs: str, quiet: bool) -> dict[str, list[str]]:
    """The overrides of each run with those that say what it is called and where its data and its folder lie."""
    shared = [quoted("data_root", data_root), quoted("runs", runs), f"quiet={quiet}"]
    return {name: [*words, quoted("name", name), *shared] for name, words in wanted.items()}


def train_all(wanted: Mapping[str, Sequence[str]], at_once: int, program: str = "pretrain") -> list[str]:
    """Train runs {name: overrides}, so many at a time; returns the names of those that failed.

    Each is a process of the module `program` with an equal share of the cores.
    """
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    waiting, running, failed = list(wanted), dict[str, subprocess.Popen](), list[str]()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                command = [sys.executable, "-m", program, *wanted[name]]
                own = {"OMP_NUM_THREADS": threads, "TQDM_POSITION": str(len(running))}
                # A process group of its own: Ctrl-C reaches it once, through us, and it saves before it ends.
                running[name] = subprocess.Popen(command, env={**own, **os.environ}, process_group=0)
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
