"""Geometry of the embedding: how many dimensions the features use (BITS, arXiv 2602.09764, Figure 1 and Table 2).

Nothing here says how good the features are for a purpose; the paper reads more dimensions as a richer representation,
and so does the ranking of the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluate.metrics import (
    class_alignment,
    effective_dimension,
    effective_rank,
    explained_variance,
    rank_me,
    spectrum,
    uniformity,
)
from evaluate.metrics.geometry import unit_float64
from evaluate.pictures import graph
from evaluate.tasks.base import Result, Score, Subject, Task, Unavailable, centre_view_protocol, mean_score

WIDEST = 16_384  # dimensions, where there are as many images; a covariance of more does not fit into memory


class Geometry(Task):
    """Spectrum of the covariance of the class token of the last block, effective dimensions, uniformity and alignment.

    normalise: L2-normalise features before the spectrum and RankMe (uniformity and alignment always do). Uniformity
    is over all pairs of `uniformity_images` images at most, drawn with `seed`. Alignment is over all pairs of images
    of one class, each image with equal weight: how far a class is spread, not two views of an image as in training.
    Effective dimensions and uniformity have no interval: a resampled set repeats images, which lowers them all.
    """

    name = "geometry"

    def __init__(self, split: str = "test", normalise: bool = False, uniformity_images: int = 10_000, seed: int = 0):
        if uniformity_images < 2:
            raise ValueError(f"uniformity_images={uniformity_images} must be at least 2")
        self.split, self.normalise, self.seed = split, normalise, seed
        self.uniformity_images = uniformity_images

    @property
    def splits(self) -> tuple[str, ...]:
        """The one that is looked at."""
        return (self.split,)

    def main(self, subject: Subject) -> str:
        """Effective dimension, the first column of the paper's table."""
        return "effective_dimension"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """View, feature, split, and what uniformity and alignment are over."""
        shared = centre_view_protocol(subject, "class token of the last block")
        used = min(self.uniformity_images, len(subject.data.split(self.split)))
        shared |= {"split": self.split, "normalise": self.normalise, "uniformity": {"t": 2, "images": used}}
        return shared | {"seed": self.seed, "alignment": {"alpha": 2, "pairs": "all of one class"}}

    def check(self, subject: Subject) -> None:
        """Needs two images, and a covariance that fits into memory."""
        images, dim = len(subject.data.split(self.split)), subject.backbone.dim
        if images < 2:
            raise Unavailable(f"the {self.split} split has {images} image, which has no covariance", "add images")
        if min(images, dim) > WIDEST:
            raise Unavailable(
                f"the covariance of {dim} dimensions does not fit into memory (limit {WIDEST})", "use fewer images"
            )

    def run(self, subject: Subject) -> Result:
        """Describe the cloud of features."""
        features = subject.features(self.split)
        rows = features.cls().numpy()
        used = unit_float64(rows) if self.normalise else rows
        values, cumulative = spectrum(used), explained_variance(used)
        chosen = np.random.default_rng(self.seed).permutation(len(rows))[: self.uniformity_images]
        sizes = {"effective_dimension": effective_dimension(used), "effective_rank": effective_rank(used)}
        sizes |= {"rank_me": rank_me(used)}
        scores = {name: Score(size, None, None, len(rows), scale="dimensions") for name, size in sizes.items()}
        scores["uniformity"] = Score(uniformity(rows[chosen]), None, None, len(chosen), scale="nats")
        outcomes = {"explained_variance": cumulative, "spectrum": values}
        notes = remarks(values, len(rows))
        labels = features.images.labels
        if labels is not None and labels.ndim == 1:
            outcomes |= {"sample_id": features.ids, "alignment": class_alignment(rows, features.labels)}
            found = mean_score(outcomes["alignment"], "image")
            scores["alignment"] = Score(found.value, found.low, found.high, found.n, scale="squared distance")
        else:
            why = "has no labels" if labels is None else "has several classes an image"
            notes.append(f"no alignment: {self.split} {why}")
        files = {"explained_variance.png": picture(values, cumulative, sizes)} if cumulative[-1] > 0 else {}
        files["spectrum.csv"] = listing(values, cumulative)
        return Result(scores, outcomes, {"images": features.skipped}, notes, files)


def remarks(values: np.ndarray, images: int) -> list[str]:
    """What a reader of the numbers must know of the spectrum (d,)."""
    if not values.any():
        return ["features are collapsed: all images have the same one"]
    if images <= len(values):
        return [f"{images} images of {len(values)} dimensions: at most {images - 1} of them can show variance"]
    return []


def listing(values: np.ndarray, cumulative: np.ndarray) -> bytes:
    """CSV with a line for each principal component."""
    shares = np.diff(cumulative, prepend=0.0)
    lines = zip(values, shares, cumulative, strict=True)
    text = [f"{i},{value:.6g},{share:.6g},{c:.6g}\n" for i, (value, share, c) in enumerate(lines, 1)]
    return ("component,eigenvalue,share,cumulative\n" + "".join(text)).encode()


def picture(values: np.ndarray, cumulative: np.ndarray, sizes: dict[str, float]) -> bytes:
    """Cumulative explained variance and the spectrum, with the effective dimensions marked."""
    index, shown = np.arange(1, len(values) + 1), values > 1e-9 * values[0]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(np.append(0, index), np.append(0, cumulative), linewidth=1.8)
        for level in (0.5, 0.9, 0.99):
            needed = int(np.searchsorted(cumulative, level)) + 1
            left.plot([0, needed, needed], [level, level, 0], color="0.6", linewidth=0.7, linestyle=":")
            left.annotate(f"{level:.0%}: {needed}", (needed, level), (4, -10), textcoords="offset points", fontsize=8)
        left.set(title="Cumulative explained variance", xlabel="principal components", ylim=(0, 1.02))
        left.set_xlim(0, float(index[shown][-1]))
        right.semilogy(index[shown], values[shown] / values.sum(), linewidth=1.8)
        marks = (("effective_dimension", "C1", "--"), ("effective_rank", "C2", "-."))
        for name, colour, style in marks:
            label = f"{name.replace('_', ' ')} {sizes[name]:.1f}"
            right.axvline(sizes[name], color=colour, linewidth=1.2, linestyle=style, label=label)
        right.set(title="Spectrum of the covariance", xlabel="principal component", ylabel="share of the variance")
        right.yaxis.set_major_formatter("{x:g}")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.grid(alpha=0.25)

    return graph(draw, 8.4, 3.2)
