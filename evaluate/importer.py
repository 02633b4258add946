"""Checkpoints by path or name: a run, one of its kept epochs, somebody else's weights, or a baseline for one of these.

    runs/NAME, NAME, runs/NAME/epochs/NNN    the teacher; with @student appended, the student
    runs/NAME/epochs                         every kept epoch of a run, see `expand`
    FILE.pth, .ckpt, .safetensors, FOLDER    weights of other projects, see `evaluate.layouts`; @teacher, @student, ...
                                             for one of several networks, ?heads=6&size=224 for what the file lacks
    timm:NAME, hf:ORG/NAME                   the same from the hub, the only names that use the network
    untrained:ANY                            the same architecture with weights drawn with seed 0
    pixels:ANY                               no network: the pixels of the view that the backbone would see

`python -m evaluate.importer NAME...` says what each is and how fully it was understood. A further kind of name is one
more entry in `READERS`; a further naming of weights is one more file in `evaluate/layouts`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluate.features import identity
from evaluate.layouts import foreign, hub
from evaluate.layouts.files import SUFFIXES
from evaluate.layouts.options import Options, parse
from evaluate.leaderboard.escape import terminal
from pretrain import cli
from pretrain.backbones import Backbone, Features
from pretrain.checkpoint import CheckpointError, load_backbone, load_head, read_run

ACCEPTED = (
    "give a run (runs/NAME or NAME), one of its kept epochs (runs/NAME/epochs/NNN) or all (runs/NAME/epochs), each "
    "with @student for the student; a file or folder of weights, timm:NAME or hf:ORG/NAME; or a baseline "
    "(untrained:RUN, pixels:RUN)"
)
BASELINES = ("untrained", "pixels")
BASELINE_SEED = 0
QUIET = ("native_size", "positions", "norm_eps", "init_values")  # no part of an architecture's short name


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
    """What a name on the command line means.

    kind: "run", "file", "timm" or "hf", the folder or file (or the name on the hub), the network wanted in it, and what
    the user said of it; baseline: "untrained" or "pixels" when it is asked for in place of the weights; text: the name
    without the baseline.
    """

    kind: str
    path: Path
    branch: str = ""
    options: Options = Options()
    baseline: str = ""
    text: str = ""


@dataclass(frozen=True)
class Segments:
    """A head whose outputs are variables of `bins` units each, by softmax at a temperature (IMSVD, MUSIC)."""

    head: nn.Module
    bins: int
    temperature: float


@dataclass(frozen=True)
class Checkpoint:
    """A frozen network with what a record says about it; `head` maps features (B, D) to logits of binary messages.

    report: how fully weights of another project were understood, in lines.
    """

    backbone: Backbone | Pixels
    record: dict[str, Any]
    head: nn.Module | None = None
    data: str = ""
    notes: list[str] = field(default_factory=list)
    segments: Segments | None = None
    report: list[str] = field(default_factory=list)


def resolve(name: str | Path, runs: str | Path = "runs") -> Reference:
    """Reference behind a path or name; raises CheckpointError saying what is accepted when there is none.

    Looks at this machine alone: whether the hub has a name is found out when it is opened.
    """
    text = str(name)
    baseline, _, rest = text.partition(":")
    if baseline in BASELINES:
        return replace(resolve(rest, runs), baseline=baseline)
    kind, _, rest = text.partition(":")
    if kind in ("timm", "hf") and rest:
        place, branch, options = split(rest)
        return Reference(kind, Path(place), branch, options, text=text)
    place, branch, options = split(text)
    candidates = [Path(place).expanduser(), Path(runs) / place] if place else []
    for path in candidates:
        if (path / "run.json").is_file():
            if branch not in ("", "teacher", "student"):
                raise CheckpointError(f"unknown branch {branch!r} in {text!r}; use @teacher or @student")
            if options != Options():
                raise CheckpointError(
                    f"{text!r}: a run says all about itself; options are for weights of other projects"
                )
            return Reference("run", path, branch or "teacher", text=text)
    for path in candidates:
        if path.suffix in SUFFIXES and path.is_file() or (path / "config.json").is_file():
            return Reference("file", path, branch, options, text=text)
    raise CheckpointError(f"no checkpoint {text!r}: {ACCEPTED}")


def split(text: str) -> tuple[str, str, Options]:
    """`place@branch?options` in its parts; a path that exists with these signs in it is a path."""
    if Path(text).exists():
        return text, "", Options()
    place, _, query = text.partition("?")
    options = parse(query, text)
    before, at, branch = place.rpartition("@")
    return (before, branch, options) if at and not Path(place).exists() else (place, "", options)


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
    """Name of the images that a run was trained on; empty where nobody says."""
    return read_run(reference.path)["data"]["name"] if reference.kind == "run" else ""


def open_checkpoint(name: str | Path, runs: str | Path = "runs") -> Checkpoint:
    """Load a checkpoint; raises CheckpointError naming file and remedy when it is missing, damaged or unknown."""
    reference = resolve(name, runs)
    return READERS[reference.baseline or reference.kind](reference)


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
        if not reference.baseline:
            try:
                spec = spec_of(reference)
            except CheckpointError:
                continue  # it is named as failed when its turn comes; the others are evaluated
            pixels = {key: spec.get(key) for key in ("image_size", "resize", "patch_size", "mean", "std")}
            for kind, key in zip(BASELINES, (repr(sorted(spec.items(), key=str)), repr(pixels)), strict=True):
                found.setdefault(kind + key, (f"{kind}:{address(reference)}", []))[1].append(name)
    return dict(found.values())


def address(reference: Reference) -> str:
    """The name that leads to the same network, without @student: a baseline has no branches."""
    return str(reference.path) if reference.kind == "run" else reference.text


def spec_of(reference: Reference) -> dict[str, Any]:
    """Arguments of the `Backbone` of a checkpoint; its weights are looked at, not loaded."""
    return read_run(reference.path)["backbone"] if reference.kind == "run" else recognise(reference).spec


def recognise(reference: Reference) -> foreign.Foreign:
    """What weights of another project are; fetches them where their name asks for it."""
    path = reference.path
    if reference.kind in ("timm", "hf"):
        repo = hub.repository(str(path)) if reference.kind == "timm" else str(path)
        path = hub.fetch(repo, reference.text)
    return foreign.recognise(path, reference.text, reference.branch, reference.options)


def architecture(backbone: Backbone) -> str:
    """Short name of a backbone: timm's, or vit-WIDTHxBLOCKSpPATCH where that was changed, and the side of its view."""
    standard = {"name", "image_size", "patch_size", "stem", "pool", "init", "cls_init", "resize", "mean", "std"}
    spec = {key: value for key, value in backbone.spec.items() if key not in QUIET}
    changed = spec["patch_size"] is not None or set(spec) - standard
    parts = [f"vit-{backbone.dim}x{backbone.depth}p{backbone.patch_size}" if changed else spec["name"]]
    parts += [word for word, usual in ((spec["stem"], "patch"), (spec["pool"], "token")) if word != usual]
    return "-".join([*parts, f"{backbone.image_size}px"])


