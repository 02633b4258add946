"""The accuracy of probes by epoch, as a table and as a picture (BITS, arXiv 2602.09764, Figures 5 and 6)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluate.pictures import graph, printable


def probing_files(
    title: str, epochs: np.ndarray, top1: np.ndarray, top5: np.ndarray, heads: Sequence[str], best: int
) -> dict[str, bytes]:
    """`curve.csv` and `curve.png` of accuracies (epochs, heads) in [0, 1]; NaN where a head diverged."""
    return {"curve.csv": as_table(epochs, top1, top5, heads), "curve.png": draw(title, epochs, top1, top5, heads, best)}


def as_table(epochs: np.ndarray, top1: np.ndarray, top5: np.ndarray, heads: Sequence[str]) -> bytes:
    """One line a head and epoch: epoch, head, top1, top5; empty where a head diverged."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(["epoch", "head", "top1", "top5"])
    for column, head in enumerate(heads):
        for row, epoch in enumerate(epochs):
            values = (top1[row, column], top5[row, column])
            writer.writerow([int(epoch), head, *("" if np.isnan(value) else f"{value:.6f}" for value in values)])
    return sink.getvalue().encode()


def draw(title: str, epochs: np.ndarray, top1: np.ndarray, top5: np.ndarray, heads: Sequence[str], best: int) -> bytes:
    """A PNG: top-1 and top-5 of the best head by epoch in percent, top-1 of all others in grey."""

    def fill(figure: Any) -> None:
        axes = figure.add_subplot()
        line = {"marker": "o" if len(epochs) < 30 else None, "markersize": 3}
        others = [head for head in range(len(heads)) if head != best]
        axes.plot(epochs, 100 * top1[:, others], color="0.8", linewidth=0.7)
        axes.plot(epochs, 100 * top5[:, best], "--", color="C1", label="top-5", **line)
        axes.plot(epochs, 100 * top1[:, best], color="C0", label=f"top-1: {heads[best]}", **line)
        axes.set(xlabel="epoch", ylabel="accuracy (%)", title=printable(title, 80))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # clear of the curves

    return graph(fill, 5, 3.4)
