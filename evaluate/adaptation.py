"""`python -m evaluate.adaptation checkpoints=[...] adaptation.targets=[...]`: did adaptation help, at what cost?

Each checkpoint goes on, without labels, on each target (`pretrain.adapt`; what is finished is not trained again). Then
both are measured by ordinary tasks: on the target before, after and after every kept epoch; on the images that the
checkpoint comes from, for what was forgotten; and by the label-free signals of task domain_gap. The records become
OUTPUT/adaptation beside the leaderboard.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from evaluate import adapt, importer
from evaluate import run as evaluation
from evaluate.processes import Processes
from pretrain import cli, trainings
from pretrain.checkpoint import CheckpointError, read_run

SUITE = "paper"  # speaks of the targets that have no suite of their own


@dataclass(frozen=True)
class Pairing:
    """A checkpoint and a target: its name for evaluation, where adaptation begins, the data it comes from ("")."""

    checkpoint: str
    start: Path
    source: str
    target: str

    @property
    def name(self) -> str:
        """Folder of the adapted run; the same that `pretrain.adapt` would choose."""
        epoch = f"{self.start.parent.parent.name}-epoch{self.start.name}"
        own = epoch if self.start.parent.name == "epochs" else self.start.resolve().name
        return f"{own}-to-{self.target}"


def pairings(checkpoints: Iterable[str], targets: Sequence[str], runs: str) -> list[Pairing]:
    """Every checkpoint with every target; raises ValueError or CheckpointError for one that does not exist."""
    if not targets:
        raise ValueError('no target: make adaptation CHECKPOINTS="runs/A runs/B" TARGETS="fashion_mnist clothing"')
    for target in targets:
        evaluation.read("data", target)
    found = []
    for name in importer.expand(checkpoints, runs):
        start = adapt.start_of(name, runs)
        source = importer.open_checkpoint(name, runs).data
        known = source if source in evaluation.choices("data") else ""
        found += [Pairing(name, start, known, target) for target in targets]
    if not found:
        raise ValueError(f"checkpoints=[] names nothing to adapt; {importer.ACCEPTED}")
    return found


def words(pairing: Pairing, epochs: int | None, settings: Sequence[str]) -> list[str]:
    """What `pretrain.adapt` is told, apart from the folders."""
    own = [trainings.quoted("checkpoint", str(pairing.start)), f"data={pairing.target}"]
    return own + ([] if epochs is None else [f"epochs={epochs}"]) + list(map(str, settings))


def is_adapted(
    folder: Path, pairing: Pairing, epochs: int | None, settings: Sequence[str] = (), images: str = ""
) -> bool:
    """Whether the adapted run is finished: from these weights, by so many epochs, as the settings say, on these images.

    images: their fingerprint. A setting that leaves no trace of its own in a run is not known to be the same.
    """
    try:
        info = read_run(folder)
    except CheckpointError:
        return False
    weights, own = importer.describe(pairing.start)["weights_digest"], OmegaConf.create(info["config"])
    same = (info.get("parent") or {}).get("weights") == weights and images in ("", info["data"].get("fingerprint"))
    told = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in settings)}
    same = same and all(OmegaConf.select(own, key) == value for key, value in told.items())
    return bool(info.get("finished") and same and epochs in (None, info["config"]["trainer"]["epochs"]))


def fingerprints(targets: Iterable[str], data_root: str) -> dict[str, str]:
    """Fingerprints of the images of each target to train on; "" where they cannot be opened: training says why."""
    found = {}
    for target in targets:
        data = evaluation.load_data(target, data_root)
        try:
            found[target] = data.split("train").fingerprint
        except (ValueError, OSError):
            found[target] = ""
    return found


# ---- what is measured


def entries(target: str, tasks: Sequence[str], more: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """What is measured on a target: the suite of its name, else its entries in the paper's suite, else `tasks`.

    more: entries of a suite that was asked for besides; those on the target are measured too.
    """
    if target in evaluation.choices("suite"):
        own = [entry for entry in evaluation.load_suite(target) if entry["data"] == target]
    else:
        own = [entry for entry in evaluation.load_suite(SUITE) if entry["data"] == target]
    own = [entry for entry in own if entry["task"] != "domain_gap"]
    own = own or [{"task": task, "data": target} for task in tasks]
    return own + [entry for entry in more if entry["data"] == target and entry not in own]


def measured(pairing: Pairing, settings: DictConfig, more: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Entries for a frozen checkpoint and for the adapted one: target, source, and the gap between them."""
    target = entries(pairing.target, settings.tasks, more)
    if not pairing.source:
        return target
    kept = [entry for entry in entries(pairing.source, settings.tasks) if entry["task"] in settings.forgetting]
    return [*target, *(kept if pairing.source != pairing.target else []), gap(pairing.source, pairing.target)]


def gap(source: str, target: str) -> dict[str, Any]:
    """The entry of the label-free signals."""
    return {"task": "domain_gap", "data": target, "source": source}


