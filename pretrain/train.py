"""Pre-training: `python -m pretrain objective=bits_reset data=cifar10`.

`fit` is the loop, `train_step` one step; everything before prepares them. Nothing a step does depends on the history of
a random state (see `views`), so a saved step continues byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from pretrain import cli, diagnostics
from pretrain.backbones import Backbone, preprocess
from pretrain.checkpoint import CheckpointError, load_weights, resume_run, save_resume, save_run
from pretrain.datasets import ImageData, ImageError, centre_view
from pretrain.distributed import mean_over_processes
from pretrain.heads import build_head
from pretrain.log import Log, Progress, describe_machine
from pretrain.objectives.base import Objective
from pretrain.optim import clip_gradients, make_optimizer, parameter_groups
from pretrain.schedules import cosine_schedule, lars_schedule
from pretrain.teacher import HeadReset, Network, hash_seed, make_teacher, update_teacher
from pretrain.views import Crops, EpochBatches, View, colour_views

#: configuration keys that change no number of a run
HARMLESS = {"runs", "name", "resume", "data_root", "data.splits", "data.prepare", "quiet", "overwrite"}
HARMLESS |= {
    f"trainer.{key}"
    for key in (
        "workers", "save_every", "save_minutes", "keep_every", "log_every", "devices", "num_nodes", "stop_after_epoch"
    )
}  # fmt: skip


@dataclass
class Run:
    """Everything a step touches."""

    fabric: Fabric
    student: Any
    teacher: Network | None
    objective: Objective
    optimizer: torch.optim.Optimizer
    batches: EpochBatches
    loader: DataLoader
    schedules: dict[str, np.ndarray]
    reset: HeadReset
    directory: Path
    info: dict[str, Any]
    trainer: dict[str, Any]
    clip: tuple[float, str]
    probe: Tensor
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def network(self) -> Network:
        """The student without the data-parallel wrapper."""
        return self.student.module

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a full epoch."""
        return len(self.batches)


