"""The training loop: `fit` is the loop, `train_step` one step, `train` a whole run; `prepare` builds what they touch.

Nothing a step does depends on the history of a random state (see `views`), so a saved step continues byte for byte.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pretrain import cli, diagnostics
from pretrain.backbones import preprocess
from pretrain.checkpoint import CheckpointError, file_digest, read_run, resume_run
from pretrain.curves import write_curves
from pretrain.datasets import ImageData
from pretrain.datasets.overlap import overlap
from pretrain.datasets.splits import image_split
from pretrain.distributed import mean_over_processes
from pretrain.log import Log, Progress
from pretrain.objectives.base import Output
from pretrain.optim import clip_gradients
from pretrain.prepare import Run, own_threads, prepare
from pretrain.sharding import Sharded, gradients_stay
from pretrain.state import ADDED, HARMLESS, check_origin, keeps, restore, save, start_from
from pretrain.teacher import hash_seed, update_teacher
from pretrain.views import finished_views


def fit(run: Run, log: Log, quiet: bool = False) -> None:
    """The loop: from `run.step` to the last epoch, saving on the way, on request and at the end."""
    last, n = last_epoch(run.trainer), run.steps_per_epoch
    began, saved = time.monotonic() - run.seconds, time.monotonic()
    with stop_signals() as stop, Progress(last * n, run, quiet or run.fabric.global_rank > 0) as progress:
        for epoch in range(run.step // n, last):
            start_epoch(run, epoch)
            for batch in run.loader:
                scalars = train_step(run, batch, epoch)
                run.step, run.seconds = run.step + 1, time.monotonic() - began
                progress.advance(scalars)
                log.add(run, scalars)
                due = time.monotonic() - saved > 60 * run.trainer["save_minutes"]  # by a clock of each process's own
                if agreed(run.fabric, bool(stop) or due):
                    save(run)
                    saved = time.monotonic()
                    if agreed(run.fabric, bool(stop)):
                        same = "" if run.info["config"]["overwrite"] else "the same command or "
                        raise cli.Interrupted(
                            f"{run.directory} is saved at step {run.step} of {last * n}; "
                            f"{same}resume={run.directory} goes on"
                        )
            log.end_epoch(run, epoch, end_epoch(run))
            done = epoch + 1
            every = run.trainer["save_every"]  # 0: never in between
            if (every and done % every == 0) or done == last or keeps(run.trainer, done):
                save(run, finished=done == last)
                saved = time.monotonic()


def last_epoch(trainer: Mapping[str, Any]) -> int:
    """After how many epochs a run ends."""
    return min(trainer["stop_after_epoch"] or trainer["epochs"], trainer["epochs"])


def train_step(run: Run, batch: dict[str, Any], epoch: int) -> dict[str, Tensor]:
    """One step: schedules, views, teacher, student, loss, backward, clipping, optimiser, teacher update."""
    fabric, it = run.fabric, run.step
    torch.manual_seed(hash_seed(run.info["seed"], it, fabric.global_rank))  # dropout, where a backbone is given any
    write_rates(run, epoch)
    run.optimizer.zero_grad()
    parts = split_batch(batch, run.trainer["accumulate"])
    outputs = []
    share = run.batches.batch_size // fabric.world_size
    for i, part in enumerate(parts, 1):
        first = fabric.global_rank * share + (i - 1) * share // len(parts)
        run.depth.begin(hash_seed(run.info["seed"], it), first, share // len(parts), run.batches.batch_size)
        with unsynchronised(run) if i < len(parts) else contextlib.nullcontext():
            outputs.append(forward_backward(run, part, epoch, len(parts)))
    if fabric.strategy.precision.precision == "16-mixed":
        wrapped: Any = run.optimizer  # the scaler would not know the wrapper's gradients and unscale them again
        fabric.strategy.precision.unscale_gradients(wrapped.optimizer)
    norm = clip_gradients(run.network.parameters(), *run.clip)
    run.objective.drop_gradients(run.network.head, epoch)
    run.optimizer.step()
    if run.teacher is not None:
        update_teacher(run.teacher, run.network, float(run.schedules["ema"][it]))
    figures = [{"loss": output.loss.detach(), "grad_norm": norm, **output.scalars} for output in outputs]
    scalars = {name: torch.stack([each[name] for each in figures]).mean(0) for name in figures[0]}
    bad = batch["bad"].sum().to(fabric.device)
    means = mean_over_processes(torch.stack([value.double() for value in (*scalars.values(), bad)]))
    run.skipped += round(float(means[-1]) * fabric.world_size)
    return dict(zip(scalars, means, strict=False))


def forward_backward(run: Run, batch: dict[str, Any], epoch: int, parts: int) -> Output:
    """Views, teacher, student, loss and its gradient, as one of so many equal parts of a step.

    Raises FloatingPointError on all processes when the loss of one is not finite.
    """
    fabric = run.fabric
    views = finished_views(batch, run.network.backbone.mean, run.network.backbone.std, fabric.device)
    views = fabric.strategy.precision.convert_input(views)
    with torch.no_grad(), fabric.autocast():
        target = run.teacher(views[:2]) if run.teacher is not None else None
    student, loss = run.student(views), math.nan
    try:
        output = run.objective(student, target)
        loss = float(output.loss.detach())
    except FloatingPointError:  # perhaps on this process alone: all leave the step together
        pass
    if agreed(fabric, not math.isfinite(loss)):
        raise FloatingPointError(
            f"the loss is {loss} at step {run.step} (epoch {epoch}); the last saved state is untouched: lower optim.lr "
            f"(now {run.schedules['lr'].max():.3g} at its peak) or optim.clip_grad, under another name=..."
        )
    fabric.backward(output.loss / parts)
    return output


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A process's batch as so many equal parts."""
    if parts == 1:
        return [batch]
    pieces = [
        zip(*(view.chunk(parts) for view in value), strict=True) if isinstance(value, list) else value.chunk(parts)
        for value in batch.values()
    ]
    return [dict(zip(batch, values, strict=True)) for values in zip(*pieces, strict=True)]


