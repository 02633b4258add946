"""make's front door: what it lists, and how variables reach the programs. Nothing is installed or run (`make -n`)."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("install", "pretrain", "eval-all", "leaderboard", "compare", "test", "test-all", "check", "bench", "clean")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Only PATH: under `make test`, MAKEFLAGS and the variables of that call would leak into this one.
    clean = {"PATH": os.environ["PATH"]}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60)


def program(*arguments: str) -> list[str]:
    """The last command of a dry run, as the words the shell would pass after `python -m`."""
    result = make("-n", *arguments)
    assert result.returncode == 0, result.stderr
    interpreter, flag, *words = shlex.split(result.stdout.splitlines()[-1])
    assert (interpreter, flag) == (".venv/bin/python", "-m")
    return words


def overrides(words: list[str]) -> dict[str, object]:
    """What Hydra reads from key=value words."""
    return {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(words)}


def test_plain_make_lists_every_target_with_one_line():
    result = make()
    assert result.returncode == 0
    for target in TARGETS:
        assert re.search(rf"^  {target} +\S.+$", result.stdout, re.MULTILINE), target


def test_every_listed_variable_is_used_by_a_recipe():
    recipes = (ROOT / "Makefile").read_text()
    listed = re.findall(r"^  ([A-Z_, ]+)\s{2,}", make("help").stdout, re.MULTILINE)
    names = {name for entry in listed for name in re.split(r"[, ]+", entry) if name}
    assert {"OBJECTIVE", "DATA", "CHECKPOINTS", "A", "B", "MORE"} <= names
    assert [name for name in sorted(names) if f"$({name})" not in recipes] == []


def test_variables_that_were_not_given_are_left_to_the_configs():
    assert program("pretrain") == ["pretrain"]
    assert program("eval-all") == ["evaluate.everything"]
    assert program("leaderboard") == ["evaluate.leaderboard"]


def test_pretrain_passes_its_variables_through():
    given = ("OBJECTIVE=dino", "DATA=cifar10", "RUN=first", "DATA_ROOT=/big disk/it's,  here", "ARGS=epochs=2 seed=1")
    module, *words = program("pretrain", *given)
    assert module == "pretrain"
    expected = {"objective": "dino", "data": "cifar10", "name": "first", "data_root": "/big disk/it's,  here"}
    assert overrides(words) == expected | {"epochs": 2, "seed": 1}


@pytest.mark.parametrize(
    "path", ["runs/a,b", "runs/it's", 'runs/"quoted"', "runs/a=b", "runs/[x]{y}", "hf-hub:timm/vit", "é"]
)
def test_a_checkpoint_with_odd_characters_arrives_as_it_is(path):
    module, *words = program("eval-all", f"CHECKPOINTS=runs/first {path}", "SUITE=small", "OUTPUT=out put")
    assert module == "evaluate"
    assert overrides(words) == {"checkpoints": ["runs/first", path], "suite": "small", "output": "out put"}


def test_leaderboard_and_compare_read_the_folder_that_evaluation_wrote_to():
    folder = ["--records", "my results/records"]
    words = program("leaderboard", "OUTPUT=my results")
    assert words == ["evaluate.leaderboard", *folder, "--output", "my results"]
    assert program("compare", "A=a", "B=b", "OUTPUT=my results") == ["evaluate.compare", "a", "b", *folder]


def test_compare_passes_each_checkpoint_as_one_word():
    words = program("compare", "A=runs/my run", "B=it's", "MORE=c d")
    assert words == ["evaluate.compare", "runs/my run", "it's", "c", "d"]


def test_compare_without_two_checkpoints_says_what_to_give():
    result = make("-n", "compare", "A=runs/first")
    assert result.returncode != 0
    assert "make compare A=NAME B=NAME" in result.stderr


def test_set_up_without_a_suitable_python_is_one_clear_line(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    result = make("-C", str(tmp_path), "install", "PYTHON=no-such-python")
    assert result.returncode != 0
    assert "none of no-such-python is Python 3.11 to 3.13" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_set_up_is_due_exactly_when_a_requirement_file_is_newer_than_the_stamp(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt", ".venv/.stamp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000, 1000))
    assert "pip install" not in make("-n", "-C", str(tmp_path), "test").stdout
    os.utime(tmp_path / "constraints.txt", (2000, 2000))
    assert "pip install" in make("-n", "-C", str(tmp_path), "test").stdout
