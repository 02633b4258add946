"""A run on disk: what is saved, which epochs are kept, and how a run goes on or starts from another's weights.

Nothing here depends on the number of processes: every process reads the same state, and what a step draws follows from
(seed, epoch or step, image) alone. A run goes on with more or fewer processes, then equal up to the order of sums.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.backbones import preprocess
from pretrain.checkpoint import (
    CheckpointError,
    load_backbone,
    load_head,
    load_weights,
    network_digest,
    read_run,
    resume_run,
    save_resume,
    save_run,
)
from pretrain.distributed import gathered, split_like
from pretrain.objectives.base import Objective

if TYPE_CHECKING:
    from pretrain.prepare import Run

#: configuration keys that change no number of a run
HARMLESS = {"runs", "name", "resume", "data_root", "data.splits", "data.prepare", "quiet", "overwrite"}
HARMLESS |= {
    f"trainer.{key}"
    for key in (
        "workers", "threads", "save_every", "save_minutes", "keep_every", "keep_last", "log_every", "loggers", "curves",
        "devices", "num_nodes", "strategy", "stop_after_epoch", "check_overlap", "skip_bad",
    )
}  # fmt: skip
#: keys that older runs lack, with the value that they were trained by
ADDED = {"trainer.accumulate": 1, "trainer.threads": None, "init.head": "keep", "init.lr_factor": 1}


def save(run: Run, finished: bool = False) -> None:
    """Save what evaluation reads and what a continued run needs, on the main process; all must call it."""
    run.fabric.barrier()
    tensors = resume_tensors(run)
    student = (Whole(tensors, "student/backbone."), Whole(tensors, "student/head."))
    teacher = (Whole(tensors, "teacher/backbone."), Whole(tensors, "teacher/head."))
    branches: tuple[Any, Any] = (teacher, student) if run.teacher is not None else (student, None)
    if run.fabric.is_global_zero:
        info = {
            **run.info,
            "step": run.step,
            "epoch": run.step / run.steps_per_epoch,
            "images_seen": run.step * run.batches.batch_size,
            "skipped_images": run.skipped,
            "seconds": round(run.seconds, 1),
            "finished": finished,
        }
        epoch = run.step // run.steps_per_epoch
        if run.step % run.steps_per_epoch == 0 and keeps(run.trainer, epoch):
            save_run(run.directory / "epochs" / f"{epoch:03d}", *branches, info)
            forget_epochs(run.directory / "epochs", epoch, run.trainer["keep_every"], run.trainer["keep_last"])
        scaler = {key: float(value) for key, value in run.fabric.strategy.precision.state_dict().items()}
        save_resume(run.directory, tensors, {**info, "sums": run.sums, "scaler": scaler})
        save_run(run.directory, *branches, info)
    run.fabric.barrier()


class Whole:
    """Stands for the module whose gathered tensors have this prefix."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str):
        self.tensors = select(tensors, prefix)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return self.tensors


def keeps(trainer: Mapping[str, Any], epoch: int) -> bool:
    """Whether the weights after so many epochs go to epochs/: every `keep_every`-th, and each of the `keep_last`."""
    return trainer["keep_last"] > 0 or (trainer["keep_every"] > 0 and epoch % trainer["keep_every"] == 0)


def forget_epochs(folder: Path, epoch: int, every: int, last: int) -> None:
    """Remove kept epochs that are neither among the `last` ones up to `epoch` nor a multiple of `every`."""
    for old in sorted(folder.iterdir()) if last else ():
        if old.name.isdigit() and int(old.name) <= epoch - last and not (every and int(old.name) % every == 0):
            (old / "run.json").unlink(missing_ok=True)  # it vouches for the rest, so it goes first
            shutil.rmtree(old)


def resume_tensors(run: Run) -> dict[str, Tensor]:
    """Tensors (student, teacher, objective, optimiser) that continue the run, whole on the main process."""
    modules = {"student": run.network, "teacher": run.teacher, "objective": run.objective}
    tensors = {
        f"{part}/{name}": gathered(value)
        for part, module in modules.items()
        if module is not None
        for name, value in module.state_dict().items()
    }
    for index, entries in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": gathered(torch.as_tensor(value)) for key, value in entries.items()}
    return tensors


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
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    for name, value in select(tensors, "optimizer/").items():
        index, key = name.split("/")
        like = parameters[int(index)]
        optimizer["state"].setdefault(int(index), {})[key] = (
            split_like(value, like) if value.shape == like.shape else value  # a step count is one number everywhere
        )
    run.optimizer.load_state_dict(optimizer)
    if state["scaler"]:
        scaler = {k: int(v) if k == "_growth_tracker" else v for k, v in state["scaler"].items()}
        run.fabric.strategy.precision.load_state_dict(scaler)
    run.info |= {key: state[key] for key in ("data", "parent") if key in state}  # noted when the run began
    run.step, run.skipped, run.seconds, run.sums = (
        state["step"], state["skipped_images"], state["seconds"], state["sums"]
    )  # fmt: skip
    return True


def check_origin(run: Run, path: Path) -> None:
    """Raises ValueError where the run would be written over the one it begins with."""
    if path.resolve().is_relative_to(run.directory.resolve()):
        raise ValueError(f"{run.directory} would be written over {path}, which it begins with; choose another name=...")


def start_from(run: Run, path: Path) -> None:
    """Begin with the backbones and heads of another run (or of one of its kept epochs), of student and teacher.

    A run without a teacher gives its one network to both; with init.head=fresh the heads stay as they were drawn. What
    the loss keeps beside them is taken over. The other run is noted as `parent` and only read. Raises CheckpointError
    when the weights do not fit.
    """
    info, keeps_head = read_run(path), run.info["config"]["init"]["head"] != "fresh"
    has_student = "student.safetensors" in info["sha256"]
    networks = {"teacher": run.teacher, "student": run.network}
    for branch, network in networks.items():
        if network is not None:
            source = branch if has_student else "teacher"
            load_weights(network.backbone, load_backbone(path, branch=source).state_dict(), path)
            if keeps_head:
                load_weights(network.head, load_head(path, branch=source).state_dict(), path)
    run.info["parent"] = describe(info, network_digest(load_backbone(path)))
    takes_over = type(run.objective).take_over is not Objective.take_over
    if takes_over and keeps_head and run.teacher is not None and not run.reset.at_start:
        run.objective.take_over(teacher_rows(run))


def describe(info: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """What a run says of the one that it began with: whose weights, trained on what and how long, and its own parent.

    weights: identity of the teacher's backbone, by which records know it.
    """
    own = {key: info.get(key) for key in ("name", "objective", "epoch", "images_seen", "seed")}
    return {**own, "weights": weights, "data": info["data"]["name"], "parent": info.get("parent")}


@torch.no_grad()
def teacher_rows(run: Run) -> Tensor:
    """Head outputs (n, B) of the teacher, in evaluation mode, for the centre views that health is measured on."""
    assert run.teacher is not None
    backbone, head = run.teacher.backbone.eval(), run.teacher.head.eval()
    images = preprocess(run.probe.to(run.fabric.device), backbone.mean, backbone.std)
    rows = torch.cat([head(backbone(part)) for part in images.split(64)])
    run.teacher.train()
    return rows


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
        a, b = old.get(key, ADDED.get(name)), new.get(key)
        if isinstance(b, Mapping) and isinstance(a, Mapping | None):
            found += differences(a or {}, b, f"{name}.")
        elif a != b:
            found.append(f"{name} is {a!r} there, {b!r} now")
    return found
