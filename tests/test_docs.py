"""The pages: what they show runs, what they name exists, and what they list is what there is."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from frozen import folder_data, save_tiny_run, subject

from pretrain import cli, sweep

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {file.name: file.read_text() for file in sorted(DOCS.glob("*.md"))}
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
COMMANDS = [
    (page, line)
    for page, text in PAGES.items()
    for language, _, block in BLOCK.findall(text)
    if language == "console"
    for line in block.splitlines()
]


def load_generator() -> types.ModuleType:
    """docs/generate.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def block(page: str, title: str) -> str:
    """The block of a page with this title."""
    (found,) = [content for _, name, content in BLOCK.findall(PAGES[page]) if name == title]
    return found


def module_of(page: str, title: str) -> Any:
    """A file shown on a page, as the module that it would be."""
    module = types.ModuleType(title.removesuffix(".py").replace("/", "."))
    sys.modules[module.__name__] = module
    exec(compile(block(page, title), title, "exec"), module.__dict__)
    return module


def test_the_navigation_names_every_page_and_links_lead_somewhere() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(page for entry in site["nav"] for page in entry.values()) == sorted(PAGES)
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", BLOCK.sub("", text)):
            assert link.startswith("https://") or (DOCS / link).exists(), f"{page}: {link}"


def test_everything_configured_is_on_its_page() -> None:
    generate = load_generator()
    filled = {page: generate.fill(text) for page, text in PAGES.items()}
    assert not any("<!--" in text for text in filled.values())
    for group, page in (
        ("task", "protocols"),
        ("suite", "protocols"),
        ("data", "datasets"),
        ("objective", "own-objective"),
    ):
        for file in (cli.CONFIGS / group).glob("*.yaml"):
            assert re.search(rf"^(\| |### |- \*\*){file.stem}\b", filled[f"{page}.md"], re.MULTILINE), file
    with pytest.raises(ValueError, match="unknown mark <!-- protocls -->"):
        generate.fill("<!-- protocls -->")


def test_every_command_is_one_that_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert len(COMMANDS) > 25
    for page, line in COMMANDS:
        program, *words = shlex.split(line)
        if program == "make":
            assert words[0] in targets, f"{page}: {line}"
            for word in words[1:]:
                assert f"$({word.partition('=')[0]})" in makefile, f"{page}: {word}"
        else:
            module = words[words.index("-m") + 1]
            assert program in ("python", "torchrun") and importlib.util.find_spec(module), f"{page}: {line}"


def settings_of(line: str) -> tuple[str, list[str]] | None:
    """Configuration and overrides of a command that Hydra reads, also where they are handed on by make."""
    program, *words = shlex.split(line)
    if program == "make":
        given = dict(word.split("=", 1) for word in words[1:])
        trains = dict.fromkeys(("pretrain", "adapt", "ablation"), "pretrain")
        name = (trains | dict.fromkeys(("eval-all", "adaptation"), "evaluate")).get(words[0])
        named = {"OBJECTIVE": "objective", "DATA": "data", "SUITE": "suite"}
        settings = [f"{key}={given[variable]}" for variable, key in named.items() if variable in given]
        return (name, settings + given.get("ARGS", "").split()) if name else None
    module, *settings = words[words.index("-m") + 1 :]
    ours = [word for word in settings if not word.startswith(("--", "hydra", "job"))]
    return (
        (module, [re.sub(r"=([^\[]*),.*", r"=\1", word) for word in ours])
        if module in ("pretrain", "evaluate")
        else None
    )


@pytest.mark.thorough
def test_every_setting_of_every_command_is_one_that_exists() -> None:
    seen = {(name, tuple(words)) for _, line in COMMANDS for name, words in [settings_of(line) or ("", [])] if name}
    assert len(seen) > 10
    with hydra.initialize_config_dir(str(cli.CONFIGS), version_base=None):
        for name, words in sorted(seen):
            hydra.compose(name, list(words))


def test_every_table_and_target_of_a_command_is_one_that_exists() -> None:
    given = [dict(word.split("=", 1) for word in shlex.split(line)[1:] if "=" in word) for _, line in COMMANDS]
    tables = [words["TABLE"] for words in given if "TABLE" in words]
    targets = [target for words in given for target in words.get("TARGETS", "").split()]
    assert tables and targets
    assert all(sweep.read_experiment(table) for table in tables)
    assert all((cli.CONFIGS / "data" / f"{target}.yaml").is_file() for target in targets)


def test_the_task_of_its_page_runs_and_scores_what_it_says(images: Path, tmp_path: Path) -> None:
    module = module_of("own-task.md", "evaluate/tasks/class_mean.py")
    target = yaml.safe_load(block("own-task.md", "configs/task/class_mean.yaml"))["_target_"]
    assert target == f"{module.__name__}.ClassMean"
    assert yaml.safe_load(block("own-task.md", "configs/suite/mine.yaml"))["tasks"][0]["task"] == "class_mean"
    at = subject(save_tiny_run(tmp_path), folder_data(images), tmp_path / "cache")
    task = module.ClassMean()
    task.check(at)
    result = task.run(at)
    train, test = at.features("train"), at.features("test")
    unit = torch.nn.functional.normalize(train.cls(), dim=1)
    nearest = []
    for row in test.cls():
        cosines = [
            torch.cosine_similarity(row, unit[torch.from_numpy(train.labels) == c].mean(0), dim=0) for c in range(3)
        ]
        nearest.append(int(torch.stack(cosines).argmax()))
    assert result.scores["top1"].value == pytest.approx((torch.tensor(nearest).numpy() == test.labels).mean())
    assert task.protocol(at)["features"] == "cls" and task.main(at) == "top1"


def test_the_objective_of_its_page_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of("own-objective.md", "pretrain/objectives/cosine.py")
    config = yaml.safe_load(block("own-objective.md", "configs/objective/cosine.yaml"))["objective"]
    assert config["loss"]["_target_"] == f"{module.__name__}.Cosine"
    objective = hydra.utils.instantiate(config["loss"], head=config["head"])
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 8, requires_grad=True), torch.randn(2, 5, 8)
    output = objective(student, teacher)
    cosines = [
        torch.cosine_similarity(student[v, n], teacher[q, n], dim=0)
        for q in range(2)
        for v in range(3)
        if q != v
        for n in range(5)
    ]
    torch.testing.assert_close(output.loss, 1 - torch.stack(cosines).mean())
    output.loss.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    import subprocess

    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0 and (tmp_path / "protocols" / "index.html").exists(), result.stderr