def fit(run: Run, log: Log, quiet: bool = False) -> None:
    """The loop: from `run.step` to the last epoch, saving on the way, on request and at the end."""
    last = run.trainer["stop_after_epoch"] or run.trainer["epochs"]
    n = run.steps_per_epoch
    began, saved = time.monotonic() - run.seconds, time.monotonic()
    with stop_signals() as stop, Progress(last * n, run, quiet or run.fabric.global_rank > 0) as progress:
        for epoch in range(run.step // n, last):
            start_epoch(run, epoch)
            for batch in run.loader:
                scalars = train_step(run, batch, epoch)
                run.step, run.seconds = run.step + 1, time.monotonic() - began
                progress.advance(scalars)
                log.add(run, scalars)
                if agreed(run.fabric, bool(stop)):
                    save(run)
                    raise cli.Interrupted(
                        f"{run.directory} is saved at step {run.step} of {last * n}; "
                        f"the same command or resume={run.directory} goes on"
                    )
                if time.monotonic() - saved > 60 * run.trainer["save_minutes"]:
                    save(run)
                    saved = time.monotonic()
            log.end_epoch(run, epoch, end_epoch(run))
            if (epoch + 1) % run.trainer["save_every"] == 0 or epoch + 1 == last:
                save(run, finished=epoch + 1 == last)
                saved = time.monotonic()


def train_step(run: Run, batch: dict[str, Any], epoch: int) -> dict[str, Tensor]:
    """One step: schedules, views, teacher, student, loss, backward, clipping, optimiser, teacher update."""
    fabric, it = run.fabric, run.step
    torch.manual_seed(hash_seed(run.info["seed"], it, fabric.global_rank))  # stochastic depth
    write_rates(run, epoch)
    views = colour_views(batch, run.network.backbone.mean, run.network.backbone.std, fabric.device)
    views = fabric.strategy.precision.convert_input(views)
    with torch.no_grad(), fabric.autocast():
        target = run.teacher(views[:2]) if run.teacher is not None else None
    output = run.objective(run.student(views), target)
    if agreed(fabric, not bool(torch.isfinite(output.loss))):
        raise FloatingPointError(
            f"the loss is {output.loss.item()} at step {it} (epoch {epoch}); the last saved state is untouched: "
            f"lower optim.lr (now {run.schedules['lr'].max():.3g} at its peak) or optim.clip_grad, and run again"
        )
    run.optimizer.zero_grad()
    fabric.backward(output.loss)
    if fabric.strategy.precision.precision == "16-mixed":
        fabric.strategy.precision.unscale_gradients(run.optimizer)
    norm = clip_gradients(run.network.parameters(), *run.clip)
    run.objective.drop_gradients(run.network.head, epoch)
    run.optimizer.step()
    if run.teacher is not None:
        update_teacher(run.teacher, run.network, float(run.schedules["ema"][it]))
    run.skipped += int(batch["bad"].sum())
    scalars = {"loss": output.loss.detach(), "grad_norm": norm, **output.scalars}
    means = mean_over_processes(torch.stack([value.double() for value in scalars.values()]))
    return dict(zip(scalars, means, strict=True))


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


def save(run: Run, finished: bool = False) -> None:
    """Save what evaluation reads and what a continued run needs, on the main process."""
    run.fabric.barrier()
    if run.fabric.is_global_zero:
        student = run.network
        evaluated = run.teacher if run.teacher is not None else student
        info = {
            **run.info,
            "step": run.step,
            "epoch": run.step / run.steps_per_epoch,
            "images_seen": run.step * run.batches.batch_size,
            "skipped_images": run.skipped,
            "seconds": round(run.seconds, 1),
            "finished": finished,
        }
        parts = (evaluated.backbone, evaluated.head)
        both = (student.backbone, student.head) if run.teacher is not None else None
        keep, epoch = run.trainer["keep_every"], run.step // run.steps_per_epoch
        if keep and run.step % run.steps_per_epoch == 0 and epoch % keep == 0:
            save_run(run.directory / "epochs" / f"{epoch:03d}", parts, both, info)
        save_resume(run.directory, *resume_state(run, info))
        save_run(run.directory, parts, both, info)
    run.fabric.barrier()


def resume_state(run: Run, info: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (student, teacher, objective, optimiser) and facts that continue the run exactly."""
    modules = {"student": run.network, "teacher": run.teacher, "objective": run.objective}
    tensors = {
        f"{part}/{name}": value
        for part, module in modules.items()
        if module is not None
        for name, value in module.state_dict().items()
    }
    for index, entries in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in entries.items()}
    scaler = {key: float(value) for key, value in run.fabric.strategy.precision.state_dict().items()}
    return tensors, {**info, "sums": run.sums, "scaler": scaler}


def restore(run: Run) -> bool:
    """Continue from the run's saved state, if there is one; returns whether there was.

    Raises CheckpointError when the folder holds a run of another configuration or other images.
    """
    found = resume_run(run.directory)
    if found is None:
        return False
    tensors, state = found
    different = differences(state["config"], run.info["config"])
    if state["data"]["fingerprint"] != run.info["data"]["fingerprint"]:
        different.append(f"the images: {state['data']['name']} {state['data']['fingerprint']} there")
    if different:
        raise CheckpointError(
            f"{run.directory} holds a run of another configuration ({'; '.join(different[:3])}); "
            "choose another name=..., or overwrite=true to start again"
        )
    modules = {"student": run.network, "teacher": run.teacher, "objective": run.objective}
    for part, module in modules.items():
        if module is not None:
            load_weights(module, select(tensors, f"{part}/"), run.directory)
    optimizer = run.optimizer.state_dict()
    for name, value in select(tensors, "optimizer/").items():
        index, key = name.split("/")
        optimizer["state"].setdefault(int(index), {})[key] = value
    run.optimizer.load_state_dict(optimizer)
    if state["scaler"]:
        scaler = {k: int(v) if k == "_growth_tracker" else v for k, v in state["scaler"].items()}
        run.fabric.strategy.precision.load_state_dict(scaler)
    run.step, run.skipped, run.seconds, run.sums = (
        state["step"], state["skipped_images"], state["seconds"], state["sums"]
    )  # fmt: skip
    return True


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Configuration entries that differ, in words, leaving out those that change no number."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        name = f"{prefix}{key}"
        if name in HARMLESS:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name} is {a!r} there, {b!r} now")
    return found


def make_fabric(accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str) -> Fabric:
    """Fabric for this machine or for the process group that torchrun or SLURM started."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif devices == "auto" and not torch.cuda.is_available():
        devices = 1
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def make_schedules(
    optim: Mapping[str, Any], ema: Mapping[str, float], epochs: int, n: int, batch: int
) -> dict[str, np.ndarray]:
    """Learning rate (scaled by batch/256), weight decay and teacher momentum, one value a step."""
    peak, warmup = optim["lr"] * batch / 256, optim["warmup_epochs"]
    warmup = min(10, epochs / 10) if warmup is None else warmup
    if optim["schedule"] == "lars":
        rate = lars_schedule(peak, epochs, n, warmup)
    elif optim["schedule"] == "cosine":
        rate = cosine_schedule(peak, optim["min_lr"], epochs, n, warmup)
    else:
        raise ValueError(f"unknown optim.schedule {optim['schedule']!r}; use cosine or lars")
    decay = cosine_schedule(optim["weight_decay"], optim["weight_decay_end"], epochs, n)
    return {"lr": rate, "weight_decay": decay, "ema": cosine_schedule(ema["base"], ema["final"], epochs, n)}


def check_images(images: ImageData, views: Sequence[View], patch: int, upscale: bool) -> None:
    """Refuse a data set whose images are smaller than a patch, or mostly smaller than the global crop.

    Looks at up to 64 images spread over the set; `upscale` allows enlarging.
    """
    sides = []
    for index in np.linspace(0, len(images) - 1, min(64, len(images))).astype(int):
        try:
            sides.append(min(images.image(int(index)).size))
        except ImageError:
            if not images.skip_bad:
                raise
            continue
        if sides[-1] < patch:
            raise ImageError(f"{images.paths[index]} has a side of {sides[-1]} pixels, less than one patch ({patch})")
    typical, crop = int(np.median(sides or [0])), views[0].size
    if typical < crop and not upscale:
        raise ImageError(
            f"the images of {images.name} are about {typical} pixels, smaller than the crop of {crop}; "
            "choose a smaller recipe (recipe=small32), or trainer.upscale=true to enlarge them"
        )


def probe_images(images: ImageData, backbone: Backbone, count: int = 512) -> Tensor:
    """Centre views of the same few images, spread over the set, for health figures: uint8 (n, 3, S, S)."""
    views = []
    for index in np.linspace(0, len(images) - 1, min(count, len(images))).astype(int):
        with contextlib.suppress(ImageError):  # training names or counts a damaged image when it meets it
            view = centre_view(images.image(int(index)), backbone.resize, backbone.image_size)
            views.append(torch.from_numpy(view).permute(2, 0, 1))
    return torch.stack(views)


def prepare(cfg: DictConfig, directory: Path) -> Run:
    """Build all parts of a run from a configuration."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    trainer, seed = config["trainer"], config["seed"]
    fabric = make_fabric(*(trainer[key] for key in ("accelerator", "devices", "num_nodes", "strategy", "precision")))
    if fabric.is_global_zero and cfg.data.prepare is not None:
        hydra.utils.instantiate(cfg.data.prepare)
    fabric.barrier()
    images: ImageData = hydra.utils.instantiate(cfg.data.splits.train, skip_bad=trainer["skip_bad"])
    views: list[View] = hydra.utils.instantiate(cfg.views)
    head = config["objective"]["head"]
    objective: Objective = hydra.utils.instantiate(cfg.objective.loss, head=head, _convert_="all")
    objective.check_batch(trainer["batch_size"], len(views))
    torch.manual_seed(seed)
    backbone = Backbone(**config["backbone"])
    check_images(images, views, backbone.patch_size, trainer["upscale"])
    head = {**head, "dim": backbone.dim}
    network = Network(backbone, build_head(head))
    batches = EpochBatches(len(images), trainer["batch_size"], seed, fabric.global_rank, fabric.world_size)
    loader = DataLoader(
        Crops(images, views, seed),
        batch_sampler=batches,
        num_workers=trainer["workers"],
        persistent_workers=trainer["workers"] > 0,
        pin_memory=fabric.device.type == "cuda",
    )
    optim = config["optim"]
    plain_factor = optim["plain_lr"] / optim["lr"] if optim["plain_lr"] else 1.0
    groups = parameter_groups(network, decay_tokens=optim["decay_tokens"], plain_factor=plain_factor)
    fused = optim["name"] == "adamw" and trainer["precision"] != "16-mixed"
    student, optimizer = fabric.setup(network, make_optimizer(optim["name"], groups, fused=fused))
    teacher = make_teacher(student.module) if objective.uses_teacher else None
    info = {
        "name": config["name"],
        "objective": config["objective"]["name"],
        "label": objective.label,
        "binary": objective.binary,
        "backbone": backbone.spec,
        "head": head,
        "config": config,
        "seed": seed,
        "data": {"name": images.name, "fingerprint": images.fingerprint, "images": len(images)},
        **describe_machine(fabric),
    }
    return Run(
        fabric, student, teacher, objective.to(fabric.device), optimizer, batches, loader,
        make_schedules(optim, config["ema"], trainer["epochs"], len(batches), trainer["batch_size"]),
        HeadReset(**config["head_reset"]), directory, info, trainer, (optim["clip_grad"], optim["clip_mode"]),
        probe_images(images, backbone),
    )  # fmt: skip


def saved_config(directory: Path, *, quiet: bool) -> DictConfig:
    """The configuration of a run that was begun, pointing at where it lies now; raises CheckpointError without one."""
    found = resume_run(directory)
    if found is None:
        raise CheckpointError(f"nothing to resume in {directory}: no resume/latest.json there; give a run's folder")
    place = directory.resolve()
    return OmegaConf.create(
        {**found[1]["config"], "runs": str(place.parent), "name": place.name, "overwrite": False, "quiet": quiet}
    )


def train(cfg: DictConfig) -> Path:
    """Train the run that a configuration describes, or go on with it; returns its folder."""
    if cfg.resume:
        cfg = saved_config(Path(cfg.resume), quiet=cfg.quiet)
    cfg.name = str(cfg.name)  # 1 and nan are numbers in YAML
    directory = Path(cfg.runs) / cfg.name
    run = prepare(cfg, directory)
    with Log(run, fresh=cfg.overwrite or not restore(run)) as log:
        last = (cfg.trainer.stop_after_epoch or cfg.trainer.epochs) * run.steps_per_epoch
        if run.step >= last:
            run.fabric.print(f"{directory} is finished ({run.step} steps); nothing to do")
            return directory
        verb = f"going on with {directory} at step {run.step}" if run.step else f"training {directory}"
        run.fabric.print(f"{verb}: {run.info['objective']} on {run.info['data']['name']}, {last} steps")
        fit(run, log, cfg.quiet)
        if run.skipped:
            times = f"{run.skipped} time{'s' if run.skipped > 1 else ''}"
            run.fabric.print(f"{times} an image could not be decoded and the next one stood in")
        run.fabric.print(f"finished {directory}")
    return directory


def main() -> None:
    """Entry point of `python -m pretrain`."""
    cli.run(train, "pretrain")
