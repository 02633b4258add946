"""The training loop: one contract for every objective, exact resume, equal results on more processes, clear errors."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins import MixedPrecision
from omegaconf import open_dict
from PIL import Image
from processes import context
from tiny import OBJECTIVES, TWO_VIEWS, compose, overrides, write_images
from training import EQUAL, NO_RESET, assert_equal_up_to_sums, logged, run_tiny, stop_at, weights

from pretrain import cli
from pretrain.__main__ import main
from pretrain.checkpoint import CheckpointError, load_backbone, load_head, read_run, weights_digest
from pretrain.log import Log
from pretrain.prepare import prepare, warmup_epochs
from pretrain.state import differences
from pretrain.train import saved_config, start_epoch, train, train_step


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_falls_saves_and_loads(objective: str, images: Path, tmp_path: Path) -> None:
    batch = 36 if objective in ("barlow_twins", "vicreg") else 12  # their statistic over 12 images is mostly noise
    epochs = 24 * batch // 36
    run = run_tiny(images, objective, tmp_path, f"trainer.batch_size={batch}", f"trainer.epochs={epochs}", *NO_RESET)
    losses = [float(row["loss"]) for row in logged(run) if row["loss"]]
    assert len(losses) == 24 and sum(losses[-6:]) < sum(losses[:6])
    info = read_run(run)
    assert info["finished"] and info["images_seen"] == 24 * batch and info["objective"] == objective
    assert info["label"] == ("inferred loss and IMSVD hyper-parameters" if objective == "music" else "")
    backbone, head = load_backbone(run), load_head(run)
    assert torch.isfinite(head(backbone(torch.rand(2, 3, 16, 16)))).all() and not backbone.training


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_too_small_for_the_statistic_is_refused(objective: str, images: Path, tmp_path: Path) -> None:
    if objective == "dino":  # a mean over images: one is enough
        assert read_run(run_tiny(images, objective, tmp_path, "trainer.batch_size=1", "trainer.epochs=1"))["finished"]
        return
    with pytest.raises(ValueError, match="needs at least 2 images in all processes, got 1; raise trainer.batch_size"):
        run_tiny(images, objective, tmp_path, "trainer.batch_size=1")


@pytest.mark.thorough
@pytest.mark.parametrize(("settings", "kept"), [
    (["trainer.keep_every=2"], ["002", "004"]),
    (["trainer.keep_last=2"], ["004", "005"]),
    (["trainer.keep_last=1", "trainer.keep_every=2", "trainer.save_every=3"], ["002", "004", "005"]),
    ([], []),
])  # fmt: skip
def test_epochs_are_kept_by_policy(settings: list[str], kept: list[str], images: Path, tmp_path: Path) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path, "trainer.epochs=5", *settings)
    folders = sorted((run / "epochs").iterdir()) if kept else []
    assert [folder.name for folder in folders] == kept and (run / "epochs").exists() == bool(kept)
    assert [read_run(folder)["epoch"] for folder in folders] == [int(name) for name in kept]
    digests = {weights_digest(load_backbone(folder)) for folder in folders}
    assert len(digests) == len(kept)
    assert not kept or (weights_digest(load_backbone(run)) in digests) == ("005" in kept)


THOROUGH = [pytest.param(o, marks=pytest.mark.thorough) for o in ("dino", "vicreg +optim=lars")]


@pytest.mark.parametrize("objective", ["bits_reset", *THOROUGH])
def test_a_run_stopped_in_the_middle_continues_byte_for_byte(
    objective: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *more = objective.split()
    whole = run_tiny(images, name, tmp_path / "whole", *more)
    stop_at(5, monkeypatch)
    with pytest.raises(cli.Interrupted, match="step 5 of 9; the same command or resume="):
        run_tiny(images, name, tmp_path / "parts", *more)
    monkeypatch.undo()
    torch.rand(3)  # the state of the global generator plays no part
    stopped = tmp_path / "parts" / f"{name}-folder"
    parts = train(compose(f"resume={stopped}", "quiet=true"))
    assert parts.samefile(stopped)
    assert weights(whole) == weights(parts)
    assert logged(whole) == logged(parts)


def train_and_save_at_every_step(images: Path, runs: Path) -> None:
    run_tiny(images, "bits_reset", runs, "trainer.epochs=8", "trainer.save_minutes=0")


def test_kill_9_loses_nothing_that_was_saved(images: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed" / "bits_reset-folder"
    process = context().Process(target=train_and_save_at_every_step, args=(images, tmp_path / "killed"), daemon=True)
    process.start()
    deadline = time.monotonic() + 300
    while not (killed / "resume" / "latest.json").exists() or _step(killed) < 5:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert 5 <= _step(killed) < 24
    run_tiny(images, "bits_reset", tmp_path / "killed", "trainer.epochs=8")
    whole = run_tiny(images, "bits_reset", tmp_path / "whole", "trainer.epochs=8")
    assert weights(whole) == weights(killed)
    assert not list(killed.rglob("*.tmp")) or read_run(killed)["finished"]


def _step(run: Path) -> int:
    return json.loads((run / "resume" / "latest.json").read_text())["step"]


def test_a_finished_run_is_not_trained_again(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path)
    before = weights(run)
    run_tiny(images, "bits_fixed", tmp_path)
    assert "nothing to do" in capsys.readouterr().out and weights(run) == before


@pytest.mark.thorough
def test_another_configuration_never_overwrites_a_run(images: Path, tmp_path: Path) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path)
    before = weights(run)
    with pytest.raises(CheckpointError, match=r"optim\.lr is 0\.02 there, 0\.03 now"):
        run_tiny(images, "bits_fixed", tmp_path, "optim.lr=0.03")
    assert weights(run) == before
    run_tiny(images, "bits_fixed", tmp_path, "optim.lr=0.03", "overwrite=true")
    assert weights(run) != before


@pytest.mark.thorough
def test_accumulated_gradients_equal_the_whole_batch(images: Path, tmp_path: Path) -> None:
    whole = run_tiny(images, "dino", tmp_path / "whole", *EQUAL)
    parts = run_tiny(images, "dino", tmp_path / "parts", *EQUAL, "trainer.accumulate=3")
    assert_equal_up_to_sums(whole, parts)
    assert weights(whole) != weights(parts)


@pytest.mark.parametrize(("objective", "settings", "says"), [
    ("bits_fixed", [], "the coding rate of Bits covers the whole batch"),
    ("simdino", [], "the coding rate of SimDINO"),
    ("barlow_twins", [], "the cross-correlation of BarlowTwins"),
    ("vicreg", [], "the variance and covariance of VICReg"),
    ("imsvd", [], "the joint distribution of IMSVD"),
    ("music", [], "the joint distribution of Music"),
    ("dino", ["objective.head.bn=true"], "the batch norm of the head of DINO"),
    ("dino", ["trainer.batch_size=9"], "accumulate=2 does not divide the 9 images"),
])  # fmt: skip
def test_accumulation_is_refused_where_a_statistic_would_change(
    objective: str, settings: list[str], says: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        run_tiny(images, objective, tmp_path, "trainer.accumulate=2", *settings)


@pytest.mark.thorough
def test_a_run_may_begin_with_the_weights_of_another(images: Path, tmp_path: Path) -> None:
    first = run_tiny(images, "bits_fixed", tmp_path / "first")
    still = ("optim.lr=0", "optim.min_lr=0", "ema={base: 1.0, final: 1.0}")
    settings = (f"init.checkpoint={first}", *still)
    same = run_tiny(images, "bits_fixed", tmp_path / "same", *settings)
    assert weights(first) == weights(same)
    assert weights_digest(load_backbone(first, branch="student")) == weights_digest(
        load_backbone(same, branch="student")
    )
    reset = run_tiny(images, "bits_fixed", tmp_path / "reset", *settings, "head_reset.at_start=true")
    assert weights(first)[0] == weights(reset)[0] and weights(first)[1] != weights(reset)[1]
    with pytest.raises(CheckpointError, match="another architecture"):
        run_tiny(images, "bits_fixed", tmp_path / "wide", *settings, "backbone.embed_dim=32")


def test_settings_that_came_later_do_not_part_a_run_from_its_older_self() -> None:
    new: dict[str, Any] = {
        "optim": {"lr": 1},
        "init": {"checkpoint": None},
        "trainer": {"accumulate": 1, "curves": True},
    }
    assert differences({"optim": {"lr": 1}, "trainer": {}}, new) == []
    assert differences({"optim": {"lr": 1}, "trainer": {}}, new | {"trainer": {"accumulate": 2}}) == [
        "trainer.accumulate is 1 there, 2 now"
    ]


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


@pytest.mark.thorough
def test_drop_path_differs_between_steps_but_repeats_between_runs(images: Path, tmp_path: Path) -> None:
    a = run_tiny(images, "bits_fixed", tmp_path / "a", "backbone.drop_path=0.5")
    b = run_tiny(images, "bits_fixed", tmp_path / "b", "backbone.drop_path=0.5")
    c = run_tiny(images, "bits_fixed", tmp_path / "c", "backbone.drop_path=0.0")
    assert weights(a) == weights(b) != weights(c)


def bad_images(tmp_path: Path, kind: str) -> Path:
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


def test_a_run_that_another_process_trains_is_left_to_it(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, 2); print(flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline()
    with pytest.raises(CheckpointError, match="mine is being trained by another process"):
        run_tiny(images, "bits_fixed", tmp_path, "name=mine", f"runs={tmp_path / 'runs'}")
    assert {path.name for path in folder.iterdir()} == {".lock"}
    other.communicate()
    assert run_tiny(images, "bits_fixed", tmp_path, "name=mine", f"runs={tmp_path / 'runs'}") == folder


def test_a_warm_up_longer_than_the_run_is_shortened_aloud(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path, "optim.warmup_epochs=5", "trainer.epochs=2")
    assert "optim.warmup_epochs=5 is more than the 2 epochs: a tenth of these instead" in capsys.readouterr().err
    assert read_run(run)["finished"] and read_run(run)["config"]["optim"]["warmup_epochs"] == 5
    assert warmup_epochs(5, 2) == warmup_epochs(None, 2) == 0.2 and warmup_epochs(None, 400) == 10
    assert warmup_epochs(2, 2) == 2


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
        (["trainer.strategy=fsdq"], "unknown trainer.strategy 'fsdq'; use auto, ddp, fsdp"),
        (["trainer.strategy=fsdp", "trainer.precision=16-mixed"], "use bf16-mixed with trainer.strategy=fsdp"),
        (["trainer.epochs=1.5"], "trainer.epochs=1.5 must be a whole number of at least 0"),
        (["trainer.batch_size=0"], "trainer.batch_size=0 must be a whole number of at least 1"),
        (["optim.lr=fast"], "optim.lr=fast must be a number of at least 0"),
        (["views.local={size: 12}"], "crops of 12 pixels are no whole number of patches of 8; use 8 or 16"),
        (["objective.head.kind=projector"], "head of kind projector: "),
        (["+backbone.pretrained=true"], "takes no 'pretrained'"),
        (["trainer.loggers=[tensorbord]"], "trainer.loggers: unknown 'tensorbord'"),
        (["+experiment=table9"], "this experiment is a sweep"),
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


@pytest.mark.parametrize(("word", "says"), [
    ("objective=bits_rest", "error: unknown objective 'bits_rest'; did you mean 'bits_reset'?"),
    pytest.param("data=folder", "error: no dataset at", marks=pytest.mark.slow),  # it imports all that training needs
])  # fmt: skip
def test_the_command_as_a_user_types_it_ends_without_traceback(word: str, says: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretrain", word, f"data_root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(says) and len(done.stderr.splitlines()) == 1


def test_a_slip_in_the_configuration_is_found_before_the_networks_are_imported() -> None:
    code = "import sys, pretrain.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


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
    described = dict(info["backbone"])
    for change, says in (
        ({"embed_dim": 10**6}, "of another architecture"),  # terabytes, were it allocated
        ({"depth": 10**6}, "it speaks of 1000000 blocks"),
        ({"pretrained": True}, "takes no 'pretrained'"),
        ({"checkpoint_path": "/tmp/x.pth"}, "takes no 'checkpoint_path'"),
    ):
        info["backbone"] = described | change
        (run / "run.json").write_text(json.dumps(info))
        with pytest.raises(ValueError, match=says):
            load_backbone(run)
    for content in ("[]", '{"schema": 1, "name": "x"}'):
        (run / "run.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
            load_backbone(run)


@pytest.mark.thorough
def test_training_in_16_bits_learns_saves_and_goes_on(images: Path, tmp_path: Path) -> None:
    half = ("trainer.precision=bf16-mixed", "objective.head.bn=true", *NO_RESET)
    run = run_tiny(images, "bits_reset", tmp_path / "whole", *half)
    losses = [float(row["loss"]) for row in logged(run) if row["loss"]]
    assert all(map(math.isfinite, losses)) and sum(losses[-3:]) < sum(losses[:3])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.Interrupted):
        stop_at(4, patch)
        run_tiny(images, "bits_reset", tmp_path / "stopped", *half)
    assert weights(run_tiny(images, "bits_reset", tmp_path / "stopped", *half)) == weights(run)


class Scaled(MixedPrecision):
    """As trainer.precision=16-mixed has it on a GPU, but in float32: processors lack half precision."""

    def forward_context(self) -> Any:
        return contextlib.nullcontext()

    convert_input = convert_output = staticmethod(lambda data: data)  # type: ignore[assignment]


@pytest.mark.filterwarnings("ignore:You passed")
def test_scaled_gradients_are_unscaled_once(images: Path, tmp_path: Path) -> None:
    norms = []
    for scaled in (False, True):
        run = prepare(compose(*overrides(images, "bits_fixed", tmp_path, "trainer.precision=16-mixed")), tmp_path)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        run.fabric.strategy._precision = Scaled("16-mixed", "cpu", scaler=scaler)
        start_epoch(run, 0)
        train_step(run, next(iter(run.loader)), 0)
        norms.append(float(torch.stack([p.grad.norm() for p in run.network.parameters() if p.grad is not None]).norm()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_run_ends_with_its_epochs_whatever_it_is_told_to_stop_after(images: Path, tmp_path: Path) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path, "trainer.stop_after_epoch=9")
    assert read_run(run)["epoch"] == 3 and read_run(run)["finished"]


@pytest.mark.thorough
def test_a_run_that_was_killed_in_its_last_save_is_finished_by_the_next_call(images: Path, tmp_path: Path) -> None:
    whole = run_tiny(images, "bits_fixed", tmp_path / "a")
    killed = run_tiny(images, "bits_fixed", tmp_path / "b")
    (killed / "head.safetensors").write_bytes(b"older")
    run_tiny(images, "bits_fixed", tmp_path / "b")
    assert weights(whole) == weights(killed) and read_run(killed)["finished"]


def test_zero_means_never_between(images: Path, tmp_path: Path) -> None:
    run = run_tiny(images, "bits_fixed", tmp_path, "trainer.save_every=0", "trainer.log_every=0")
    assert read_run(run)["finished"] and len(logged(run)) == 3


@pytest.mark.thorough
def test_overwriting_leaves_nothing_of_the_older_run(images: Path, tmp_path: Path) -> None:
    run_tiny(images, "bits_fixed", tmp_path, "trainer.keep_every=1")
    run = run_tiny(images, "bits_fixed", tmp_path, "trainer.epochs=1", "overwrite=true")
    assert not (run / "epochs").exists() and read_run(run)["epoch"] == 1


def test_resuming_takes_what_moves_no_number_and_refuses_the_rest(images: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.Interrupted):
        stop_at(2, patch)
        run_tiny(images, "bits_fixed", tmp_path)
    run = tmp_path / "bits_fixed-folder"
    with pytest.raises(ValueError, match=r"optim\.lr=1 would make it another: leave it out"):
        saved_config(run, quiet=True, words=["optim.lr=1"])
    config = saved_config(run, quiet=True, words=["trainer.log_every=2"])
    assert config.trainer.log_every == 2 and read_run(train(config))["finished"]


def test_the_log_survives_a_disk_that_fills_while_it_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("step\n1\n")
    log = object.__new__(Log)
    log.path, log.rows, log.columns, log.file = file, [{"step": "1"}], [], None
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("csv.DictWriter.writerows", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        log._append({"step": "2", "loss": "1"})
    assert file.read_text() == "step\n1\n"


@pytest.mark.parametrize("objective", TWO_VIEWS)
@pytest.mark.parametrize("recipe", ["small32", "small64"])
def test_recipes_leave_objectives_of_two_views_their_views(objective: str, recipe: str, images: Path) -> None:
    views = compose("data=folder", f"data_root={images}", f"objective={objective}", f"recipe={recipe}").views
    assert views.local_crops == 0 and list(views.global_view.scale) == [0.08, 1.0]


def test_objectives_of_two_views_refuse_more(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"VICReg trains on two views, got 3; set views\.local_crops=0"):
        run_tiny(images, "vicreg", tmp_path, "views.local_crops=1")


def test_configurations_reject_unknown_keys(images: Path, tmp_path: Path) -> None:
    config = compose(*overrides(images, "bits_fixed", tmp_path))
    with pytest.raises(Exception, match="not in struct"):
        config.trainer.epochz = 3
    with open_dict(config):
        config.quiet = True
    assert Image.open(next((images / "train").rglob("*.png"))).size == (20, 20)
