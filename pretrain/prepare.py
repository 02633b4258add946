"""From a configuration to everything that a training step touches: devices, images, network, optimiser, schedules."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pretrain.backbones import Backbone
from pretrain.datasets import ImageData, ImageError, centre_view
from pretrain.datasets.splits import image_split
from pretrain.depth import Rows, follow_images
from pretrain.heads import build_head
from pretrain.log import describe_machine
from pretrain.loggers import check_loggers
from pretrain.objectives.base import Objective
from pretrain.optim import make_optimizer, parameter_groups
from pretrain.schedules import cosine_schedule, lars_schedule
from pretrain.sharding import Sharded, shard
from pretrain.teacher import HeadReset, Network, make_teacher
from pretrain.views import Crops, EpochBatches, Finished, View

STRATEGIES = ("auto", "ddp", "fsdp")


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
    depth: Rows
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


def make_fabric(accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str) -> Fabric:
    """Fabric for this machine or for the process group that torchrun or SLURM started.

    Raises ValueError for another strategy, or a precision whose scaler does not know shards.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown trainer.strategy {strategy!r}; use {', '.join(STRATEGIES)}")
    if strategy == "fsdp" and precision == "16-mixed":
        raise ValueError(
            "trainer.precision=16-mixed scales gradients by what each process sees, which shards would part; "
            "use bf16-mixed with trainer.strategy=fsdp"
        )
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif devices == "auto" and not torch.cuda.is_available():
        devices = 1
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=Sharded() if strategy == "fsdp" else strategy,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


@contextlib.contextmanager
def own_threads(count: int | None) -> Iterator[None]:
    """Work in so many threads inside the block, None: as many as before; raises ValueError where it is no number."""
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ValueError(f"trainer.threads={count} must be a whole number of at least 1, or null for all")
    if count is None:  # to set what is set already would still turn off what MKL chooses by itself
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def place(fabric: Fabric, network: Network, with_teacher: bool) -> tuple[Any, Network | None]:
    """The network as Fabric trains it, on its device and wrapped or in shards, and its teacher beside it."""
    teacher: Any = make_teacher(network) if with_teacher else None
    student: Any = fabric.setup_module(network)
    if teacher is not None:
        teacher = fabric.strategy.precision.convert_module(teacher)
        sharded = isinstance(fabric.strategy, Sharded)
        teacher = shard(teacher, fabric.device.type) if sharded else teacher.to(fabric.device)
    return student, teacher


def make_schedules(
    optim: Mapping[str, Any], ema: Mapping[str, float], epochs: int, n: int, batch: int
) -> dict[str, np.ndarray]:
    """Learning rate (scaled by batch/256), weight decay and teacher momentum, one value a step."""
    peak, warmup = optim["lr"] * batch / 256, warmup_epochs(optim["warmup_epochs"], epochs)
    if optim["schedule"] == "lars":
        rate = lars_schedule(peak, epochs, n, warmup)
    elif optim["schedule"] == "cosine":
        rate = cosine_schedule(peak, optim["min_lr"], epochs, n, warmup)
    else:
        raise ValueError(f"unknown optim.schedule {optim['schedule']!r}; use cosine or lars")
    decay = cosine_schedule(optim["weight_decay"], optim["weight_decay_end"], epochs, n)
    return {"lr": rate, "weight_decay": decay, "ema": cosine_schedule(ema["base"], ema["final"], epochs, n)}


def warmup_epochs(asked: float | None, epochs: int) -> float:
    """Epochs of warm-up: as asked for; a tenth of all, at most 10, where nothing or more than all was asked for."""
    return min(10, epochs / 10) if asked is None or asked > epochs else asked


def check_numbers(trainer: Mapping[str, Any], optim: Mapping[str, Any]) -> None:
    """Refuse counts that are no whole numbers and a rate that is none."""
    least = {"epochs": 0, "batch_size": 1, "accumulate": 1, "workers": 0, "save_every": 0, "log_every": 0}
    for key, low in (least | {"keep_every": 0, "keep_last": 0}).items():
        value = trainer[key]
        if not isinstance(value, int) or value < low:
            raise ValueError(f"trainer.{key}={value} must be a whole number of at least {low}")
    if not isinstance(optim["lr"], int | float) or not optim["lr"] >= 0 or (optim["plain_lr"] and not optim["lr"]):
        raise ValueError(f"optim.lr={optim['lr']} must be a number of at least 0, and with optim.plain_lr above 0")


