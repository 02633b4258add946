"""Pictures that tasks leave beside their records: graphs by matplotlib and sheets of images, as PNG files in memory.

matplotlib is loaded only when something is drawn; names are data and are drawn as plain text.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a class may be called $x$
}
TILE, GAP, BETWEEN, LINE, MARGIN = 72, 4, 20, 16, 14  # pixels
INK, PALE = (40, 40, 40), (228, 228, 228)


def graph(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """PNG of what `draw` puts on a matplotlib figure of this size in inches; equal drawings give equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        sink = io.BytesIO()
        figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def printable(text: object, most: int = 40) -> str:
    """One printable line of at most so many characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= most else line[: most - 1] + "…"


@dataclass(frozen=True)
class Strip:
    """A row of a sheet: what it shows, and one list of images for each column of the sheet."""

    label: str
    groups: Sequence[Sequence[Image.Image]]


def sheet(title: str, columns: Sequence[str], strips: Sequence[Strip], shown: int) -> bytes:
    """PNG of rows of images, `shown` places for each column of the sheet; a place without an image stays pale."""
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    left = MARGIN + 10 + max(int(small.getlength(line)) for s in strips for line in s.label.split("\n"))
    group = shown * (TILE + GAP) - GAP
    widths = left + len(columns) * (group + BETWEEN) - BETWEEN + MARGIN, 2 * MARGIN + int(font.getlength(title))
    top = MARGIN + 2 * LINE + 10
    canvas = Image.new("RGB", (max(widths), top + len(strips) * (TILE + GAP) + MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=font)
    for i, name in enumerate(columns):
        pen.text((left + i * (group + BETWEEN), MARGIN + LINE + 4), name, fill=INK, font=small)
    for row, strip in enumerate(strips):
        y = top + row * (TILE + GAP)
        height = LINE * len(strip.label.split("\n"))
        pen.multiline_text((MARGIN, y + (TILE - height) // 2), strip.label, fill=INK, font=small)
        for i, images in enumerate(strip.groups):
            for j in range(shown):
                corner = (left + i * (group + BETWEEN) + j * (TILE + GAP), y)
                if j < len(images):
                    canvas.paste(tile(images[j]), corner)
                else:
                    pen.rectangle((*corner, corner[0] + TILE - 1, y + TILE - 1), outline=PALE)
    sink = io.BytesIO()
    canvas.save(sink, format="PNG")
    return sink.getvalue()


def tile(image: Image.Image) -> Image.Image:
    """The central square of an image at the size of a place, in 32 shades a colour: half the bytes, and hardly seen."""
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, upper, left + side, upper + side)).resize((TILE, TILE), Image.Resampling.LANCZOS)
    return square.point([v // 8 * 8 + v // 32 for v in range(256)] * 3)


def safe_cell(text: object) -> str:
    """A name for a CSV file that no spreadsheet takes for a formula."""
    line = printable(text, 200)
    return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@", "|", "%")) else line


# ---- graphs of binary codes


def draw_entropy(by_bit: np.ndarray, by_block: np.ndarray, block: int) -> bytes:
    """PNG: entropy of each bit (b,) and of each block of bits (m,), with their means and their largest value."""

    def draw(figure: Any) -> None:
        parts = [("bit", by_bit, 1)] + ([(f"block of {block} bits", by_block, block)] if len(by_block) else [])
        for axes, (name, values, most) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
            axes.bar(np.arange(len(values)), values, width=1.0 if len(values) > 60 else 0.8, color="C0", alpha=0.75)
            axes.axhline(most, color="0.5", linewidth=0.8, linestyle=":")
            axes.axhline(values.mean(), color="C1", linewidth=1.4, label=f"mean {values.mean():.3f}")
            axes.set(title=f"Entropy of each {name}", xlabel=name, ylabel="bits", ylim=(0, 1.12 * most))
            axes.set_xlim(-0.7, len(values) - 0.3)
            axes.legend(frameon=False, loc="upper right", ncols=2)

    return graph(draw, 8.4, 2.9)


def draw_correlation(correlation: np.ndarray, mean: float, images: int) -> bytes:
    """PNG: correlations of all pairs of bits (b, b), and how they are distributed; `mean` is that of |r|."""
    between = correlation[np.triu_indices(len(correlation), 1)]
    chance = (2 / (np.pi * images)) ** 0.5  # mean |r| of independent bits: r is normal with deviation n^-1/2

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        shown = correlation - np.diag(np.diag(correlation))
        most = max(0.05, float(np.abs(shown).max()))
        image = left.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        left.set(title="Correlation of bits (without the diagonal)", xlabel="bit", ylabel="bit")
        figure.colorbar(image, ax=left, shrink=0.85)
        right.hist(between, bins=np.linspace(-most, most, 61), color="C0", alpha=0.75)
        right.set(title=f"mean |r| {mean:.3f}; of independent bits {chance:.3f}", xlabel="r", ylabel="pairs of bits")

    return graph(draw, 8.4, 3.6)


def draw_tsne(places: np.ndarray, labels: np.ndarray, names: Mapping[int, str], trusted: float) -> bytes:
    """PNG: the three 2-D projections of points (n, 3), coloured by class; -1 is no class."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 3)
        for axes, (i, j) in zip(panels, ((0, 1), (0, 2), (1, 2)), strict=True):
            for colour, (label, name) in enumerate(names.items() or [(-1, "images")]):
                found = places[labels == label]
                axes.scatter(
                    found[:, i], found[:, j], s=max(3, 17 - len(places) / 300), color=f"C{colour % 10}",
                    marker="o^sD"[colour // 10 % 4], alpha=0.75, linewidths=0, label=printable(name, 22),
                )  # fmt: skip
            axes.set(xlabel=f"t-SNE {i + 1}", ylabel=f"t-SNE {j + 1}", xticks=[], yticks=[])
            axes.set_aspect("equal", "datalim")
        known = f", trustworthiness {trusted:.2f}" if np.isfinite(trusted) else ""
        figure.suptitle(f"Messages of {len(places):,} images, t-SNE of Hamming distances in three dimensions{known}")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, markerscale=1.6
        )

    return graph(draw, 10.5, 4.2)


