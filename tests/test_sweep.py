"""Sweeps: their runs, their names, and the tables of the leaderboard that find them."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import pytest
import yaml
from example_records import checkpoint, record
from omegaconf import DictConfig, OmegaConf
from tiny import OBJECTIVES, compose, overrides

from evaluate.leaderboard import ablations, paper, paper_plan, published
from evaluate.leaderboard.table import build
from evaluate.records import Score
from pretrain import __main__, cli, sweep, train
from pretrain.checkpoint import read_run

SWEEPS = {
    file.stem: spec for file in sorted(sweep.EXPERIMENTS.glob("*.yaml")) if "sweep" in (spec := sweep._read(file))
}


def runs_of(name: str, data: str, **more: object) -> dict[str, list[str]]:
    spec = SWEEPS[name]
    return sweep.expand(spec["sweep"], data, paper=spec.get("paper"), **more)  # type: ignore[arg-type]


def composed(objective: str, data: str = "shapeworld") -> DictConfig:
    with hydra.initialize_config_dir(str(cli.CONFIGS), version_base=None):
        return hydra.compose("pretrain", [f"objective={objective}", f"data={data}"])


def test_every_setting_of_every_sweep_exists_in_the_configuration_of_its_objective() -> None:
    runs = [words for name in SWEEPS for words in runs_of(name, "shapeworld").values()]
    configs = {objective: composed(objective) for objective in OBJECTIVES}
    for objective, _, *settings in runs:
        for setting in settings:
            config = configs[objective.partition("=")[2]]
            OmegaConf.update(config, setting.partition("=")[0], None)  # a struct: an unknown key is an error
    assert len({tuple(words) for words in runs}) > 40


def test_the_sweeps_of_the_papers_tables_train_what_the_leaderboard_looks_for() -> None:
    spec = yaml.safe_load(Path(paper_plan.__file__).with_name("paper.yaml").read_text())
    layouts = {table.key: table for table in published.read_tables()[1]}
    for key, entry in spec["by_setting"].items():
        ours, wanted = SWEEPS[f"table{key}"], [paper.Run(name, tuple(options)) for name, *options in entry["runs"]]
        runs = runs_of(f"table{key}", spec["data"])
        assert list(runs) == [run.name(spec["data"]) for run in wanted]
        for run, words in zip(wanted, runs.values(), strict=True):
            assert words == [f"objective={run.objective}", f"data={spec['data']}", *spec["setting"], *run.options]
        assert [*ours["place"][:1], spec["data"], *ours["place"][1:]] == entry["place"]
        assert list(ours["sweep"]) == list(layouts[key].groups[0].rows)
        assert len(next(iter(ours["sweep"].values()))) == len(layouts[key].columns) and ours["table"] == key


def test_names_are_the_same_on_both_sides_and_never_shared() -> None:
    for entry in paper_plan.read_sweeps():
        for data in ("shapeworld", "cifar10"):
            ours = runs_of(f"table{entry.key}" if entry.table else entry.key, data)
            theirs = [run.name(data) for cells in entry.rows.values() for run in cells.values()]
            assert list(ours) == theirs and len(set(theirs)) == len(theirs)


def test_all_eight_objectives_are_compared_with_three_seeds_on_equally_many_images() -> None:
    runs = runs_of("objectives", "shapeworld", seeds=SWEEPS["objectives"]["seeds"])
    assert sorted(runs) == [f"{name}-shapeworld-s{seed}" for name in OBJECTIVES for seed in (0, 1, 2)]
    trainers = [composed(name).trainer for name in OBJECTIVES]
    assert len({(trainer.epochs, trainer.batch_size) for trainer in trainers}) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["experiment=tabel9"], "unknown sweep 'tabel9'; did you mean 'table9'?"),
        (["experiment=cifar10_two_cores"], "is one run, not a sweep: python -m pretrain +experiment=cifar10_two_cores"),
        (["data=shapeworld"], "experiment=NAME is missing"),
        (["experiment=table9", "seed=3"], "a sweep sets seed itself"),
        (["experiment=table9", "epochs"], "'epochs' is no setting"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_clear_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sweep.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_the_list_is_one_that_evaluation_reads(capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(["experiment=13", "seeds=[0,1]", "runs=my runs", "list=true", "trainer.epochs=1"])
    assert yaml.safe_load(capsys.readouterr().out) == [
        f"my runs/bits_fixed-shapeworld{setting}-s{seed}" for setting in ("-min_lr1e-6", "") for seed in (0, 1)
    ]


def words_of(images: Path, runs: Path) -> list[str]:
    """A sweep of table 13 on tiny images."""
    left_out = ("data=", "objective=", "optim.min_lr")
    shared = [word for word in overrides(images, "bits_fixed", runs) if not word.startswith(left_out)]
    return ["experiment=table13", "data=folder", "at_once=2", *shared, "trainer.epochs=1", "optim.warmup_epochs=0"]


@pytest.mark.thorough
def test_only_what_is_not_finished_is_started_and_failures_end_in_an_exit_code(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = words_of(images, tmp_path)
    train.train(compose("objective=bits_fixed", *words[1:2], *words[3:]))
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/started\nexit 1\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(SystemExit) as stopped:
        sweep.main(words)
    said = capfd.readouterr()
    assert stopped.value.code == 1 and "2 runs, 1 of them finished" in said.out
    assert "not trained: bits_fixed-folder-min_lr1e-6; see above" in said.err
    (line,) = (tmp_path / "started").read_text().splitlines()
    assert line.startswith(
        "-m pretrain objective=bits_fixed data=folder optim.min_lr=1e-6 name=bits_fixed-folder-min_lr1e-6 "
    )
    with pytest.raises(SystemExit):
        sweep.main([*words, "trainer.epochs=2"])
    assert "is finished by another configuration (trainer.epochs is 1 there, 2 now)" in capfd.readouterr().err


@pytest.mark.slow
def test_multirun_trains_every_run_of_a_sweep(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain", "--multirun", "+experiment=table13", *words_of(images, tmp_path)[1:]])
    __main__.main()
    infos = [read_run(tmp_path / name) for name in ("bits_fixed-folder-min_lr1e-6", "bits_fixed-folder")]
    assert [info["config"]["optim"]["min_lr"] for info in infos] == [1e-6, 5e-5] and all(i["finished"] for i in infos)


def measured(name: str, value: float, **more: object) -> object:
    about = checkpoint(name, **{"objective": "bits_fixed", "backbone": "vit-64", "epoch": 24} | more)
    score = Score(value, value - 0.01, value + 0.01, 100)
    fields = {
        "checkpoint": about,
        "task": "retrieval",
        "dataset": "shapeworld",
        "main": "map",
        "scores": {"map": score},
    }
    return record(name, **fields, outcomes={})


def test_an_axis_has_a_table_in_the_papers_layout_on_other_data() -> None:
    stem = "bits_fixed-shapeworld-beta"
    table = build([
        measured(f"{stem}0.1-stop_after_epoch10", 0.2),
        measured(f"{stem}0.5-stop_after_epoch10-s0", 0.3, seed=0),
        measured(f"{stem}0.5-stop_after_epoch10-s1", 0.4, seed=1),
        measured("bits_fixed-shapeworld", 0.9),
    ])  # fmt: skip
    (made,) = ablations.tables(table)
    assert made.layout.title == "Layout of Table 4 on shapeworld"
    ((_, (line,)),) = made.blocks
    assert [entry.text for entry in line.entries] == ["gap", "20.00", "gap", "35.00"] and not line.published
    (gap,) = made.gaps
    assert gap.columns == ["beta = 0.05", "beta = 0.2"] and gap.commands == ["make ablation TABLE=4 DATA=shapeworld"]
    layout = next(each for each in paper.elsewhere(table) if "Table 1" in each.layout.title)
    texts = {entry.text for _, rows in layout.blocks for row in rows for entry in row.entries}
    assert texts == {"90.00", "gap"}  # a setting of an axis is never taken for its method


def test_gaps_of_an_axis_name_the_one_command_that_fills_them() -> None:
    tables = {table.layout.key: table for table in paper.fill(build([measured("bits_fixed-shapeworld", 0.9)]))[1]}
    for key in (3, 4, 9, 10, 11, 12, 13):
        (gap,) = tables[key].gaps
        assert gap.commands == [f"make ablation TABLE={key} DATA=imagenet"] and len(gap.columns) == len(
            tables[key].layout.columns
        )
        assert sweep.read_experiment(str(key))["table"] == key
