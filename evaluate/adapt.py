"""`python -m evaluate.adapt checkpoint=ANY data=NAME`: `pretrain.adapt` for whatever evaluation can load.

A run of this suite goes there as it is. Any other backbone is first written to runs/imported/NAME in the form of a run
that was never trained and has no head, so adaptation begins with a fresh one; it is read there like a run and never
written again. Training does not import evaluation, which is why this stands here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate import importer
from evaluate.storage import slug
from pretrain import cli
from pretrain.backbones import Backbone
from pretrain.checkpoint import SCHEMA, CheckpointError, load_backbone, network_digest, write_json, write_tensors
from pretrain.trainings import unquoted

IMPORTED = "imported"  # below the folder of runs, where no run of its own is looked for


def as_start(backbone: Backbone, name: str, folder: Path) -> Path:
    """Write a backbone as a run without a head to `folder`, or find it there.

    Raises CheckpointError where the folder holds other weights.
    """
    if (folder / "run.json").exists():
        if network_digest(load_backbone(folder)) != network_digest(backbone):
            raise CheckpointError(f"{folder} holds other weights than {name} has now; remove it to import them anew")
        return folder
    digest = write_tensors(folder / "backbone.safetensors", backbone.state_dict())
    info = {"schema": SCHEMA, "name": name, "objective": "imported", "label": "", "binary": False, "seed": None}
    info |= {"backbone": backbone.spec, "head": None, "config": {}, "data": {"name": "unknown"}, "finished": True}
    info |= {"step": 0, "epoch": 0, "images_seen": 0, "sha256": {"backbone.safetensors": digest}}
    write_json(folder / "run.json", info)
    return folder


def start_of(name: str, runs: str | Path) -> Path:
    """Folder from which `pretrain.adapt` can begin; raises CheckpointError for what is no trainable backbone."""
    try:
        reference = importer.resolve(name, runs)
        if (reference.kind, reference.baseline, reference.branch) == ("run", "", "teacher"):
            return reference.path
    except CheckpointError:
        if (Path(runs) / name).exists() or Path(name).is_dir():
            raise
    backbone = importer.load(name, runs)
    if not isinstance(backbone, Backbone):
        raise CheckpointError(
            f"{name} is no vision transformer of this suite's form ({type(backbone).__name__}), so it cannot be "
            "trained on; adapt a run, or a checkpoint that is imported as one"
        )
    return as_start(backbone, name, Path(runs) / IMPORTED / slug(name))


def with_start(words: Sequence[str]) -> list[str]:
    """The words of a command line with the checkpoint replaced by the folder to begin with."""
    given = {key: unquoted(value) for key, _, value in (word.partition("=") for word in words)}
    if not given.get("checkpoint"):
        raise ValueError("checkpoint=... is missing: python -m evaluate.adapt checkpoint=NAME data=NAME")
    start = start_of(given["checkpoint"], given.get("runs", "runs"))
    return [word for word in words if word.partition("=")[0] != "checkpoint"] + [f"checkpoint={start}"]


def main() -> None:
    """Entry point of `python -m evaluate.adapt`; the training takes this process over."""
    with cli.one_line_errors("pretrain"):
        words = with_start(sys.argv[1:])
    os.execv(sys.executable, [sys.executable, "-m", "pretrain.adapt", *words])


if __name__ == "__main__":
    main()
