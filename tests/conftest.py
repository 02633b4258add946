"""Fixtures shared by tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ImageFolder with splits train and val."""
    return write_images(tmp_path_factory.mktemp("images"))
