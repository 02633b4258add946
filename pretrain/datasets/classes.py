"""One order of classes for several splits, each of which numbers the classes of its own folders or lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def numbered(classes: Sequence[str]) -> bool:
    """Whether classes are named "0", "1", ... by their index. Digits alone say nothing: PlantNet's ids are digits."""
    return bool(classes) and all(name == str(i) for i, name in enumerate(classes))


def are_indices(classes: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one list is `numbered` and its numbers are positions in the other, as ImageNet-V2's in ImageNet's wnids.

    So it is where the other has names, none of which is such a number, and no fewer of them.
    """
    if numbered(classes) == numbered(other) or not set(classes).isdisjoint(other):
        return False
    numbers, names = (classes, other) if numbered(classes) else (other, classes)
    return len(numbers) <= len(names)


def in_one_order(lists: Sequence[Sequence[str]]) -> tuple[list[str], list[np.ndarray]]:
    """The classes of all lists, those of the first list first, and the place of each list's own among them (C,) int64.

    Classes are the same where their names are, but numbers that `are_indices` into the first list stay as they are.
    """
    first = lists[0]
    if all(list(classes) == list(first) for classes in lists):  # names may repeat there
        return list(first), [np.arange(len(first)) for _ in lists]
    position: dict[str, int] = {}
    places = []
    for classes in lists:
        kept = are_indices(classes, first)
        for name in classes[len(position) :] if kept else classes:
            position.setdefault(name, len(position))
        places.append(np.arange(len(classes)) if kept else np.array([position[name] for name in classes], np.int64))
    return list(position), places
