"""Ablations: `python -m pretrain.sweep experiment=table9 data=shapeworld` trains every run of an axis.

`python -m pretrain --multirun +experiment=table9 data=shapeworld` is the same. What is finished is skipped, what was
begun goes on. Further words are settings of every run; `seeds=[0,1,2]` trains each run once a seed, `at_once=2` so many
side by side, `list=true` only prints the folders as evaluation takes them. An experiment that holds a sweep lists, by
row and column of its table, an objective and its settings; `paper` says what the published table adds (`settings`)
and what needs no mention there (`implied`), because the recipe has it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from pretrain import cli
from pretrain.checkpoint import read_run
from pretrain.trainings import quoted, side_by_side, train_all

EXPERIMENTS = cli.CONFIGS / "experiment"


@dataclass
class Request:
    """What the command line asks for; `shared` are overrides of every run."""

    experiment: str
    data: str
    seeds: list[int] | None = None
    runs: str = "runs"
    at_once: int | None = None
    only_list: bool = False
    shared: list[str] = field(default_factory=list)


def run_name(objective: str, data: str, settings: Sequence[str], seed: int | None = None) -> str:
    """Folder of a run, by which the leaderboard finds its cell: OBJECTIVE-DATA-settingVALUE...-sSEED."""
    pairs = [setting.partition("=") for setting in settings]
    parts = [objective, data, *(f"{key.rpartition('.')[2]}{value}" for key, _, value in pairs)]
    return "-".join(parts + ([] if seed is None else [f"s{seed}"]))


def expand(
    sweep: Mapping[str, Mapping[str, Sequence[str]]],
    data: str,
    *,
    paper: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, list[str]]:
    """Runs of a sweep {row: {column: [objective, setting ...]}} on some data: name -> overrides, each run once."""
    published = paper if paper and paper["data"] == data else {}
    found: dict[str, list[str]] = {}
    for cells in sweep.values():
        for objective, *settings in cells.values():
            own = [setting for setting in settings if setting not in published.get("implied", [])]
            for seed in [None] if seeds is None else seeds:
                words = [f"objective={objective}", f"data={data}", *published.get("settings", []), *own]
                found[run_name(objective, data, own, seed)] = words + ([] if seed is None else [f"seed={seed}"])
    return found


def read_experiment(name: str) -> dict[str, Any]:
    """An experiment that holds a sweep, by name or, for a table of the paper, by number.

    Raises ValueError with the nearest name, or with the command of an experiment that is a single run.
    """
    sweeps = {file.stem: spec for file in sorted(EXPERIMENTS.glob("*.yaml")) if "sweep" in (spec := _read(file))}
    for choice in (name, f"table{name}"):
        if choice in sweeps:
            return sweeps[choice]
    if (EXPERIMENTS / f"{name}.yaml").is_file():
        raise ValueError(f"experiment {name!r} is one run, not a sweep: python -m pretrain +experiment={name}")
    raise ValueError(f"unknown sweep {name!r}; {cli.nearest(name, list(sweeps))}")


def _read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text("utf-8")) or {}


def parse(words: Sequence[str]) -> Request:
    """Read the command line; raises ValueError naming the word that is no setting."""
    defaults = OmegaConf.load(cli.CONFIGS / "pretrain.yaml").defaults
    request = Request("", next(entry.data for entry in defaults if "data" in entry))
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is no setting; give experiment=NAME and settings as key=value")
        match key.removeprefix("+"):
            case "experiment" if not request.experiment:
                request.experiment = value
            case "data" | "runs" as name:
                setattr(request, name, value)
            case "seeds":
                request.seeds = [int(seed) for seed in value.strip("[]").split(",") if seed]
            case "at_once":
                request.at_once = int(value)
            case "list":
                request.only_list = value == "true"
            case "name" | "seed" | "objective" | "resume":
                raise ValueError(
                    f"a sweep sets {key} itself; give seeds=[...], or train one run with python -m pretrain"
                )
            case _:
                request.shared.append(word)
    if not request.experiment:
        raise ValueError(
            "experiment=NAME is missing: a table of the paper (table3) or another file of configs/experiment"
        )
    return request


def is_finished(folder: Path, overrides: Sequence[str]) -> bool:
    """Whether a run is trained to its end; raises ValueError when it was trained by another configuration."""
    if not (folder / "run.json").exists():
        return False
    info = read_run(folder)
    if not info["finished"]:
        return False
    import hydra  # only needed where something is finished, and slow to begin with

    from pretrain.state import differences

    with hydra.initialize_config_dir(str(cli.CONFIGS), version_base=None):
        config: Any = OmegaConf.to_container(hydra.compose("pretrain", list(overrides)), resolve=True)
    if different := differences(info["config"], config):
        raise ValueError(
            f"{folder} is finished by another configuration ({'; '.join(different[:3])}); choose another runs=..."
        )
    return True


def sweep(request: Request) -> None:
    """Train what a request names and is not finished, or only list it; exits with 1 when a run failed."""
    spec = read_experiment(request.experiment)
    seeds = spec.get("seeds") if request.seeds is None else request.seeds
    runs = expand(spec["sweep"], request.data, paper=spec.get("paper"), seeds=seeds)
    folders = {name: Path(request.runs) / name for name in runs}
    if request.only_list:
        print("[" + ",".join(quoted("", str(folder))[1:] for folder in folders.values()) + "]")
        return
    settings = [*request.shared, quoted("runs", request.runs)]
    overrides = {name: [*words, f"name={name}", *settings] for name, words in runs.items()}
    wanted = {name: words for name, words in overrides.items() if not is_finished(folders[name], words)}
    print(f"{spec['title']}: {len(runs)} runs, {len(runs) - len(wanted)} of them finished", flush=True)
    if failed := train_all(wanted, side_by_side(request.at_once)):
        print(f"not trained: {', '.join(failed)}; see above, the same command tries again", file=sys.stderr)
        sys.exit(1)


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of `python -m pretrain.sweep`."""
    with cli.one_line_errors("pretrain"):
        sweep(parse(sys.argv[1:] if words is None else words))


if __name__ == "__main__":
    main()
