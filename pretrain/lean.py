"""timm without what comes along unasked: torch's compiler, by way of torchvision, and an experiment tracker.

No line of ours uses either before a model is compiled or a logger is named, and they take as long to import as all the
rest: half the start of every command.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

LATER = ("torch._dynamo", "torch._dynamo.utils")
ABSENT = ("wandb",)  # timm imports it where it can, for a summary that is not written here


class _Later(ModuleType):
    """Stands for a module while others import functions of it; each loads the module when it is first called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            clear()
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call

    def disable(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """Mark a function as the compiler's own `disable` does: not to be compiled."""
        function._torchdynamo_disable = True  # type: ignore[attr-defined]
        return function


def clear() -> None:
    """Take the stand-ins away, so that the next import finds the modules themselves."""
    for name in LATER:
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


@contextmanager
def lean_imports() -> Iterator[None]:
    """While the block imports, what is not loaded yet of `LATER` is put off and `ABSENT` is taken for not installed."""
    absent = [name for name in ABSENT if name not in sys.modules]
    try:
        if LATER[0] not in sys.modules:
            sys.modules |= {name: _Later(name) for name in LATER}
        sys.modules |= dict.fromkeys(absent)  # type: ignore[arg-type]  # None: an import raises ImportError
        yield
    finally:
        clear()
        for name in absent:
            sys.modules.pop(name, None)
