"""Adaptation: `python -m pretrain.adapt checkpoint=runs/bits_reset-cifar10 data=fashion_mnist`.

A run goes on by its own objective (or another) on unlabelled images of another domain. configs/adapt.yaml holds the
settings; further words are keys of configs/pretrain.yaml. The run that it begins with is only read; its weights, data
and length are noted in run.json as `parent`. The same command goes on where an adaptation was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from pretrain import cli
from pretrain.backbones import Backbone
from pretrain.checkpoint import CheckpointError, load_backbone, network_digest, read_run
from pretrain.train import train
from pretrain.trainings import quoted, unquoted

HEADS = ("auto", "keep", "redraw", "fresh")
#: what belongs to the machine at hand rather than to the run
MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "workers", "loggers", "skip_bad")
OPEN = "bits_reset"  # objective of a backbone that comes without one
#: how a head is made, apart from its shape: what a head of the same kind takes from the new objective
MANNER = ("normalize", "init", "gain", "norm_last_layer")


def read_settings(words: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The settings of configs/adapt.yaml with those of the command line, and the words that are keys of training.

    Raises ValueError for a word that is no setting, or a missing or impossible value.
    """
    settings = OmegaConf.load(cli.CONFIGS / "adapt.yaml")
    assert isinstance(settings, DictConfig)
    known = {str(key) for key in settings}  # a key without a value is not "in" the settings
    own = [word for word in words if word.partition("=")[0] in known]
    others = [word for word in words if word not in own]
    for word in words:
        if "=" not in word:
            raise ValueError(f"{word!r} is no setting; give checkpoint=NAME data=NAME and settings as key=value")
    for word in own:
        key, _, value = word.partition("=")
        settings[key] = unquoted(value) if key in ("checkpoint", "data_root", "name", "runs") else plain(value)
    for key in ("checkpoint", "data"):
        if OmegaConf.is_missing(settings, key):
            raise ValueError(f"{key}=... is missing: python -m pretrain.adapt checkpoint=runs/NAME data=NAME")
    if settings.head not in HEADS:
        raise ValueError(f"unknown head={settings.head!r}; use {', '.join(HEADS)}")
    for key in ("epochs", "lr_factor", "warmup_epochs"):
        if not isinstance(settings[key], int | float) or settings[key] < 0:
            raise ValueError(f"{key}={settings[key]} is no number from 0 on")
    return settings, others


def plain(text: str) -> Any:
    """A value as YAML reads it."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]


def find_run(text: str, runs: str) -> Path:
    """Folder of a run or of one of its kept epochs; raises CheckpointError when there is none."""
    for path in (Path(text).expanduser(), Path(runs) / text):
        if (path / "run.json").is_file():
            return path
    raise CheckpointError(f"no run to adapt at {text!r}: give a run (runs/NAME or NAME) or one of its kept epochs")


def default_name(path: Path, info: Mapping[str, Any], data: str) -> str:
    """RUN-to-DATA, for a kept epoch RUN-epochNNN-to-DATA."""
    own = Path(str(info["name"])).name if path.parent.name == "epochs" else path.resolve().name
    return f"{own}{f'-epoch{path.name}' if path.parent.name == 'epochs' else ''}-to-{data}"


def compose(*overrides: str) -> dict[str, Any]:
    """The configuration of a training as plain values."""
    with hydra.initialize_config_dir(str(cli.CONFIGS), version_base=None):
        config: Any = OmegaConf.to_container(hydra.compose("pretrain", list(overrides)), resolve=True)
    return config


def configure(words: Sequence[str]) -> DictConfig:
    """The configuration of the training that adapts a run; raises ValueError and CheckpointError for wrong input."""
    settings, more = read_settings(words)
    path = find_run(settings.checkpoint, settings.runs)
    info = read_run(path)
    objective = settings.objective or (info["objective"] if info["config"] else OPEN)
    places = [quoted("data_root", settings.data_root), quoted("runs", settings.runs)]
    # Recipes and tuning belong to the images of the parent, which chose its network and views by them.
    config = compose(f"data={settings.data}", f"objective={objective}", *places, "~recipe", "~tuning")
    stored, machine = info["config"], {key: config["trainer"][key] for key in MACHINE}
    config["backbone"] |= {**info["backbone"], "drop_path": (stored or config)["backbone"]["drop_path"]}
    if not stored:
        fit_views(config["views"], load_backbone(path))
    elif objective == info["objective"]:
        for key in ("views", "objective"):
            config[key] = stored[key]
        config["init"]["lr_factor"] = stored["init"].get("lr_factor", 1)
        for key in ("optim", "ema", "head_reset", "trainer"):
            config[key] |= stored[key]
    else:
        config |= other_objective(objective, info)
    config["trainer"] |= machine
    config["seed"] = settings.seed if settings.seed is not None else info.get("seed") or 0
    config["name"] = settings.name or default_name(path, info, config["data"]["name"])
    config |= {"overwrite": bool(settings.overwrite), "quiet": bool(settings.quiet)}
    adjust(config, settings, choose_head(settings, info, config["objective"]["head"], config["head_reset"]))
    config["init"] |= {"checkpoint": str(path), "weights": network_digest(load_backbone(path))}
    result = merged(config, more)
    result.optim.min_lr = min(result.optim.min_lr, result.optim.lr * result.trainer.batch_size / 256)
    return result


def fit_views(views: dict[str, Any], backbone: Backbone) -> None:
    """Crops of the standard recipe for a backbone of another image size: the same share of it, in whole patches."""
    patch, side = backbone.patch_size, backbone.image_size
    views["local"]["size"] = max(
        patch, round(views["local"]["size"] / views["global_view"]["size"] * side / patch) * patch
    )
    views["global_view"]["size"] = side


def other_objective(objective: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of another objective, by the recipe of the data that the run was trained on; its head keeps its shape.

    Views stay, but for local crops where an objective has none.
    """
    stored = info["config"]
    known = (cli.CONFIGS / "data" / f"{stored['data']['name']}.yaml").is_file()
    theirs = compose(f"objective={objective}", *([f"data={stored['data']['name']}"] if known else []))
    head = theirs["objective"]["head"]
    if info["head"] and head["kind"] == info["head"]["kind"]:
        shape = {key: value for key, value in stored["objective"]["head"].items() if key not in MANNER}
        theirs["objective"]["head"] = {**head, **{key: value for key, value in shape.items() if key in head}}
    local = min(theirs["views"]["local_crops"], stored["views"]["local_crops"])
    sections = {key: theirs[key] for key in ("objective", "optim", "ema", "head_reset")}
    return sections | {
        "views": stored["views"] | {"local_crops": local},
        "trainer": theirs["trainer"] | stored["trainer"],
    }


