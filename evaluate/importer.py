"""Checkpoints by path or name: a run, one of its kept epochs, or a baseline that shares its architecture.

    runs/NAME, NAME, runs/NAME/epochs/NNN    the teacher; with @student appended, the student
    runs/NAME/epochs                         every kept epoch of a run, see `expand`
    untrained:RUN                            the same architecture with weights drawn with seed 0
    pixels:RUN                               no network: the pixels of the view that the run's backbone would see

A further layout is one more entry in `READERS`: a function from a reference to a `Checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.features import identity
from pretrain.backbones import Backbone, Features
from pretrain.checkpoint import CheckpointError, load_backbone, load_head, read_run

ACCEPTED = (
    "give a run (runs/NAME or NAME), one of its kept epochs (runs/NAME/epochs/NNN) or all (runs/NAME/epochs), each "
    "with @student for the student, or a baseline (untrained:RUN, pixels:RUN)"
)
BASELINES = ("untrained", "pixels")
BASELINE_SEED = 0


class Pixels(nn.Module):
    """No network: the flattened normalised view as the feature, in the form of a `Backbone` of one block."""

    has_average = False  # patches have another width than the feature, so there is no average to put beside it
    depth = 1

    def __init__(self, spec: dict[str, Any], resize: int, patch_size: int):
        super().__init__()
        self.image_size, self.mean, self.std = spec["image_size"], tuple(spec["mean"]), tuple(spec["std"])
        self.resize, self.patch_size, self.dim = resize, patch_size, 3 * self.image_size**2
        self.spec = {"name": "pixels", "patch_size": patch_size, "resize": resize}
        self.spec |= {key: spec[key] for key in ("image_size", "mean", "std")}

    def forward(self, images: Tensor) -> Tensor:
        """Pixels of each image: (B, 3, H, W) -> (B, 3 H W)."""
        return images.flatten(1)

    def blocks(self, images: Tensor, n: int = 1) -> list[Features]:
        """The single "block"; raises ValueError when more are asked for."""
        if n != 1:
            raise ValueError(f"asked for the last {n} blocks of raw pixels, which have one")
        p = self.patch_size
        grid = images.unfold(2, p, p).unfold(3, p, p)  # (B, 3, h, w, p, p)
        return [Features(self(images), grid.permute(0, 2, 3, 1, 4, 5).flatten(3))]

    def features(self, images: Tensor) -> Features:
        """The same as the only block."""
        return self.blocks(images)[0]


@dataclass(frozen=True)
class Reference:
    """What a name on the command line means: kind "run", "untrained" or "pixels"; folder of the run; branch."""

    kind: str
    path: Path
    branch: str = "teacher"


@dataclass(frozen=True)
class Segments:
    """A head whose outputs are variables of `bins` units each, by softmax at a temperature (IMSVD, MUSIC)."""

    head: nn.Module
    bins: int
    temperature: float


@dataclass(frozen=True)
class Checkpoint:
    """A frozen network with what a record says about it; `head` maps features (B, D) to logits of binary messages."""

    backbone: Backbone | Pixels
    record: dict[str, Any]
    head: nn.Module | None = None
    data: str = ""
    notes: list[str] = field(default_factory=list)
    segments: Segments | None = None


def resolve(name: str | Path, runs: str | Path = "runs") -> Reference:
    """Reference behind a path or name; raises CheckpointError saying what is accepted when there is none."""
    text = str(name)
    kind, _, rest = text.partition(":")
    if kind not in READERS or kind == "run":
        kind, rest = "run", text
    place, _, branch = rest.partition("@") if not Path(rest).exists() else (rest, "", "")
    found = [path for path in (Path(place).expanduser(), Path(runs) / place) if (path / "run.json").is_file()]
    if not place or not found:
        raise CheckpointError(f"no checkpoint {text!r}: {ACCEPTED}")
    if branch not in ("", "teacher", "student"):
        raise CheckpointError(f"unknown branch {branch!r} in {text!r}; use @teacher or @student")
    return Reference(kind, found[0], branch or "teacher")


def expand(names: Iterable[str], runs: str | Path = "runs") -> list[str]:
    """The same names with each runs/NAME/epochs replaced by the kept epochs in it, the earliest first.

    Raises CheckpointError when a run has kept none.
    """
    found: list[str] = []
    for name in names:
        place, at, branch = str(name).partition("@")
        folders = [Path(place).expanduser(), Path(runs) / place] if Path(place).name == "epochs" else []
        folder = next((path for path in folders if path.is_dir() and not (path / "run.json").exists()), None)
        kept = [file.parent for file in folder.glob("*/run.json")] if folder else []
        if folder and not kept:
            raise CheckpointError(f"no kept epoch in {folder}; train with trainer.keep_every=<epochs between two>")
        kept.sort(key=lambda path: (len(path.name), path.name))  # 0999 would come after 1000 otherwise
        found += [f"{path}{at}{branch}" for path in kept] if folder else [name]
    return found


def trained_on(reference: Reference) -> str:
    """Name of the images that a run was trained on."""
    return read_run(reference.path)["data"]["name"]


def open_checkpoint(name: str | Path, runs: str | Path = "runs") -> Checkpoint:
    """Load a checkpoint; raises CheckpointError naming file and remedy when it is missing, damaged or unknown."""
    reference = resolve(name, runs)
    return READERS[reference.kind](reference)


def load(path_or_name: str | Path, runs: str | Path = "runs") -> Backbone | Pixels:
    """Backbone of any checkpoint in evaluation mode; raises CheckpointError as `open_checkpoint`."""
    return open_checkpoint(path_or_name, runs).backbone


def describe(path_or_name: str | Path, runs: str | Path = "runs") -> dict[str, Any]:
    """What a record says about a checkpoint (see `evaluate.records.Record`)."""
    return open_checkpoint(path_or_name, runs).record


def baselines(names: Iterable[str], runs: str | Path = "runs") -> dict[str, list[str]]:
    """The baselines that belong to these checkpoints, each with the names of those that share its architecture."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name in names:
        reference = resolve(name, runs)
        if reference.kind == "run":
            spec = read_run(reference.path)["backbone"]
            pixels = {key: spec.get(key) for key in ("image_size", "resize", "patch_size", "mean", "std")}
            for kind, key in zip(BASELINES, (repr(sorted(spec.items(), key=str)), repr(pixels)), strict=True):
                found.setdefault(kind + key, (f"{kind}:{reference.path}", []))[1].append(name)
    return dict(found.values())