def unsynchronised(run: Run) -> contextlib.AbstractContextManager:
    """Keep gradients on this process until the last part of a step."""
    if isinstance(run.fabric.strategy, Sharded):
        return gradients_stay(run.network)
    return run.fabric.no_backward_sync(run.student) if run.fabric.world_size > 1 else contextlib.nullcontext()


def start_epoch(run: Run, epoch: int) -> None:
    """Point the loader at the epoch's remaining batches; redraw heads where the reset rule says so."""
    run.batches.epoch, run.batches.start = epoch, run.step % run.steps_per_epoch
    run.student.train()
    run.objective.start_epoch(epoch)
    if run.batches.start == 0 and run.reset.due(epoch):
        teacher_head = run.teacher.head if run.teacher is not None else None
        run.reset.apply(run.network.head, teacher_head, run.optimizer, run.info["seed"], epoch)


def end_epoch(run: Run) -> dict[str, float]:
    """Health of the network that evaluation will use."""
    network = run.teacher if run.teacher is not None else run.network
    images = preprocess(run.probe.to(run.fabric.device), run.network.backbone.mean, run.network.backbone.std)
    images = run.fabric.strategy.precision.convert_input(images)
    with run.fabric.autocast():
        return diagnostics.health(network.backbone, network.head, images)


def write_rates(run: Run, epoch: int) -> None:
    """Write this step's learning rate to all groups and its weight decay to the decayed one."""
    rate = float(run.schedules["lr"][run.step])
    began = run.reset.last_before(epoch)
    if began is not None and run.reset.rewarm_iters:
        rate *= min(1.0, (run.step - began * run.steps_per_epoch + 1) / run.reset.rewarm_iters)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)
        if group["decayed"]:
            group["weight_decay"] = float(run.schedules["weight_decay"][run.step])


def agreed(fabric: Fabric, flag: bool) -> bool:
    """Whether any process raises the flag: all must leave a step together."""
    if fabric.world_size == 1:
        return flag
    total: Any = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(total > 0)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying in the middle of a step; a second Ctrl-C stops at once."""
    seen: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and seen:
            raise KeyboardInterrupt("at once; the last saved state is untouched")
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def objective_remarks(run: Run) -> list[str]:
    """What looks wrong in the settings of a run that begins."""
    asked, epochs = run.info["config"]["optim"]["warmup_epochs"], run.trainer["epochs"]
    if run.step:
        return []
    found = run.objective.remarks(run.batches.batch_size)
    if asked is not None and asked > epochs:
        found.append(f"optim.warmup_epochs={asked} is more than the {epochs} epochs: a tenth of these instead")
    return found


def note_overlap(run: Run, cfg: DictConfig) -> None:
    """Warn of training images that are in the test split of the same data too, and keep their number."""
    if not cfg.trainer.check_overlap:
        return
    try:
        test: ImageData = hydra.utils.instantiate(cfg.data.splits[image_split(cfg.data.splits, "test")])
    except (ValueError, InstantiationException):
        return  # no test split here, so nothing is measured on it either
    images: ImageData = run.loader.dataset.images  # type: ignore[attr-defined]
    found = overlap(images, test)
    run.info["data"]["overlap"] = len(found)
    if found and run.fabric.is_global_zero:
        print(
            f"warning: {len(found)} of the {len(images)} images of {test.name} to train on are in its test split too, "
            f"by content (first {images.paths[found[0]]}): scores on it will flatter this run",
            file=sys.stderr,
        )


def given_words() -> list[str]:
    """What the command line changes, without what tells `resume` itself."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [word for word in words if word.partition("=")[0] not in ("resume", "quiet")]


