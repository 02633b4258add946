"""The discrete variables of IMSVD (arXiv 2501.03469) and MUSIC (arXiv 2206.06461): are they used, and what do they say?

The joint probability matrix over all units is what these objectives shape in training. Sheets show the images of each
unit of single variables, which is their claim of explainability at the level of one variable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluate.features import Frozen
from evaluate.metrics.codes import plug_in
from evaluate.metrics.units import joint_information, unit_probabilities
from evaluate.pictures import Strip, draw_joint, printable, sheet
from evaluate.tasks.base import Result, Score, Subject, Task, Unavailable, centre_view_protocol, mean_score

ROWS_AT_ONCE = 4096
DRAWN = 1024  # units of the joint matrix that are drawn and kept; of wider ones the first variables
SHOWN = 10  # images of a unit on a sheet, and in the list


class Units(Task):
    """Entropy of the variables, what they say of each other, and the images of their units.

    Joint probabilities are the mean over images of products of unit probabilities, of the centre view alone: training
    takes them over two random views. `pair_information` is their mutual information over pairs of variables (0 where
    they are independent), `own_information` that of a variable with itself (log2 of its units where images fall
    decidedly and evenly into them). Sheets are drawn of the `sheets` variables with most of it, or of those in
    `variables`, with `units` rows at most. Entropies have no interval: they are of sums over images, not of images.
    """

    name = "units"

    def __init__(self, split: str = "test", sheets: int = 3, variables: tuple[int, ...] = (), units: int = 16):
        if sheets < 0 or units < 1:
            raise ValueError(f"sheets={sheets} must be 0 or more, units={units} at least 1")
        self.split, self.sheets, self.variables, self.units = split, sheets, list(variables), units

    @property
    def splits(self) -> tuple[str, ...]:
        """The one that is looked at."""
        return (self.split,)

    def main(self, subject: Subject) -> str:
        """Entropy of a variable, mean over variables."""
        return "variable_entropy"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """View, split, and the units of a variable."""
        shared = centre_view_protocol(subject, "softmax over the units of each variable of the head")
        segments = subject.segments
        return shared | {"split": self.split, "units": segments.bins, "temperature": segments.temperature}

    def check(self, subject: Subject) -> None:
        """Needs a head of discretised variables."""
        if subject.segments is None:
            raise Unavailable("the checkpoint has no discretised variables", "evaluate a run of IMSVD or MUSIC")

    def run(self, subject: Subject) -> Result:
        """Describe the variables on a split."""
        features = subject.features(self.split)
        found = discretise(subject, features)
        bins = subject.segments.bins
        information = joint_information(found.joint, bins)
        own, count = np.diag(information), len(information)
        pairs = (information.sum() - own.sum()) / max(1, count * (count - 1))
        shared = {"variable_entropy": plug_in(found.share).mean(), "own_information": own.mean()}
        shared |= {"pair_information": pairs} if count > 1 else {}
        scores = {name: Score(float(v), None, None, len(features), scale="bits") for name, v in shared.items()}
        scores["confidence"] = mean_score(found.confidence, "image")
        kept = found.joint[: (most := max(bins, DRAWN // bins * bins)), :most].astype(np.float32)
        outcomes = {"sample_id": features.ids, "confidence": found.confidence, "share": found.share}
        outcomes |= {"information": information, "joint": kept}
        files = {"joint.png": draw_joint(kept, bins, information), "units.json": listing(found, features)}
        for variable in self.drawn(own):
            files[f"variable{variable:03d}.png"] = self.draw(found, features, variable)
        return Result(scores, outcomes, {"images": features.skipped}, remarks(len(features), bins), files)

    def drawn(self, own: np.ndarray) -> list[int]:
        """The variables of which sheets are drawn; raises ValueError for one that the head does not have."""
        for variable in self.variables:
            if not 0 <= variable < len(own):
                raise ValueError(f"variables={self.variables}: {variable} is outside 0..{len(own) - 1}")
        return self.variables or np.argsort(-own, kind="stable")[: self.sheets].tolist()

    def draw(self, found: Discretised, features: Frozen, variable: int) -> bytes:
        """PNG of the images of each unit of a variable, the unit that most images fall into first."""
        share, bins = found.share[variable], found.share.shape[1]
        strips = []
        for unit in np.argsort(-share, kind="stable")[: self.units]:
            images = [features.images.image(features.rows[i]) for i in found.best[variable * bins + unit]]
            strips.append(Strip(f"unit {unit}\n{share[unit]:.1%}", [images]))
        left = f", {self.units} of {bins} units" if self.units < bins else ""
        title = f"Variable {variable}: the most probable images of each unit, and its share of all{left}"
        return sheet(title, [""], strips, SHOWN)


@dataclass
class Discretised:
    """What unit probabilities of n images add up to: S variables of k units, D = S k.

    joint (D, D); share (S, k): mean probability; best (D, m) positions of the most probable images and their
    probabilities chance (D, m); confidence (n,): mean over variables of the largest probability; mass (D, C):
    probability by class, or None without classes.
    """

    joint: np.ndarray
    share: np.ndarray
    best: np.ndarray
    chance: np.ndarray
    confidence: np.ndarray
    mass: np.ndarray | None


@torch.no_grad()
def discretise(subject: Subject, features: Frozen) -> Discretised:
    """Unit probabilities of stored features, a few thousand images at a time."""
    segments, device = subject.segments, subject.device
    head, members = segments.head.to(device), memberships(features)
    joint: Tensor | float = 0.0
    mass: Tensor | float = 0.0
    best = torch.empty(0, 0, dtype=torch.long)
    chance, confidence = torch.empty(0, 0), []
    for start in range(0, len(features), ROWS_AT_ONCE):
        rows = features.cls()[start : start + ROWS_AT_ONCE].to(device)
        p = unit_probabilities(head(rows), segments.bins, segments.temperature)
        confidence.append(p.amax(2).mean(1).double().cpu())
        flat = p.flatten(1)
        joint = joint + (flat.T @ flat).double().cpu()
        if members is not None:
            mass = mass + (flat.T @ members[start : start + len(rows)].to(device)).double().cpu()
        index = torch.arange(start, start + len(rows)).expand(flat.shape[1], -1)
        best, chance = most_probable(best, chance, index, flat.T.cpu())
    joint = torch.as_tensor(joint).div_(len(features))
    # The row sums of a block are the shares of its units: any block does, so the first of each row is taken.
    share = joint[:, : segments.bins].sum(1).unflatten(0, (-1, segments.bins))
    classes = None if members is None else torch.as_tensor(mass).numpy()
    sums = (joint.numpy(), share.numpy(), best.numpy(), chance.numpy(), torch.cat(confidence).numpy())
    return Discretised(*sums, classes)


def most_probable(best: Tensor, chance: Tensor, index: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the images of highest probability of each unit: (D, m) so far, (D, n) more; ties by position."""
    if best.numel():
        index, more = torch.cat([best, index], 1), torch.cat([chance, more], 1)
    chance, order = more.sort(dim=1, descending=True, stable=True)
    return index.gather(1, order[:, :SHOWN]), chance[:, :SHOWN]


