"""Which tensors of a file found their place in the network, said in a report; a mismatch is refused unless accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from evaluate.layouts.base import Renamed, Root
from pretrain.checkpoint import CheckpointError

SHOWN = 6


@dataclass(frozen=True)
class Coverage:
    """How a network of `wanted` tensors and a file fit: missing and left-over names, names set aside, wrong shapes."""

    origin: str
    root: Root
    wanted: int
    missing: list[str]
    left_over: list[str]
    wrong: list[str]
    aside: list[str]
    elsewhere: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, accepted: Iterable[str]) -> None:
        """Raise CheckpointError with the names that do not fit, and the option that would take them."""
        if self.wrong:
            raise CheckpointError(f"{self.origin}: {some(self.wrong)}; nothing makes these fit")
        faults = {"missing": self.missing, "left-over": self.left_over}
        faults = {word: names for word, names in faults.items() if names and word not in accepted}
        if faults:
            fit = f"{self.wanted - len(self.missing)} of {self.wanted} tensors found"
            what = "; ".join(f"{word.replace('-', ' ')}: {some(names)}" for word, names in faults.items())
            joined = "&" if "?" in self.origin else "?"
            remedy = f"to take it as it is, add {joined}accept={','.join(faults)} to the name"
            raise CheckpointError(f"{self.origin} does not fit, {fit}; {what}; {remedy}")

    def accepted(self) -> list[str]:
        """What a record should say about a mismatch that was accepted."""
        faults = {"missing": self.missing, "left over": self.left_over}
        return [f"accepted with {len(names)} tensors {word}: {some(names)}" for word, names in faults.items() if names]

    def report(self) -> list[str]:
        """The coverage in lines."""
        network = self.root.prefix.rstrip(".") or "the whole file"
        lines = [f"{self.origin}: {self.root.layout.name} naming, {network}"]
        lines.append(f"  {self.wanted - len(self.missing)} of {self.wanted} tensors found")
        if self.aside:
            lines.append(f"  set aside, no part of the features: {counted(self.aside)}")
        if self.elsewhere:
            lines.append(f"  other parts of the file: {counted(self.elsewhere)}")
        return [*lines, *(f"  {note}" for note in [*self.notes, *self.accepted()])]


def compare(
    origin: str, root: Root, renamed: Renamed, wanted: Mapping[str, Tensor], names: Iterable[str], notes: list[str]
) -> Coverage:
    """How the tensors of a network in a file with these `names` fit what is `wanted`, which may lie on "meta"."""
    have = renamed.tensors
    wrong = [
        f"{name} is {tuple(have[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in have and have[name].shape != wanted[name].shape
    ]
    wrong += [f"{name} holds {value.dtype}" for name, value in have.items() if not value.is_floating_point()]
    left_over = [*renamed.left_over, *(name for name in have if name not in wanted)]
    missing = [name for name in wanted if name not in have]
    elsewhere = [name for name in names if not name.startswith(root.prefix)]
    return Coverage(origin, root, len(wanted), missing, left_over, wrong, renamed.aside, elsewhere, notes)


def some(names: list[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def counted(names: Iterable[str]) -> str:
    """Names by what they begin with: `head (8), student (158)`."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{word} ({count})" for word, count in counts.most_common(SHOWN))
