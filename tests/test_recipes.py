"""Recipes are complete: they set what there is to set, their views can be made, and their heads say what to expect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf
from tiny import compose

from pretrain.backbones import Backbone
from pretrain.cli import CONFIGS
from pretrain.views import View

RECIPES = [file for folder in ("recipe", "experiment") for file in sorted((CONFIGS / folder).glob("*.yaml"))]
SINGLE = [file for file in RECIPES if "sweep:" not in file.read_text() and "defaults:" not in file.read_text()]
#: arguments that a recipe may give and the plain configuration leaves at their defaults
DEFAULTED = {"backbone.mean", "backbone.std", "objective.head.init", "objective.head.bn", "objective.head.out"}
DEFAULTED |= {f"views.{view}.{name}" for view in ("global_view", "first", "second", "local") for name in
              View.__dataclass_fields__}  # fmt: skip


def keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@cache
def settable(*words: str) -> set[str]:
    """Keys of the configuration without a recipe of its own."""
    return set(keys(OmegaConf.to_container(compose(*words))))  # type: ignore[arg-type]


@pytest.mark.parametrize("file", SINGLE, ids=lambda file: file.stem)
def test_a_recipe_sets_what_there_is_and_its_parts_fit(file: Path) -> None:
    words = ["data=cifar10" if "cifar" in file.stem else "data=folder"]
    words += ["objective=imsvd" if "imsvd" in file.stem else "objective=bits_fixed"]
    plain = settable(*words)
    group = f"{'+' if file.parent.name == 'experiment' else ''}{file.parent.name}={file.stem}"
    config = compose(*words, group)
    assert set(keys(OmegaConf.to_container(config))) <= plain | DEFAULTED  # type: ignore[arg-type]
    views = hydra.utils.instantiate(config.views)
    backbone = Backbone(**{**config.backbone, "depth": 1})
    assert {view.size % backbone.patch_size for view in views} == {0} and views[0].size == config.backbone.image_size


@pytest.mark.parametrize("file", [f for f in RECIPES if "defaults:" not in f.read_text()], ids=lambda file: file.stem)
def test_the_head_of_a_recipe_gives_command_time_and_score(file: Path) -> None:
    head = " ".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert all(word in head for word in ("Command: ", "Expected time", "Expected score")) and yaml.safe_load(
        file.read_text()
    )