def by_epoch(pairing: Pairing, settings: DictConfig) -> list[dict[str, Any]]:
    """Entries for a kept epoch."""
    curves = [entry for entry in entries(pairing.target, settings.tasks) if entry["task"] in settings.curves]
    return curves + ([gap(pairing.source, pairing.target)] if pairing.source else [])


def kept_epochs(folder: Path) -> list[Path]:
    """The kept epochs of a run but the last one, which is the run itself."""
    kept = sorted(file.parent for file in folder.glob("epochs/*/run.json"))
    return [path for path in kept if read_run(path)["step"] != read_run(folder)["step"]]


def plan(
    found: Iterable[tuple[Pairing, Path]], settings: DictConfig, more: Sequence[dict[str, Any]] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Everything that a report needs, by checkpoint; the frozen ones first."""
    frozen: dict[str, list[dict[str, Any]]] = {}
    adapted: dict[str, list[dict[str, Any]]] = {}
    for pairing, folder in found:
        wanted = measured(pairing, settings, more)
        own = frozen.setdefault(pairing.checkpoint, [])
        own += [entry for entry in wanted if entry not in own]
        adapted[str(folder)] = wanted
        adapted |= {str(path): by_epoch(pairing, settings) for path in kept_epochs(folder)}
    return frozen | adapted


def curves(checkpoints: Iterable[str], settings: DictConfig, runs: str) -> dict[str, list[dict[str, Any]]]:
    """What adapted runs are compared with: their kept epochs, and where they began if it is here, on their target."""
    found: dict[str, list[dict[str, Any]]] = {}
    names = list(checkpoints)
    for name in names:
        reference = importer.resolve(name, runs)
        about = importer.read_run(reference.path) if (reference.kind, reference.baseline) == ("run", "") else {}
        if about.get("parent") and reference.path.parent.name != "epochs":
            target, source = about["data"]["name"], about["parent"]["data"]
            if target in evaluation.choices("data"):
                known = source if source in evaluation.choices("data") else ""
                wanted = by_epoch(Pairing(name, reference.path, known, target), settings)
                found |= {str(path): wanted for path in kept_epochs(reference.path)}
                if origin := next((each for each in names if Path(each).name == about["parent"]["name"]), None):
                    own, target_entries = found.setdefault(origin, []), entries(target, settings.tasks)
                    own += [entry for entry in target_entries + wanted[-1:] if entry not in own]
    return found


# ---- the command


def train(config: DictConfig, found: Sequence[Pairing]) -> list[str]:
    """Adapt what is not adapted yet; returns the names of those that failed. Raises ValueError under torchrun."""
    if Processes.from_environment().world > 1:
        raise ValueError("torchrun shares out an evaluation, not these trainings: run the command without it; jobs=...")
    settings, runs = config.adaptation, Path(config.runs)
    told, images = list(map(str, settings.settings)), fingerprints({p.target for p in found}, config.data_root)
    missing = {p.name: p for p in found if not is_adapted(runs / p.name, p, settings.epochs, told, images[p.target])}
    wanted = {name: words(p, settings.epochs, settings.settings) for name, p in missing.items()}
    if wanted and not config.quiet:
        print(f"adapting: {', '.join(wanted)}", flush=True)
    wanted = trainings.placed(wanted, data_root=config.data_root, runs=config.runs, quiet=config.quiet)
    at_once = trainings.side_by_side(config.everything.at_once)
    return trainings.train_all(wanted, at_once, "pretrain.adapt") if wanted else []


def run(config: DictConfig) -> None:
    """Adapt, measure, report; exits with 1 when one could not be adapted."""
    found = pairings(map(str, config.checkpoints), list(config.adaptation.targets), config.runs)
    failed = train(config, found)
    done = [(p, Path(config.runs) / p.name) for p in found if p.name not in failed]
    if not done:
        raise ValueError(f"none could be adapted ({', '.join(failed)}); see above")
    more = [] if config.suite is None else evaluation.as_entries(config.suite)
    measure(config, plan(done, config.adaptation, more))
    if failed:
        print(f"not adapted: {', '.join(failed)}; see above, the same command tries again", file=sys.stderr)
        sys.exit(1)


def measure(config: DictConfig, wanted: Mapping[str, list[dict[str, Any]]]) -> None:
    """Evaluate a plan and rewrite the tables."""
    evaluator, plan, lost = evaluation.make_evaluator(config), evaluation.as_items(wanted), list[str]()
    try:
        if config.jobs != 1 or config.launcher != "processes":
            lost = evaluation.evaluate_together(evaluator, wanted, plan, config, Processes())
        else:
            evaluator.evaluate(plan)
    except KeyboardInterrupt:
        raise cli.Interrupted("what is recorded stays; the same command goes on from there") from None
    evaluation.finish(evaluator, config.output, lost)


def main() -> None:
    """Entry point of `python -m evaluate.adaptation`."""
    cli.run(run, "evaluate")


if __name__ == "__main__":
    main()
