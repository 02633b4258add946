"""Trainings that evaluation starts: processes of their own, so many side by side, stopped and resumed as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import torch
from omegaconf import DictConfig

from pretrain import cli


def side_by_side(at_once: int | None) -> int:
    """How many trainings share this machine: many small steps use two processors better, a GPU takes one."""
    return at_once or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))


def quoted(key: str, value: str) -> str:
    """An override that Hydra reads as this text, whatever is in it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def pretrain(config: DictConfig, wanted: Mapping[str, list[str]], at_once: int, program: str = "pretrain") -> list[str]:
    """Train runs, so many at a time with an equal share of the cores; returns the names of those that failed.

    program: the module that is started for each of them.
    """
    cores = os.cpu_count() or 1
    shared = [quoted("data_root", config.data_root), quoted("runs", config.runs), f"quiet={config.quiet}"]
    waiting, running, failed = list(wanted), dict[str, subprocess.Popen](), list[str]()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                command = [sys.executable, "-m", program, *wanted[name], quoted("name", name), *shared]
                threads = {"OMP_NUM_THREADS": str(max(1, cores // at_once)), "TQDM_POSITION": str(len(running))}
                # A process group of its own: Ctrl-C reaches it once, through us, and it saves before it ends.
                running[name] = subprocess.Popen(command, env={**threads, **os.environ}, process_group=0)
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
