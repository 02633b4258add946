"""Several machines, simulated as process groups that know each other by address alone; jobs by Hydra's launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import overrides
from training import EQUAL, assert_equal_up_to_sums, run_tiny

from pretrain.checkpoint import read_run

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_machines_train_the_run_of_one(tmp_path: Path, images: Path) -> None:
    alone = run_tiny(images, "bits_fixed", tmp_path / "alone", *EQUAL)
    words = overrides(images, "bits_fixed", tmp_path / "together", *EQUAL)
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two"]
    rendezvous += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", "pretrain", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    machines = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=-1, text=True) for _ in range(2)]
    errors = [machine.communicate(timeout=1200)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    run = tmp_path / "together" / alone.name
    info = read_run(run)
    assert info["finished"] and info["hardware"].startswith("2 x ") and info["images_seen"] == 108
    assert_equal_up_to_sums(alone, run)


@pytest.mark.slow
def test_hydras_launcher_trains_each_combination_as_a_job(tmp_path: Path, images: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = overrides(
        images, "bits_fixed", tmp_path, "trainer.epochs=1", "optim.warmup_epochs=0", "trainer.curves=false"
    )
    launcher = ["hydra/launcher=submitit_local", "seed=0,1", "name=s${seed}"]
    command = [sys.executable, "-m", "pretrain", "--multirun", *words, *launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    assert [(read_run(tmp_path / name)["seed"], read_run(tmp_path / name)["finished"]) for name in ("s0", "s1")] == [
        (0, True),
        (1, True),
    ]