def memberships(features: Frozen) -> Tensor | None:
    """Which image has which class: (n, C) float32, None without labels."""
    if features.images.labels is None:
        return None
    labels = torch.as_tensor(features.labels)
    count = max(len(features.images.classes), int(labels.max()) + 1)
    return labels.float() if labels.ndim == 2 else torch.nn.functional.one_hot(labels.long(), count).float()


def listing(found: Discretised, features: Frozen) -> bytes:
    """JSON: share and most probable images of every unit, and the class that has most of it."""
    bins, ids, units = found.share.shape[1], features.ids, []
    for unit, share in enumerate(found.share.ravel()):
        entry: dict[str, Any] = {"variable": unit // bins, "unit": unit % bins, "share": round(float(share), 6)}
        if found.mass is not None and (total := found.mass[unit].sum()) > 0:
            most, names = int(found.mass[unit].argmax()), features.images.classes
            entry["class"] = printable(names[most] if most < len(names) else most, 200)
            entry["class_share"] = round(float(found.mass[unit, most] / total), 4)
        pairs = zip(found.best[unit], found.chance[unit], strict=True)
        units.append(entry | {"images": [[str(ids[i]), round(float(p), 4)] for i, p in pairs]})
    return ("[\n" + ",\n".join(json.dumps(unit) for unit in units) + "\n]\n").encode()


def remarks(images: int, bins: int) -> list[str]:
    """What a reader of the information must know: plug-in estimates of few images are too large."""
    bias = (bins - 1) ** 2 / (2 * images * np.log(2))
    return [f"{images} images for {bins} x {bins} cells: information is up to {bias:.2g} bits high"] * bool(bias > 0.01)