def choose_head(
    settings: DictConfig, info: Mapping[str, Any], head: Mapping[str, Any], reset: Mapping[str, Any]
) -> str:
    """keep, redraw or fresh; raises CheckpointError where the objective's head is not the one that the run holds."""
    stored = info["head"]
    if settings.head == "fresh" or (settings.head == "auto" and not stored):
        return "fresh"
    if not stored or stored["kind"] != head["kind"]:
        has = f"a head of kind {stored['kind']}" if stored else "no head"
        raise CheckpointError(
            f"objective {settings.objective or OPEN!r} has a head of kind {head['kind']}, {settings.checkpoint} holds "
            f"{has}: give head=fresh to begin with a new one, or an objective with such a head"
        )
    if settings.head == "auto":
        return "redraw" if reset["every_epochs"] or reset["at_start"] else "keep"
    return settings.head


def adjust(config: dict[str, Any], settings: DictConfig, head: str) -> None:
    """Set what adaptation sets: a shorter schedule at a lower rate, no periodic resets, what is kept."""
    optim, loss = config["optim"], config["objective"]["loss"]
    before = config["init"]["lr_factor"] or 1
    for key in ("lr", "plain_lr"):
        optim[key] = optim[key] and optim[key] / before * settings.lr_factor
    config["init"]["lr_factor"] = settings.lr_factor
    optim["warmup_epochs"] = min(settings.warmup_epochs, settings.epochs)
    if "freeze_last_layer" in loss:
        loss["freeze_last_layer"] = settings.freeze_last_layer
    config["head_reset"] |= {"every_epochs": 0, "at_start": head == "redraw"}
    config["init"]["head"] = "fresh" if head == "fresh" else "keep"
    kept = {"keep_every": settings.keep_every, "keep_last": 0, "stop_after_epoch": 0}
    own = {key: settings[key] for key in ("epochs", "upscale", "check_overlap")}
    config["trainer"] |= own | kept


def merged(config: dict[str, Any], words: Sequence[str]) -> DictConfig:
    """A configuration with further words; an unknown key is an error that names the nearest."""
    whole = OmegaConf.create(config)
    OmegaConf.set_struct(whole, True)
    result = OmegaConf.merge(whole, OmegaConf.from_dotlist(list(words)))
    assert isinstance(result, DictConfig)
    return result


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of `python -m pretrain.adapt`."""
    with cli.one_line_errors("pretrain"):
        train(configure(sys.argv[1:] if words is None else words))


if __name__ == "__main__":
    main()
