"""A sheet of the samples on which checkpoints differ most: one PNG, the images with both outcomes below them.

Sample ids are the relative paths of images, which the reader of the dataset (configs/data) opens, or SEQUENCE/OBJECT of
a video; no torch is needed. What is not at hand (the dataset, an image, or a task whose samples are no images) is drawn
as its id alone.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from evaluate.leaderboard.compare import Comparison, most_different, place
from evaluate.leaderboard.escape import terminal
from evaluate.leaderboard.grid import title
from evaluate.leaderboard.samples import Sample
from evaluate.storage import write_whole
from pretrain import datasets

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SIDE, GAP, LINE, SHOWN = 112, 10, 15, 8  # pixels; images in a row
MARGIN = 16


def draw(comparisons: Sequence[Comparison], path: Path, data_root: Path, configs: Path = CONFIGS) -> str:
    """Write the sheet to a PNG file; returns a line that says what is on it."""
    strips = [(_heading(c, word), c, found) for c in comparisons for word, found in most_different(c, SHOWN)]
    if not strips:
        return "no samples to draw: nothing differs, or no outcomes were kept"
    names = dict.fromkeys(c.other.dataset for _, c, _ in strips)
    images = {name: open_images(name, data_root, configs) for name in names}
    height = 2 * LINE + SIDE + 2 * LINE + GAP
    canvas = Image.new("RGB", (2 * MARGIN + SHOWN * (SIDE + GAP), 2 * MARGIN + height * len(strips)), "white")
    shown = 0
    for row, (heading, c, found) in enumerate(strips):
        top = MARGIN + row * height
        ImageDraw.Draw(canvas).text((MARGIN, top), heading, fill="black", font=_font(12))
        for i, sample in enumerate(found):
            shown += _tile(canvas, (MARGIN + i * (SIDE + GAP), top + 2 * LINE), sample, images[c.other.dataset])
    drawn = io.BytesIO()
    canvas.save(drawn, format="PNG")
    write_whole(path, drawn.getvalue())
    absent = sorted(name for name, found_images in images.items() if not found_images)
    note = f"; no images of {', '.join(map(terminal, absent))} below {data_root}" if absent else ""
    return f"{path}: {shown} images in {len(strips)} rows{note}"


def _heading(c: Comparison, word: str) -> str:
    a, b = title(c.reference.checkpoint), title(c.other.checkpoint)
    return terminal(f"{place(c.other)}, {word} (outcome of {a} to that of {b})")[:140]


def _tile(canvas: Image.Image, corner: tuple[int, int], sample: Sample, images: dict[str, Any]) -> bool:
    """One image with its id and both outcomes; False where there is no image."""
    x, y = corner
    picture = _picture(images, sample.id)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((x, y, x + SIDE, y + SIDE), outline="lightgrey")
    if picture is not None:
        picture.thumbnail((SIDE, SIDE))
        enlarged = picture.resize((SIDE, SIDE * picture.height // picture.width)) if picture.width < SIDE else picture
        enlarged.thumbnail((SIDE, SIDE))
        canvas.paste(enlarged, (x + (SIDE - enlarged.width) // 2, y + (SIDE - enlarged.height) // 2))
    pen.text((x, y + SIDE + 2), terminal(sample.id)[-20:], fill="black", font=_font(10))
    pen.text((x, y + SIDE + 2 + LINE), f"{sample.a:.3g} to {sample.b:.3g}", fill="black", font=_font(10))
    return picture is not None


def _picture(images: dict[str, Any], name: str) -> Image.Image | None:
    """The image of this name, or for SEQUENCE/OBJECT of a video its first frame with a box around the object."""
    sequence, _, number = name.rpartition("/")
    try:
        if name in images:
            data, index = images[name]
            return data.image(index)
        if f"{sequence}/" not in images or not number.isdigit():
            return None
        data, index = images[f"{sequence}/"]
        video = data.videos[index]
        frame = Image.fromarray(data.frame(video, 0))
        rows, columns = np.nonzero(data.annotation(video, 0) == int(number))
    except datasets.ImageError:
        return None
    if len(rows):
        box = (columns.min(), rows.min(), columns.max(), rows.max())
        ImageDraw.Draw(frame).rectangle(box, outline="red", width=max(1, frame.width // SIDE))
    return frame


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def open_images(dataset: str, data_root: Path, configs: Path = CONFIGS) -> dict[str, tuple[Any, int]]:
    """Relative path -> (image set, position) of every image of a dataset; empty where it is unknown or not there."""
    file = configs / "data" / f"{Path(dataset).name}.yaml"
    if not file.is_file():
        return {}
    found: dict[str, tuple[Any, int]] = {}
    for reader in yaml.safe_load(file.read_text("utf-8"))["splits"].values():
        settings = {key: _resolved(value, data_root) for key, value in reader.items() if key != "_target_"}
        module, _, name = reader["_target_"].rpartition(".")
        if not f"{module}.".startswith(f"{datasets.__name__}."):
            continue
        try:
            images = getattr(importlib.import_module(module), name)(**settings)
        except (FileNotFoundError, datasets.ImageError):
            continue
        found |= {path: (images, i) for i, path in enumerate(images.paths)}
        found |= {f"{video.name}/": (images, i) for i, video in enumerate(getattr(images, "videos", ()))}
    return found


def _resolved(value: Any, data_root: Path) -> Any:
    return value.replace("${data_root}", str(data_root)) if isinstance(value, str) else value
