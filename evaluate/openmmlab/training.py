"""The training loop of heads: any model with `data_preprocessor`, `loss` and `parse_losses`, as OpenMMLab's have.

Everything drawn in iteration i follows from (seed, i); the state is tensors and JSON, written whole. So a training that
was interrupted goes on where it was, and ends with the same weights. Several processes share each batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from evaluate.features import PRECISIONS, Store, identity
from evaluate.openmmlab.library import quiet
from evaluate.storage import plain
from pretrain.checkpoint import CheckpointError, resume_run, save_resume, write_json
from pretrain.datasets import ImageError

#: what ends a training without being a bug, as the processes of a group tell each other
FAULTS = (ImageError, CheckpointError, ValueError, OSError, FloatingPointError, torch.cuda.OutOfMemoryError)
SAVE_EVERY = 60.0  # seconds
ROWS = 200  # of the curve, about


@dataclass(frozen=True)
class Schedule:
    """AdamW with a linear warm-up, then linear decay to 0 or, with milestones, steps by a tenth.

    iterations: in all; batch_size: of all processes together; warmup: iterations from `start` times the rate to the
    rate; milestones: iterations at which it falls.
    """

    iterations: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: int
    start: float
    milestones: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size) < 1 or self.lr <= 0 or not 0 <= self.warmup < self.iterations:
            raise ValueError(
                f"iterations={self.iterations}, batch_size={self.batch_size} and lr={self.lr} must be positive and "
                f"warmup={self.warmup} less than the iterations"
            )

    def factor(self, iteration: int) -> float:
        """Share of the learning rate in an iteration, counted from 0."""
        if iteration < self.warmup:
            return self.start + (1 - self.start) * iteration / self.warmup
        if self.milestones:
            return 0.1 ** sum(iteration >= milestone for milestone in self.milestones)
        return 1 - (iteration - self.warmup) / (self.iterations - self.warmup)

    def protocol(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self) | {"optimizer": "AdamW", "decay": "steps" if self.milestones else "linear"}


@dataclass
class Training:
    """A model in training, or trained: `history` has a row of means for every stretch of iterations.

    `damaged`: rows for which another image stood in, as samples say under "damaged".
    folder: where its state lies; groups: parameter groups of AdamW with "lr" and "weight_decay"; batches are drawn from
    the rows `rows` of `samples`; tolerant: the sum of losses need not be finite, as one of several heads may diverge.
    """

    model: Any
    schedule: Schedule
    folder: Path
    samples: Dataset
    rows: Sequence[int]
    groups: list[dict[str, Any]]
    store: Store
    seed: int
    title: str = "head"
    tolerant: bool = False
    iteration: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)
    _sums: dict[str, float] = field(default_factory=dict)
    _count: int = 0

    def run(self) -> None:
        """Train to the end of the schedule, from the saved state where there is one.

        Raises FloatingPointError when the loss is not finite, ImageError naming a damaged image, and CheckpointError
        when the saved state is damaged; what one process of a group meets is raised in all. Ctrl-C is heard at the end
        of an iteration, when the state is whole.
        """
        with self.together():
            optimizer = torch.optim.AdamW(self.groups)
            rates = [group["lr"] for group in optimizer.param_groups]
            self.model.to(self.store.device)
            self.load(optimizer)
        if self.iteration == self.schedule.iterations:
            return
        with own_randomness(self.store.device), patient() as interrupted:
            self.loop(optimizer, rates, interrupted)
        self.save(None)

    def loop(self, optimizer: torch.optim.Optimizer, rates: list[float], interrupted: Callable[[], bool]) -> None:
        """The iterations that are left."""
        self.model.train()
        wrapped = self.distributed()
        kind = PRECISIONS[self.store.precision]
        device = self.store.device.type
        scaler = torch.amp.GradScaler(device, enabled=kind == torch.float16 and device == "cuda")
        saved = time.monotonic()
        total = self.schedule.iterations
        with self.store.progress(f"{self.title}, {total} iterations", total, "it") as bar:
            bar.update(self.iteration)
            batches = iter(self.loader())
            while self.iteration < total:
                with self.together() as lost:
                    data = next(batches)
                    lost.update(*data.pop("damaged", ()))
                    data = self.model.data_preprocessor(data, True)
                share = self.schedule.factor(self.iteration)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = share * rate
                torch.manual_seed(_mixed(self.seed, self.iteration, self.store.rank))
                with self.together():
                    with torch.autocast(device, kind) if kind else nullcontext(), quiet():
                        loss, values = self.model.parse_losses(wrapped(**data, mode="loss"))
                    self.note(values, share)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                self.iteration += 1
                bar.update()
                bar.set_postfix_str(f"loss {float(values['loss'].detach()):.3f}", refresh=False)
                if interrupted() or time.monotonic() - saved > SAVE_EVERY:
                    self.save(optimizer)
                    saved = time.monotonic()
                if interrupted():
                    raise KeyboardInterrupt

    @contextmanager
    def together(self) -> Iterator[set[int]]:
        """A block that all processes of a group pass or leave together: one that failed alone would leave the others
        waiting for its gradients.

        Gives a set to which the block adds damaged rows. Raises what it met, or what the lowest rank did.
        """
        lost: set[int] = set()
        failure: Exception | None = None
        try:
            yield lost
        except Exception as error:
            failure = _of_loader(error)
        lost -= self.damaged
        if self.is_grouped():
            flag = torch.tensor(float(failure is not None or bool(lost)))
            dist.all_reduce(flag)
            if flag:
                failure = self.heard(failure, lost)
        self.damaged |= lost
        if failure is not None:
            raise failure

    def heard(self, failure: Exception | None, lost: set[int]) -> Exception | None:
        """The failure of the lowest rank that has one, as this process raises it; adds what others lost to `lost`."""
        kind = next((place for place, fault in enumerate(FAULTS) if isinstance(failure, fault)), -1)
        found: list[Any] = [None] * self.store.world
        dist.all_gather_object(found, (None if failure is None else (kind, str(failure)), sorted(lost)))
        lost.update(*(rows for _, rows in found))
        first = next((rank for rank, (fault, _) in enumerate(found) if fault is not None), None)
        if first is None or first == self.store.rank:
            return failure
        kind, text = found[first][0]
        return FAULTS[kind](text) if kind >= 0 else RuntimeError(text)

    def is_grouped(self) -> bool:
        """Whether other processes train the same model."""
        return self.store.world > 1 and dist.is_initialized()

    def distributed(self) -> Any:
        """The model, or the model with gradients averaged over the processes of a group where there is one."""
        if not self.is_grouped():
            return self.model
        on_gpu = self.store.device.type == "cuda"
        options: dict[str, Any] = {"device_ids": [self.store.device]} if on_gpu else {}
        group = dist.new_group(backend="nccl") if on_gpu else None
        if on_gpu:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model, group)
        unused = not getattr(self.model.backbone, "frozen", False)  # a network may have parts that no head looks at
        return DistributedDataParallel(self.model, process_group=group, find_unused_parameters=unused, **options)

    def loader(self) -> DataLoader:
        """This process's part of every batch that is left, decoded by processes of its own where there is a GPU."""
        store, size = self.store, self.schedule.batch_size
        if size % store.world:
            raise ValueError(f"batch_size={size} cannot be shared by {store.world} processes; use a multiple")
        workers = store.workers
        if workers is None:  # processors that train have none to spare
            spare = (os.cpu_count() or 1) // store.local_world if store.device.type == "cuda" else 0
            workers = min(16, spare)
        return DataLoader(self.samples, batch_sampler=self.batches(), num_workers=workers, collate_fn=as_lists)  # type: ignore[arg-type]

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """(draw, row) of this process's samples in every batch that is left; an epoch permutes the images."""
        n, size, epoch = len(self.rows), self.schedule.batch_size, -1
        order: Any = None
        for iteration in range(self.iteration, self.schedule.iterations):
            batch = []
            for draw in range(iteration * size, (iteration + 1) * size):
                if draw // n != epoch:
                    epoch = draw // n
                    order = np.random.default_rng((self.seed, epoch)).permutation(n)
                batch.append((draw, int(self.rows[order[draw % n]])))
            yield batch[self.store.rank :: self.store.world]

    def note(self, values: Mapping[str, Any], share: float) -> None:
        """Take the losses of an iteration into the curve."""
        numbers = {name: float(value.detach()) for name, value in values.items()}
        if not self.tolerant and not np.isfinite(loss := numbers["loss"]):
            raise FloatingPointError(
                f"the loss is {loss} in iteration {self.iteration + 1} of {self.schedule.iterations}: "
                f"use a smaller lr than {self.schedule.lr} or precision=float32"
            )
        for name, number in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + number
        self._count += 1
        if (self.iteration + 1) % max(1, self.schedule.iterations // ROWS) == 0:
            means = {name: value / self._count for name, value in self._sums.items()}
            self.history.append({"iteration": self.iteration + 1, "lr": share * self.schedule.lr, **means})
            self._sums, self._count = {}, 0

    # ---- on disk

    def trained(self) -> dict[str, Tensor]:
        """All that training changes: parameters and buffers of the model, without those of a frozen network."""
        frozen = getattr(self.model.backbone, "frozen", False)
        state = self.model.state_dict()
        return {name: v for name, v in state.items() if not (frozen and name.startswith("backbone."))}

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write the state; without an optimizer, that of a finished training."""
        if self.store.rank:
            return
        tensors = {f"model/{name}": value for name, value in self.trained().items()}
        if optimizer is not None:
            for place, parameter in enumerate(_parameters(optimizer)):
                for name, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer/{place}/{name}"] = value
        curve = {"history": self.history, "sums": self._sums, "count": self._count, "damaged": sorted(self.damaged)}
        names = {"checkpoint": self.store.label, "dataset_name": self.title}
        write_json(self.folder / "meta.json", names)  # for whoever lists the cache
        save_resume(self.folder, tensors, {"step": self.iteration, "curve": json.dumps(curve)})

    def load(self, optimizer: torch.optim.Optimizer) -> None:
        """Take over the newest saved state, if any."""
        if (found := resume_run(self.folder)) is None:
            return
        tensors, state = found
        own = {name.removeprefix("model/"): v for name, v in tensors.items() if name.startswith("model/")}
        if own.keys() != self.trained().keys():
            raise CheckpointError(f"{self.folder} holds the state of another model; remove it")
        self.model.load_state_dict(own, strict=False)
        for place, parameter in enumerate(_parameters(optimizer)):
            prefix = f"optimizer/{place}/"
            moments = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
            if moments:
                moved = {name: v if name == "step" else v.to(parameter.device) for name, v in moments.items()}
                optimizer.state[parameter] = moved
        self.iteration = state["step"]
        curve = json.loads(state["curve"])
        self.history, self._sums, self._count = curve["history"], curve["sums"], curve["count"]
        self.damaged = set(curve.get("damaged", ()))  # states of earlier versions have none


def head_folder(store: Store, backbone: Any, settings: Mapping[str, Any]) -> Path:
    """Where the state of a head lies: one folder for each backbone, schedule, seed and training set."""
    key = {"weights": identity(backbone), "precision": store.precision, "settings": plain(settings, "settings")}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return store.root.parent / "heads" / digest[:24]


def as_lists(samples: list[dict[str, Any]]) -> dict[str, list]:
    """Samples as the lists that OpenMMLab's preprocessors take."""
    return {key: [sample[key] for sample in samples] for key in samples[0]}


def pixels(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """The normalisation that belongs to the weights, for pixels from 0 to 255 in the order blue, green, red."""
    return {"mean": [255 * v for v in mean], "std": [255 * v for v in std], "bgr_to_rgb": True}


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside leave those drawn outside as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


@contextmanager
def patient() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C was pressed, in place of an exception anywhere; a second one raises."""
    heard: list[int] = []

    def listen(number: int, _frame: Any) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, listen)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)


def _of_loader(error: Exception) -> Exception:
    """An error as it was raised: a loader's worker wraps its message in a traceback."""
    text = str(error)
    return type(error)(text.splitlines()[-1].partition(": ")[2]) if "Original Traceback" in text else error


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _mixed(*key: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