def architecture(backbone: Backbone) -> str:
    """Short name of a backbone: timm's, or vit-WIDTHxBLOCKSpPATCH where that was changed, and the side of its view."""
    standard = {"name", "image_size", "patch_size", "stem", "pool", "init", "cls_init", "resize", "mean", "std"}
    spec = backbone.spec
    changed = spec["patch_size"] is not None or set(spec) - standard
    parts = [f"vit-{backbone.dim}x{backbone.depth}p{backbone.patch_size}" if changed else spec["name"]]
    parts += [word for word, usual in ((spec["stem"], "patch"), (spec["pool"], "token")) if word != usual]
    return "-".join([*parts, f"{backbone.image_size}px"])


def read_own_run(reference: Reference) -> Checkpoint:
    """A run of this suite or one of its kept epochs."""
    info = read_run(reference.path)
    backbone = load_backbone(reference.path, branch=reference.branch)
    is_binary = info["binary"]
    name, parent = info["name"], None
    if reference.path.parent.name == "epochs":
        name, parent = f"{name}/epochs/{reference.path.name}", name
    if reference.branch != "teacher":
        name, parent = f"{name}@{reference.branch}", parent or name
    record = {"name": name, "objective": info["objective"], "kind": "run", "weights_digest": identity(backbone)}
    record |= {"backbone": architecture(backbone), "label": info["label"], "parent": parent}
    record |= {key: info[key] for key in ("images_seen", "epoch", "seed")}
    notes = [] if info["finished"] or parent else [f"training had not finished (step {info['step']})"]
    record |= {"data": info["data"]["name"]} | lineage(info, parent)
    if shared := info["data"].get("overlap"):
        notes.append(f"{shared} of the images trained on are in the test split of {info['data']['name']} too")
    bins = info["config"].get("objective", {}).get("loss", {}).get("bins")
    head = load_head(reference.path, branch=reference.branch) if is_binary or bins else None
    segments = Segments(head, bins, info["config"]["objective"]["loss"]["temperature"]) if head and bins else None
    return Checkpoint(backbone, record, head if is_binary else None, info["data"]["name"], notes, segments)


def lineage(info: dict[str, Any], parent: str | None) -> dict[str, Any]:
    """What a record says of a run that began with another's weights: whose, and the data that these were trained on."""
    began = info.get("parent")
    if not began:
        return {}
    label = f"adapted from {began['name']} by {info['epoch']:g} epochs of {info['data']['name']}"
    about = {"label": "; ".join(filter(None, (info["label"], label))), "parent": parent or began["name"]}
    return about | {"adapted_from": began["weights"], "source": began["data"]}


def read_untrained(reference: Reference) -> Checkpoint:
    """The architecture of a run with weights that were never trained, drawn with a seed of their own."""
    info = read_run(reference.path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(BASELINE_SEED)
        backbone = Backbone(**info["backbone"]).eval().requires_grad_(False)
    name = architecture(backbone)
    record = _baseline_record("untrained", name, identity(backbone)) | {"backbone": name, "seed": BASELINE_SEED}
    return Checkpoint(backbone, record, data=info["data"]["name"])


def read_pixels(reference: Reference) -> Checkpoint:
    """The pixels that a run's backbone would see."""
    info = read_run(reference.path)
    with torch.random.fork_rng(devices=[]):
        shape = Backbone(**info["backbone"] | {"depth": 0})  # its numbers; the blocks would be drawn for nothing
    pixels = Pixels(shape.spec, shape.resize, shape.patch_size).eval()
    record = _baseline_record("pixels", f"{pixels.image_size}px", identity(pixels)) | {"backbone": "none"}
    return Checkpoint(pixels, record, data=info["data"]["name"])


def _baseline_record(kind: str, what: str, digest: str) -> dict[str, Any]:
    record = {"name": f"{kind}:{what}", "objective": kind, "kind": "baseline", "weights_digest": digest}
    return record | {"label": "", "images_seen": 0, "epoch": 0, "seed": None, "parent": None}


READERS: dict[str, Callable[[Reference], Checkpoint]] = {
    "run": read_own_run,
    "untrained": read_untrained,
    "pixels": read_pixels,
}
