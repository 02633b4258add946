"""Curves of a run: a small panel for every figure of its log.csv."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from pretrain.checkpoint import atomic_file

#: columns that are no figure of their own
AXES = ("step", "epoch", "images", "seconds")


def read_curves(log: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Images seen and value of every figure of a log.csv, in its order; what is no finite number is left out."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with open(log, newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name not in AXES and text and math.isfinite(value := float(text)):
                    xs, ys = curves.setdefault(name, ([], []))
                    xs.append(float(row["images"]))
                    ys.append(value)
    return curves


def draw_curves(log: Path, title: str) -> bytes:
    """The curves of a log.csv as PNG, the same bytes for the same log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed once a run
    from matplotlib.figure import Figure

    curves = read_curves(log)
    columns = 4
    rows = max(1, math.ceil(len(curves) / columns))
    figure = Figure(figsize=(3 * columns, 2.1 * rows + 0.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for i, (name, (xs, ys)) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(rows, columns, i)
        axes.plot(xs, ys, linewidth=1, marker="." if len(xs) < 30 else "")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{title}, by images seen", fontsize=10, parse_math=False)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def write_curves(directory: Path, title: str) -> Path:
    """Draw RUN/log.csv as RUN/curves.png."""
    path = directory / "curves.png"
    picture = draw_curves(directory / "log.csv", title)
    with atomic_file(path) as file:
        file.write(picture)
    return path
