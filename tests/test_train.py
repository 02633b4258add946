"""The training loop: one contract for every objective, exact resume, equal results on more processes, clear errors."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict
from PIL import Image
from processes import run_processes
from safetensors.torch import load_file
from tiny import OBJECTIVES, compose, overrides
from torch import Tensor

from pretrain import cli
from pretrain.checkpoint import CheckpointError, load_backbone, load_head, read_run, weights_digest
from pretrain.train import main, train

FILES = ("backbone.safetensors", "head.safetensors")


def run_tiny(images: Path, objective: str, runs: Path, *more: str) -> Path:
    return train(compose(*overrides(images, objective, runs, *more)))


def weights(run: Path) -> list[bytes]:
    return [(run / file).read_bytes() for file in FILES]


def logged(run: Path) -> list[dict[str, str]]:
    """Rows of log.csv without the clock."""
    with open(run / "log.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_falls_saves_and_loads(objective: str, images: Path, tmp_path: Path) -> None:
    batch = 36 if objective == "barlow_twins" else 12  # its statistic over 12 images is mostly noise
    epochs = 24 * batch // 36
    settings = (f"trainer.batch_size={batch}", f"trainer.epochs={epochs}", f"trainer.keep_every={epochs // 2}")
    run = run_tiny(images, objective, tmp_path, *settings, "head_reset.every_epochs=0")
    losses = [float(row["loss"]) for row in logged(run) if row["loss"]]
    assert len(losses) == 24 and sum(losses[-6:]) < sum(losses[:6])
    info = read_run(run)
    assert info["finished"] and info["images_seen"] == 24 * batch and info["objective"] == objective
    assert sorted(p.name for p in (run / "epochs").iterdir()) == [f"{epochs // 2:03d}", f"{epochs:03d}"]
    backbone, head = load_backbone(run), load_head(run)
    x = torch.rand(2, 3, 16, 16)
    assert torch.isfinite(head(backbone(x))).all() and not backbone.training
    assert weights_digest(load_backbone(run / "epochs" / f"{epochs:03d}")) == weights_digest(backbone)
    assert weights_digest(load_backbone(run / "epochs" / f"{epochs // 2:03d}")) != weights_digest(backbone)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_stopped_in_the_middle_continues_byte_for_byte(
    objective: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_tiny(images, objective, tmp_path / "whole")
    from pretrain import train as module

    steps, original = [0], module.train_step

    def stop_at_fifth(*args: object) -> dict[str, Tensor]:
        steps[0] += 1
        if steps[0] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(module, "train_step", stop_at_fifth)
    with pytest.raises(cli.Interrupted, match="step 5 of 9; the same command or resume="):
        run_tiny(images, objective, tmp_path / "parts")
    monkeypatch.undo()
    torch.rand(3)  # the state of the global generator plays no part
    stopped = tmp_path / "parts" / f"{objective}-folder"
    parts = train(compose(f"resume={stopped}", "quiet=true"))
    assert parts.samefile(stopped)
    assert weights(whole) == weights(parts)
    assert logged(whole) == logged(parts)


def test_kill_9_loses_nothing_that_was_saved(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretrain", *overrides(images, "bits_reset", tmp_path / "killed")]
    command += ["trainer.epochs=20", "trainer.save_minutes=0"]
    killed = tmp_path / "killed" / "bits_reset-folder"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not (killed / "resume" / "latest.json").exists() or _step(killed) < 10:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    assert 10 <= _step(killed) < 60
    run_tiny(images, "bits_reset", tmp_path / "killed", "trainer.epochs=20")
    whole = run_tiny(images, "bits_reset", tmp_path / "whole", "trainer.epochs=20")
    assert weights(whole) == weights(killed)
    assert not list(killed.rglob("*.tmp")) or read_run(killed)["finished"]


def _step(run: Path) -> int:
    return json.loads((run / "resume" / "latest.json").read_text())["step"]


def test_a_finished_run_is_not_trained_again(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path)
    before = weights(run)
    run_tiny(images, "bits_fixed", tmp_path)
    assert "nothing to do" in capsys.readouterr().out and weights(run) == before


def test_another_configuration_never_overwrites_a_run(images: Path, tmp_path: Path) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path)
    before = weights(run)
    with pytest.raises(CheckpointError, match=r"optim\.lr is 0\.02 there, 0\.03 now"):
        run_tiny(images, "bits_fixed", tmp_path, "optim.lr=0.03")
    assert weights(run) == before
    run_tiny(images, "bits_fixed", tmp_path, "optim.lr=0.03", "overwrite=true")
    assert weights(run) != before


def train_all_on_rank(rank: int, world: int, images: str, runs: str) -> dict[str, Tensor]:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    for objective in OBJECTIVES:
        config = compose(*overrides(Path(images), objective, Path(runs), *EQUAL))
        train(config)
    return {}


# float64 and no stochastic depth: what is left is the order of sums
EQUAL = ("trainer.precision=64-true", "backbone.drop_path=0.0")


def test_two_processes_with_half_the_batch_equal_one(images: Path, tmp_path: Path) -> None:
    run_processes(2, train_all_on_rank, 2, str(images), str(tmp_path / "two"))
    for objective in OBJECTIVES:
        one = run_tiny(images, objective, tmp_path / "one", *EQUAL)
        two = tmp_path / "two" / one.name
        for file in FILES:
            a, b = load_file(one / file), load_file(two / file)
            for name in a:
                torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
        losses = [[float(row["loss"]) for row in logged(run) if row["loss"]] for run in (one, two)]
        assert len(losses[0]) == 9 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_disk_full_while_saving_keeps_the_old_checkpoint(images: Path, tmp_path: Path) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path, "trainer.stop_after_epoch=1")
    before = weights(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="cannot write .*what was there before is untouched"):
            run_tiny(images, "bits_fixed", tmp_path, "trainer.stop_after_epoch=0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert weights(run) == before and not list(run.rglob("*.tmp"))
    load_backbone(run)


def test_a_loss_that_is_not_finite_stops_with_step_and_remedy(images: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="(step|NaN or infinity)"):
        run_tiny(images, "bits_fixed", tmp_path, "optim.lr=1e30", "optim.clip_grad=0", "trainer.epochs=20")


def test_drop_path_differs_between_steps_but_repeats_between_runs(images: Path, tmp_path: Path) -> None:
    a = run_tiny(images, "bits_fixed", tmp_path / "a", "backbone.drop_path=0.5")
    b = run_tiny(images, "bits_fixed", tmp_path / "b", "backbone.drop_path=0.5")
    c = run_tiny(images, "bits_fixed", tmp_path / "c", "backbone.drop_path=0.0")
    assert weights(a) == weights(b) != weights(c)


def bad_images(tmp_path: Path, kind: str) -> Path:
    from tiny import write_images

    root = write_images(tmp_path / "bad", train=6, val=2, side=4 if kind == "small" else 20)
    victim = root / "train" / "class1" / "003.png"
    if kind == "corrupt":
        victim.write_bytes(victim.read_bytes()[:60])
    if kind == "empty class":
        (root / "train" / "nothing").mkdir()
    if kind == "empty":
        for file in (root / "train").rglob("*.png"):
            file.unlink()
    return root


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("corrupt", r"class1/003\.png.*skip_bad"),
        ("small", r"side of 4 pixels, less than one patch \(8\)"),
        ("empty class", r"train/nothing holds no image"),
        ("empty", r"no image in .*expected train/<class>/<image>"),
    ],
)
def test_bad_image_folders_are_named(kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=says):
        run_tiny(bad_images(tmp_path, kind), "bits_fixed", tmp_path)


def test_skip_bad_trains_on_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_tiny(bad_images(tmp_path, "corrupt"), "bits_fixed", tmp_path, "trainer.skip_bad=true", "name=7")
    assert run.name == "7", "a name that YAML reads as a number"
    assert read_run(run)["skipped_images"] > 0 and "could not be decoded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["objective=bits_rest"], "unknown objective 'bits_rest'; did you mean 'bits_reset'?"),
        (["trainer.epoch=3"], "unknown configuration key 'trainer.epoch'; did you mean 'trainer.epochs'?"),
        (["data_root=/nonexistent"], "no dataset at /nonexistent"),
        (["trainer.batch_size=1000"], "trainer.batch_size=1000 is larger than the data set of 36 images"),
        (["backbone.patch_size=7"], "patch size 7 does not divide the image size 16"),
        (["views.global_view.size=64"], "smaller than the crop of 64"),
        (["runs=/dev/null/runs"], "cannot write /dev/null/runs"),
        (["objective.loss.target=hrad"], "unknown target 'hrad'"),
    ],
)
def test_the_command_line_ends_in_one_clear_line(
    values: list[str],
    says: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [value for value in overrides(images, "bits_fixed", tmp_path) if value.split("=")[0] not in
             {v.split("=")[0] for v in values}]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["pretrain", *given, *values])
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stopped.value.code == 1 and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and says in lines[0]


def test_the_command_as_a_user_types_it_ends_without_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretrain", "data=folder", f"data_root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no dataset at") and len(done.stderr.splitlines()) == 1


def test_damaged_and_foreign_checkpoints_are_refused_by_name(images: Path, tmp_path: Path) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path)
    other = run_tiny(images, "bits_fixed", tmp_path / "other", "backbone.embed_dim=32")
    good = (run / "backbone.safetensors").read_bytes()
    (run / "backbone.safetensors").write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="backbone.safetensors is damaged"):
        load_backbone(run)
    (run / "backbone.safetensors").write_bytes((other / "backbone.safetensors").read_bytes())
    info = json.loads((run / "run.json").read_text())
    info["sha256"] = read_run(other)["sha256"]
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match=r"another architecture: .*expected"):
        load_backbone(run)
    with pytest.raises(CheckpointError, match="no run at"):
        load_backbone(tmp_path / "missing")


def test_configurations_reject_unknown_keys(images: Path, tmp_path: Path) -> None:
    config = compose(*overrides(images, "bits_fixed", tmp_path))
    with pytest.raises(Exception, match="not in struct"):
        config.trainer.epochz = 3
    with open_dict(config):
        config.quiet = True
    assert Image.open(next((images / "train").rglob("*.png"))).size == (20, 20)
