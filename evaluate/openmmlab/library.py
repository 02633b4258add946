"""Importing OpenMMLab: quietly, once, with operators for a pure-Python mmcv."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from functools import cache

PACKAGES = ("mmengine", "mmcv", "mmseg", "mmdet")
REMEDY = "run `make openmmlab`"


class Missing(ImportError):
    """OpenMMLab cannot be imported; `remedy` is the command that installs it."""

    remedy = REMEDY


def check() -> None:
    """Raise Missing, naming the package, when one is not installed; nothing is imported."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise Missing(f"heads for segmentation and detection need {name}, which is not installed")


@cache
def load(library: str) -> None:
    """Import mmseg or mmdet so that its registries are full; what it prints on the way is not for our readers.

    Raises Missing when a package is not there or does not fit the others.
    """
    check()
    own = {"mmseg": "linear", "mmdet": "pyramid"}[library]
    try:
        with quiet():
            from evaluate.openmmlab import operators

            operators.install()
            for name in (f"{library}.models", f"{library}.datasets.transforms"):
                importlib.import_module(name)
            for name in ("wrapper", own):
                importlib.import_module(f"evaluate.openmmlab.{name}")
    except ImportError as error:
        raise Missing(f"OpenMMLab cannot be imported: {error}") from error
    logging.getLogger("mmengine").setLevel(logging.ERROR)


@contextlib.contextmanager
def building(scope: str) -> Iterator[None]:
    """Names of modules mean those of mmseg or mmdet while the block runs, and nothing is printed."""
    from mmengine.registry import DefaultScope

    with quiet(), DefaultScope.overwrite_default_scope(scope):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing printed, no warning: what building a model says is not for our readers."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
