"""Fixtures shared by tests; one thread each, because two test processes already fill two cores."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before the first import of torch or numba
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")  # GNU OpenMP would end a forked process

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from tiny import write_images  # noqa: E402


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ImageFolder with splits train and val."""
    return write_images(tmp_path_factory.mktemp("images"))