def read_own_run(reference: Reference) -> Checkpoint:
    """A run of this suite or one of its kept epochs."""
    info = read_run(reference.path)
    backbone = load_backbone(reference.path, branch=reference.branch)
    is_binary, data = bool(info.get("binary")), str(info["data"].get("name", "unknown"))
    name, parent = info["name"], None
    if reference.path.parent.name == "epochs":
        name, parent = f"{name}/epochs/{reference.path.name}", name
    if reference.branch != "teacher":
        name, parent = f"{name}@{reference.branch}", parent or name
    record = {"name": name, "objective": info["objective"], "kind": "run", "weights_digest": identity(backbone)}
    record |= {"backbone": architecture(backbone), "label": info.get("label", ""), "parent": parent}
    record |= {key: info.get(key) for key in ("images_seen", "epoch", "seed")}
    notes = [] if info.get("finished") or parent else [f"training had not finished (step {info.get('step')})"]
    record |= {"data": data} | lineage(info, parent)
    if shared := info["data"].get("overlap"):
        notes.append(f"{shared} of the images trained on are in the test split of {data} too")
    bins = info["config"].get("objective", {}).get("loss", {}).get("bins")
    head = load_head(reference.path, branch=reference.branch) if is_binary or bins else None
    segments = Segments(head, bins, info["config"]["objective"]["loss"]["temperature"]) if head and bins else None
    return Checkpoint(backbone, record, head if is_binary else None, data, notes, segments)


