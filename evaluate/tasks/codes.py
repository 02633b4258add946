"""The binary language: what the bits of a channel say (BITS, arXiv 2602.09764, section 5.5, Figures 2, 3 and 8 to 10).

Entropies say how much of the channel is used, correlations how much of it twice; t-SNE shows whether messages form
clusters; sheets of images show what single bits stand for.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.features import Frozen
from evaluate.metrics import bit_correlation, bit_entropy, block_entropy, trailing_entropy
from evaluate.metrics.class_bits import ClassBits, class_bits
from evaluate.metrics.surprisal import bit_surprisal, block_surprisal
from evaluate.metrics.tsne import FEWEST, hamming_distances, hamming_tsne, trustworthiness
from evaluate.pictures import Strip, draw_correlation, draw_entropy, draw_tsne, printable, safe_cell, sheet
from evaluate.tasks.base import (
    Result,
    Score,
    Subject,
    Task,
    Unavailable,
    binary_logits,
    centre_view_protocol,
    mean_score,
)

SHOWN = 6  # images of a sheet for each value of the bit
NEIGHBOURS = 10
BALANCED = 0.1  # a bit takes both values in a class when the rarer one has this share of it


class Codes(Task):
    """Entropies and correlations of the bits of a message, t-SNE of messages, and images by value of single bits.

    block: bits of which a joint entropy is taken. t-SNE and sheets show `classes` classes at most, evenly spaced over
    the list of those that occur; t-SNE takes `tsne_images` images of these at most, drawn with `seed`. Sheets are
    drawn of the `sheets` bits that are most shared across classes (see `shared_bits.csv`), or of those in `bits`.
    An interval is that of the mean surprisal of an image: it tells of the spread of an entropy, not of its bias.
    """

    name = "codes"

    def __init__(
        self,
        split: str = "test",
        block: int = 8,
        classes: int = 10,
        tsne_images: int = 3925,
        perplexity: float = 30,
        iterations: int = 1000,
        sheets: int = 3,
        bits: Sequence[int] = (),
        seed: int = 0,
    ):
        if min(block, classes, perplexity) <= 0 or min(tsne_images, sheets) < 0 or iterations < 250:
            raise ValueError(
                f"block={block}, classes={classes} and perplexity={perplexity} must be positive, iterations="
                f"{iterations} at least 250; tsne_images={tsne_images} or sheets={sheets} of 0 leave these out"
            )
        self.split, self.block, self.classes, self.seed = split, block, classes, seed
        self.tsne_images, self.perplexity, self.iterations = tsne_images, perplexity, iterations
        self.sheets, self.bits = sheets, list(bits)

    @property
    def splits(self) -> tuple[str, ...]:
        """The one that is looked at."""
        return (self.split,)

    def main(self, subject: Subject) -> str:
        """Entropy of a bit, mean over bits."""
        return "bit_entropy"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """View, bits, blocks, and the settings of t-SNE."""
        shared = centre_view_protocol(subject, "bit = logit of the projection head > 0")
        tsne: dict[str, Any] = {
            "images": self.tsne_images,
            "perplexity": self.perplexity,
            "iterations": self.iterations,
        }
        tsne |= {"dimensions": 3, "start": "random", "neighbours": NEIGHBOURS, "classes": self.classes}
        return shared | {"split": self.split, "block": self.block, "tsne": tsne, "seed": self.seed}

    def check(self, subject: Subject) -> None:
        """Needs a binary channel."""
        if subject.head is None:
            raise Unavailable("the checkpoint has no binary channel", "evaluate a run of a BITS objective")

    def run(self, subject: Subject) -> Result:
        """Describe the messages of a split."""
        features = subject.features(self.split)
        logits = binary_logits(subject, features).numpy()
        codes = Messages.of(features, logits, self.classes)
        scores, outcomes, notes = self.entropies(codes)
        files = {"entropy.png": draw_entropy(outcomes["entropy_by_bit"], outcomes["entropy_by_block"], self.block)}
        files["correlation.png"] = draw_correlation(
            outcomes["correlation"], scores["correlation"].value, len(codes.bits)
        )
        shared = None if codes.labels is None else class_bits(codes.bits, codes.labels)
        if shared is not None:
            files["shared_bits.csv"] = listing(shared, codes.names)
        score, places, picture = self.embed(codes, notes)
        for bit in self.drawn_bits(codes, shared):
            files[f"bit{bit:03d}.png"] = bit_sheet(codes, bit)
        return Result(scores | score, outcomes | places, {"images": features.skipped}, notes, files | picture)

    def entropies(self, codes: Messages) -> tuple[dict[str, Score], dict[str, np.ndarray], list[str]]:
        """Scores of the channel as a whole, their outcomes, and notes."""
        bits, width = codes.bits, codes.bits.shape[1]
        outcomes = {"sample_id": codes.features.ids, "bit_entropy": bit_surprisal(bits)}
        outcomes |= {"entropy_by_bit": bit_entropy(bits), "entropy_by_block": np.empty(0)}
        if width >= self.block:
            outcomes |= {"block_entropy": block_surprisal(bits, self.block)}
            outcomes |= {"entropy_by_block": block_entropy(bits, self.block)}
        means = [name for name in ("bit_entropy", "block_entropy") if name in outcomes]
        scores = {str(name): in_bits(mean_score(outcomes[name], "image")) for name in means}
        if width % self.block:
            rest = trailing_entropy(bits, self.block)
            scores["trailing_entropy"] = Score(rest, None, None, len(bits), scale="bits")
        outcomes["correlation"] = bit_correlation(bits).astype(np.float32)
        varying = outcomes["entropy_by_bit"] > 0
        between = np.abs(outcomes["correlation"][np.ix_(varying, varying)])[np.triu_indices(varying.sum(), 1)]
        mean = float(between.mean()) if between.size else float("nan")
        scores["correlation"] = Score(mean, None, None, between.size, "pair of bits")
        dead = width - int(varying.sum())
        return scores, outcomes, [f"{dead} of {width} bits never change"] if dead else []

    def embed(
        self, codes: Messages, notes: list[str]
    ) -> tuple[dict[str, Score], dict[str, np.ndarray], dict[str, bytes]]:
        """t-SNE: its trustworthiness, its coordinates, and its picture."""
        rows = (
            np.flatnonzero(np.isin(codes.label, codes.chosen))
            if codes.labels is not None
            else np.arange(len(codes.bits))
        )
        rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[: self.tsne_images])
        if len(rows) < FEWEST:
            notes.append(f"no t-SNE: {len(rows)} images, at least {FEWEST} are needed")
            return {}, {}, {}
        distances = hamming_distances(codes.bits[rows])
        settings = {"perplexity": self.perplexity, "iterations": self.iterations}
        found = hamming_tsne(distances, seed=self.seed, **settings)  # type: ignore[arg-type]
        value = trustworthiness(distances, found, NEIGHBOURS)
        outcomes = {"tsne": found, "tsne_id": codes.features.ids[rows], "tsne_label": codes.label[rows]}
        names = {int(c): codes.name(c) for c in codes.chosen}
        picture = {"tsne.png": draw_tsne(found, codes.label[rows], names, value)}
        return {"tsne_trustworthiness": Score(value, None, None, len(rows))}, outcomes, picture

    def drawn_bits(self, codes: Messages, shared: ClassBits | None) -> list[int]:
        """The bits of which sheets are drawn; raises ValueError for one that the message does not have."""
        width = codes.bits.shape[1]
        for bit in self.bits:
            if not 0 <= bit < width:
                raise ValueError(f"bits={self.bits}: {bit} is outside 0..{width - 1}, the bits of the message")
        value = bit_entropy(codes.bits) if shared is None else shared.entropy_within
        return self.bits or np.argsort(-value, kind="stable")[: self.sheets].tolist()


def in_bits(score: Score) -> Score:
    """The same numbers as a count of bits."""
    return Score(score.value, score.low, score.high, score.n, score.unit, "bits")


@dataclass(frozen=True)
class Messages:
    """Codes (n, b) bool and logits (n, b) of a split, with its classes.

    labels: as the dataset has them, or None; label (n,): the class that a picture shows (the first of several, -1
    without one); chosen: the classes that pictures show.
    """

    features: Frozen
    logits: np.ndarray
    bits: np.ndarray
    labels: np.ndarray | None
    label: np.ndarray
    chosen: np.ndarray
    names: Sequence[str]

    @classmethod
    def of(cls, features: Frozen, logits: np.ndarray, classes: int) -> Messages:
        """The messages of stored features; pictures show `classes` classes, evenly spaced over those that occur."""
        labels = None if features.images.labels is None else features.labels
        label = np.full(len(features), -1) if labels is None else labels
        if label.ndim == 2:
            label = np.where(label.any(axis=1), label.argmax(axis=1), -1)
        found = np.unique(label[label >= 0])
        chosen = found[np.linspace(0, len(found) - 1, min(classes, len(found))).round().astype(int)]
        return cls(features, logits, logits > 0, labels, label, chosen, features.images.classes)

    def name(self, index: int) -> str:
        """Name of a class, its number where it has none."""
        return str(self.names[index]) if index < len(self.names) else str(index)


def bit_sheet(codes: Messages, bit: int) -> bytes:
    """PNG of images with bit 0 and bit 1, a row for each class, the most confident (largest |logit|) first."""
    rows = [(codes.name(c), codes.label == c) for c in codes.chosen] or [("all images", np.ones(len(codes.bits), bool))]
    confidence, ones = np.abs(codes.logits[:, bit]), codes.bits[:, bit]
    strips = []
    for name, member in rows:
        groups = []
        for value in (False, True):
            found = np.flatnonzero(member & (ones == value))
            best = found[np.argsort(-confidence[found], kind="stable")][:SHOWN]
            groups.append([codes.features.images.image(codes.features.rows[i]) for i in best])
        strips.append(Strip(f"{printable(name, 18)}\n{ones[member].mean():.0%} ones", groups))
    title = f"Bit {bit}: {ones.mean():.0%} ones; the most confident images first"
    return sheet(title, [f"bit {bit} = 0", f"bit {bit} = 1"], strips, SHOWN)


def listing(shared: ClassBits, names: Sequence[str]) -> bytes:
    """CSV with a line for each bit, those that are most shared across classes first.

    A bit is shared when it says something of an image that its class does not: the measure is its entropy given the
    class. `information` is what it says of the class, both in bits. `classes_with_both` counts the classes in which
    the rarer value has a share of a tenth or more.
    """
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    head = ["bit", "rate_of_ones", "entropy", "entropy_within_classes", "information", "classes_with_both", "classes"]
    writer.writerow([*head, "lowest_rate", "lowest_class", "highest_rate", "highest_class"])
    rates, entropy, within, information = shared.rates, shared.entropy, shared.entropy_within, shared.information
    rarer = np.minimum(rates, 1 - rates)
    label = [safe_cell(names[c] if c < len(names) else c) for c in shared.classes]
    for bit in np.argsort(-within, kind="stable"):
        low, high = int(rates[:, bit].argmin()), int(rates[:, bit].argmax())
        numbers = [f"{v[bit]:.4f}" for v in (shared.rate, entropy, within, information)]
        both = int((rarer[:, bit] >= BALANCED).sum())
        ends = [f"{rates[low, bit]:.4f}", label[low], f"{rates[high, bit]:.4f}", label[high]]
        writer.writerow([bit, *numbers, both, len(shared.classes), *ends])
    return sink.getvalue().encode()