# ---- graphs of discrete variables


def draw_joint(joint: np.ndarray, bins: int, information: np.ndarray) -> bytes:
    """PNG: joint probabilities of units (D, D), and mutual information of all pairs of variables (S, S) in bits."""
    from matplotlib.colors import LogNorm

    most, units = max(float(joint.max()), 1e-30), len(joint)

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        # Two independent, evenly used variables have bins^-2 in every cell; a decade less is as good as nothing.
        least = min(0.1 / bins**2, most / 10)
        image = left.imshow(np.maximum(joint, least), norm=LogNorm(least, most), cmap="magma", interpolation="nearest")
        for edge in range(bins, units, bins) if units // bins <= 40 else ():
            left.axhline(edge - 0.5, color="white", linewidth=0.3, alpha=0.5)
            left.axvline(edge - 0.5, color="white", linewidth=0.3, alpha=0.5)
        every = max(1, units // bins // 8)
        ticks = np.arange(0, units // bins, every)
        left.set(xticks=ticks * bins + bins / 2 - 0.5, xticklabels=ticks, xlabel="variable", ylabel="variable")
        left.set(yticks=ticks * bins + bins / 2 - 0.5, yticklabels=ticks)
        shown = f" ({units // bins} of {len(information)} variables)" if units // bins < len(information) else ""
        left.set_title(f"Joint probability of units{shown}")
        figure.colorbar(image, ax=left, shrink=0.85, format="{x:g}")
        image = right.imshow(information, cmap="viridis", vmin=0, interpolation="nearest")
        right.set(title="Mutual information of variables (bits)", xlabel="variable", ylabel="variable")
        figure.colorbar(image, ax=right, shrink=0.85)

    return graph(draw, 10.5, 4.4)
