"""What the entry points say of themselves."""

from __future__ import annotations

import sys

import pytest
import yaml

from pretrain import cli
from pretrain.help import help_text


@pytest.mark.parametrize("name", ["pretrain", "evaluate"])
def test_help_fits_80_columns_and_names_every_setting_and_choice(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    cli.run(lambda config: pytest.fail("it ran"), name)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith(f"python -m {name} ")
    config = yaml.safe_load((cli.CONFIGS / f"{name}.yaml").read_text())
    for key, value in config.items():
        for full in [f"{key}.{inner}" for inner in value if inner != "_target_"] if isinstance(value, dict) else [key]:
            if key not in ("defaults", "hydra", "init", "ema"):
                assert any(line.strip().startswith(f"{full}=") for line in lines), full
    words = set(text.replace(",", " ").split())
    for group in ("suite",) if name == "evaluate" else ("data", "objective", "recipe", "tuning", "experiment"):
        assert {file.stem for file in (cli.CONFIGS / group).glob("*.yaml")} <= words


def test_a_setting_stands_beside_its_default_and_its_meaning() -> None:
    text = help_text(cli.CONFIGS, "pretrain")
    assert "  trainer.log_every=50        steps\n" in text
    assert "  backbone.cls_init=reference\n                              truncated normal 0.02" in text


def test_the_shell_completes_groups_settings_and_choices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, expected in (("suite=cifar", "suite=cifar10"), ("batch_s", "batch_size=")):
        monkeypatch.setenv("COMP_LINE", f"bitsbench-evaluate {line}")
        monkeypatch.setattr(sys, "argv", ["bitsbench-evaluate", "-sc", "query=bash"])
        cli.run(lambda config: pytest.fail("it ran"), "evaluate")
        assert expected in capsys.readouterr().out.split()