def check_views(views: Sequence[View], patch: int) -> None:
    """Refuse crops that no whole number of patches fills."""
    for view in views:
        if view.size % patch:
            near = view.size // patch * patch
            raise ValueError(
                f"crops of {view.size} pixels are no whole number of patches of {patch}; use {near or patch} or "
                f"{near + patch} (views.global_view.size, views.local.size)"
            )


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
        smaller = "views.global_view.size" if crop <= 32 else "recipe=small32 or views.global_view.size"
        raise ImageError(
            f"the images of {images.name} are about {typical} pixels, smaller than the crop of {crop}; "
            f"choose a smaller one ({smaller}), or trainer.upscale=true to enlarge them"
        )


def check_accumulation(objective: Objective, network: Network, parts: int, batch: int, world: int) -> None:
    """Refuse gradient accumulation where a step in parts would not be the step on the whole batch.

    Raises ValueError naming the statistic that the parts would change, or a batch that they do not divide.
    """
    if parts == 1:
        return
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    statistic = objective.batch_statistic or ("batch norm of the head" if norms else "")
    if statistic:
        raise ValueError(
            f"trainer.accumulate={parts} would change the objective: the {statistic} of {type(objective).__name__} "
            "covers the whole batch, not a part of it; use accumulate=1 and more processes, or a smaller batch_size"
        )
    if parts < 1 or batch % (world * parts):
        raise ValueError(
            f"trainer.accumulate={parts} does not divide the {batch} images of trainer.batch_size on {world} processes"
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
    check_numbers(trainer, config["optim"])
    fabric = make_fabric(*(trainer[key] for key in ("accelerator", "devices", "num_nodes", "strategy", "precision")))
    if fabric.is_global_zero and cfg.data.prepare is not None:
        hydra.utils.instantiate(cfg.data.prepare)
    fabric.barrier()
    check_loggers(trainer["loggers"])
    split = cfg.data.splits[image_split(cfg.data.splits, "train")]
    images: ImageData = hydra.utils.instantiate(split, skip_bad=trainer["skip_bad"])
    views: list[View] = hydra.utils.instantiate(cfg.views)
    head = config["objective"]["head"]
    objective: Objective = hydra.utils.instantiate(cfg.objective.loss, head=head, _convert_="all")
    objective.check_batch(trainer["batch_size"], len(views))
    torch.manual_seed(seed)
    backbone = Backbone(**config["backbone"])
    check_views(views, backbone.patch_size)
    check_images(images, views, backbone.patch_size, trainer["upscale"])
    head = {**head, "dim": backbone.dim}
    network = Network(backbone, build_head(head))
    depth = follow_images(backbone)
    check_accumulation(objective, network, trainer["accumulate"], trainer["batch_size"], fabric.world_size)
    objective.parts = trainer["accumulate"]
    batches = EpochBatches(len(images), trainer["batch_size"], seed, fabric.global_rank, fabric.world_size)
    on_cpu = fabric.device.type == "cpu"
    loader = DataLoader(
        Crops(images, views, seed),
        batch_sampler=batches,
        collate_fn=Finished(backbone.mean, backbone.std) if on_cpu and trainer["threads"] else None,
        num_workers=trainer["workers"],
        persistent_workers=trainer["workers"] > 0,
        pin_memory=fabric.device.type == "cuda",
    )
    optim = config["optim"]
    plain_factor = optim["plain_lr"] / optim["lr"] if optim["plain_lr"] else 1.0
    student, teacher = place(fabric, network, objective.uses_teacher)
    groups = parameter_groups(student.module, decay_tokens=optim["decay_tokens"], plain_factor=plain_factor)
    fused = optim["name"] == "adamw" and trainer["precision"] != "16-mixed"
    optimizer: Any = fabric.setup_optimizers(make_optimizer(optim["name"], groups, fused=fused))
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
        probe_images(images, backbone), depth,
    )  # fmt: skip
