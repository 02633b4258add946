"""What a user adds to the name of a checkpoint: `dino.pth@teacher?heads=6&size=224`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from pretrain.checkpoint import CheckpointError


def three(text: str) -> list[float]:
    """Three numbers with commas between, one a channel."""
    values = [float(part) for part in text.split(",")]
    if len(values) != 3:
        raise ValueError
    return values


def acceptances(text: str) -> tuple[str, ...]:
    """Which mismatches are taken: "missing", "left-over" or both."""
    words = tuple(text.split(","))
    if not set(words) <= {"missing", "left-over"}:
        raise ValueError
    return words


@dataclass(frozen=True)
class Options:
    """What a name may say about weights whose file does not say it, or against it.

    heads: attention heads; size, resize: side of the view and of the image it is cut from, in pixels; mean, std: of
    the normalisation; eps: of layer norms; act: activation, a timm name; positions: rule for other sizes; accept:
    mismatches that are no error.
    """

    heads: int | None = None
    size: int | None = None
    resize: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    eps: float | None = None
    act: str | None = None
    positions: str | None = None
    accept: tuple[str, ...] = ()


READ: dict[str, tuple[Callable[[str], Any], str]] = {
    "heads": (int, "a number, heads=6"),
    "size": (int, "pixels, size=224"),
    "resize": (int, "pixels, resize=256"),
    "mean": (three, "three numbers, mean=0.5,0.5,0.5"),
    "std": (three, "three numbers, std=0.5,0.5,0.5"),
    "eps": (float, "a number, eps=1e-6"),
    "act": (str, "an activation, act=quick_gelu"),
    "positions": (str, "a rule, positions=timm, dino or bicubic"),
    "accept": (acceptances, "accept=missing, accept=left-over or accept=missing,left-over"),
}
assert set(READ) == {field.name for field in fields(Options)}


def parse(query: str, name: str) -> Options:
    """Options from `heads=6&size=224`; raises CheckpointError naming the one that is unknown or cannot be read."""
    found: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key not in READ:
            close = difflib.get_close_matches(key, READ, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(READ)}"
            raise CheckpointError(f"unknown option {key!r} in {name!r}; {hint}")
        convert, expected = READ[key]
        try:
            found[key] = convert(value)
        except ValueError:
            raise CheckpointError(f"cannot read {part!r} in {name!r}; give {expected}") from None
        if isinstance(found[key], int | float) and found[key] <= 0:
            raise CheckpointError(f"{part!r} in {name!r} must be positive; give {expected}")
    return Options(**found)