def read_foreign(reference: Reference) -> Checkpoint:
    """Weights of another project."""
    found = recognise(reference)
    backbone = found.backbone()
    record: dict[str, Any] = {"name": short_name(reference), "objective": found.objective, "kind": "foreign"}
    record |= {"weights_digest": identity(backbone), "backbone": architecture(backbone), "label": "", "parent": None}
    record |= {"images_seen": None, "epoch": None, "seed": None}
    notes = [*found.coverage.notes, *found.coverage.accepted()]
    return Checkpoint(backbone, record, notes=notes, report=found.coverage.report())


def short_name(reference: Reference) -> str:
    """What tables call weights of another project: the hub's name, or the file with its folder, and what was added."""
    if reference.kind != "file":
        return reference.text
    added = reference.text.removeprefix(str(reference.path))
    place = reference.path.resolve()
    name = f"{place.parent.name}/{place.name}" if place.parent.name else place.name
    return name + (added if added != reference.text else "")


def lineage(info: dict[str, Any], parent: str | None) -> dict[str, Any]:
    """What a record says of a run that began with another's weights: whose, and the data that these were trained on."""
    began = info.get("parent")
    if not began:
        return {}
    label = f"adapted from {began['name']} by {info['epoch']:g} epochs of {info['data']['name']}"
    about = {"label": "; ".join(filter(None, (info["label"], label))), "parent": parent or began["name"]}
    return about | {"adapted_from": began["weights"], "source": began["data"]}


def read_untrained(reference: Reference) -> Checkpoint:
    """The architecture of a checkpoint with weights that were never trained, drawn with a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(BASELINE_SEED)
        backbone = Backbone(**spec_of(reference)).eval().requires_grad_(False)
    name = architecture(backbone)
    record = _baseline_record("untrained", name, identity(backbone)) | {"backbone": name, "seed": BASELINE_SEED}
    return Checkpoint(backbone, record, data=trained_on(reference))


def read_pixels(reference: Reference) -> Checkpoint:
    """The pixels that the backbone of a checkpoint would see."""
    with torch.random.fork_rng(devices=[]):
        shape = Backbone(**spec_of(reference) | {"depth": 0})  # its numbers; the blocks would be drawn for nothing
    pixels = Pixels(shape.spec, shape.resize, shape.patch_size).eval()
    record = _baseline_record("pixels", f"{pixels.image_size}px", identity(pixels)) | {"backbone": "none"}
    return Checkpoint(pixels, record, data=trained_on(reference))


def _baseline_record(kind: str, what: str, digest: str) -> dict[str, Any]:
    record = {"name": f"{kind}:{what}", "objective": kind, "kind": "baseline", "weights_digest": digest}
    return record | {"label": "", "images_seen": 0, "epoch": 0, "seed": None, "parent": None}


READERS: dict[str, Callable[[Reference], Checkpoint]] = {
    "run": read_own_run,
    "file": read_foreign,
    "timm": read_foreign,
    "hf": read_foreign,
    "untrained": read_untrained,
    "pixels": read_pixels,
}


def main() -> None:
    """Entry point of `python -m evaluate.importer NAME...`."""
    with cli.one_line_errors("evaluate"):
        names = sys.argv[1:]
        if not names or names[0].startswith("-"):
            raise ValueError(f"usage: python -m evaluate.importer NAME...; {ACCEPTED}")
        for name in expand(names):
            found = open_checkpoint(name)
            lines = found.report or [f"{name}: a {found.record['kind']}", *(f"  {note}" for note in found.notes)]
            lines.append(f"  {found.record['backbone']}, weights {found.record['weights_digest']}")
            print(*map(terminal, lines), sep="\n")


if __name__ == "__main__":
    main()