def saved_config(directory: Path, *, quiet: bool, words: Sequence[str] = ()) -> DictConfig:
    """The configuration of a run that was begun, pointing at where it lies now; `words` are further settings.

    Raises CheckpointError where nothing was begun, and ValueError for a word that would make it another run.
    """
    found = resume_run(directory)
    if found is None:
        raise CheckpointError(f"nothing to resume in {directory}: no resume/latest.json there; give a run's folder")
    for word in words:
        if word.partition("=")[0] not in HARMLESS or not word.startswith("trainer."):
            raise ValueError(
                f"resume={directory} goes on by the configuration of that run; {word} would make it another: leave it "
                "out, or begin a new run with init.checkpoint=..."
            )
    place, config = directory.resolve(), OmegaConf.create(found[1]["config"])
    for key, value in ADDED.items():
        if OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, value, force_add=True)
    own = {"runs": str(place.parent), "name": place.name, "overwrite": False, "quiet": quiet}
    return cast(DictConfig, OmegaConf.merge(config, own, OmegaConf.from_dotlist(list(words))))


@contextlib.contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the folder of a run against a second training of it; raises CheckpointError where there is one already.

    The lock is the process's own: killed, it leaves none, nor do its workers. Where there are no locks, none is held.
    """
    busy = False
    with contextlib.ExitStack() as stack:
        if run.fabric.is_global_zero:
            with contextlib.suppress(OSError):  # a folder that cannot be written is named when the log is opened
                run.directory.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(run.directory / ".lock", "a"))
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    busy = True
        if agreed(run.fabric, busy):
            raise CheckpointError(
                f"{run.directory} is being trained by another process; wait for it, or choose another name=..."
            )
        yield


def start_again(run: Run) -> None:
    """Remove what an older run of this name left: its kept epochs, its state, and the word that it is finished."""
    if run.fabric.is_global_zero:
        (run.directory / "run.json").unlink(missing_ok=True)  # it vouches for the rest, so it goes first
        for part in ("epochs", "resume"):
            shutil.rmtree(run.directory / part, ignore_errors=True)
    run.fabric.barrier()


def is_saved_whole(run: Run) -> bool:
    """Whether what evaluation reads is there as of this step, and says that the run is finished."""
    try:
        info = read_run(run.directory)
        same = all(file_digest(run.directory / name) == digest for name, digest in info["sha256"].items())
    except (CheckpointError, OSError):
        return False
    return same and bool(info.get("finished")) and info.get("step") == run.step


def train(cfg: DictConfig) -> Path:
    """Train the run that a configuration describes, or go on with it; returns its folder."""
    if OmegaConf.select(cfg, "experiment.sweep"):
        raise ValueError("this experiment is a sweep: train its runs with python -m pretrain.sweep experiment=NAME")
    if cfg.resume:
        cfg = saved_config(Path(cfg.resume), quiet=cfg.quiet, words=given_words())
    cfg.name = str(cfg.name)  # 1 and nan are numbers in YAML
    directory = Path(cfg.runs) / cfg.name
    with own_threads(cfg.trainer.threads):
        run = prepare(cfg, directory)
        origin = run.info["config"]["init"]["checkpoint"]
        if origin:
            check_origin(run, Path(origin))
        with claimed(run):
            begin(run, cfg, origin)
    return directory


def begin(run: Run, cfg: DictConfig, origin: str | None) -> None:
    """Train a run whose folder is ours from where it stands; `origin` is the run that it starts from, if any."""
    directory = run.directory
    if cfg.overwrite:
        start_again(run)
    resumed = restore(run)
    if not resumed:
        if origin:
            start_from(run, Path(origin))
        note_overlap(run, cfg)
    with Log(run, fresh=not resumed) as log:
        last = last_epoch(run.trainer) * run.steps_per_epoch
        if run.step >= last:
            if last == 0 or agreed(run.fabric, not is_saved_whole(run)):
                save(run, finished=True)  # what it begins with, as a run of its own; or stopped just before the end
            run.fabric.print(f"{directory} is finished ({run.step} steps); nothing to do")
            return
        verb = f"going on with {directory} at step {run.step}" if run.step else f"training {directory}"
        run.fabric.print(f"{verb}: {run.info['objective']} on {run.info['data']['name']}, {last} steps")
        log.remark("before training", objective_remarks(run))
        fit(run, log, cfg.quiet)
        if run.fabric.is_global_zero and cfg.trainer.curves:
            write_curves(directory, run.info["name"])
        if run.skipped:
            times = f"{run.skipped} time{'s' if run.skipped > 1 else ''}"
            run.fabric.print(f"{times} an image could not be decoded and the next one stood in")
        run.fabric.print(f"finished {directory}")
