"""Pictures of dense results: label maps over their images, sheets of them, and moving ones."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pretrain.shapeworld import davis_palette

VOID = 255
PALETTE = davis_palette()
#: of objects over an image, where the darker half of the usual palette is lost
VIVID = np.array(
    [(255, 70, 70), (70, 150, 255), (255, 210, 50), (90, 220, 110), (220, 100, 255), (255, 150, 40), (60, 220, 220)],
    np.uint8,
)
GAP, LINE, LETTER = 6, 14, 6  # pixels between tiles, of a caption's line and of a letter

Tile = tuple[np.ndarray, str]  # (H, W, 3) uint8, caption


def blend(image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """Image (H, W, 3) uint8 with labels (H, W) in colour over it, outlined in white; 0 and 255 stay clear."""
    out = image.copy()
    shown = (labels > 0) & (labels != VOID)
    out[shown] = ((1 - opacity) * image[shown] + opacity * VIVID[(labels[shown] - 1) % len(VIVID)]).astype(np.uint8)
    width = max(1, min(image.shape[:2]) // 200)
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    solid = np.where(shown, labels, 0).astype(np.uint8)
    out[shown & (cv2.erode(solid, kernel) != cv2.dilate(solid, kernel))] = 255
    return out


def colours(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) as colours (H, W, 3) uint8: the usual palette, but class 0 in dark grey and void in white."""
    palette = PALETTE.copy()
    palette[0], palette[VOID] = 64, 255
    return palette[labels.astype(np.uint8)]


def outline(image: np.ndarray, boxes: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Image with boxes (n, 4), as x, y, width, height in pixels, drawn on it."""
    out = np.array(image)
    width = max(1, min(image.shape[:2]) // 160)
    for x, y, w, h in np.asarray(boxes).reshape(-1, 4):
        cv2.rectangle(out, (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1), colour, width)
    return out


def named_boxes(image: np.ndarray, boxes: np.ndarray, names: Sequence[str], colour: tuple[int, int, int]) -> np.ndarray:
    """Image with boxes (n, 4) as in `outline`, and a name at the upper left corner of each."""
    canvas = Image.fromarray(outline(image, boxes, colour))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(8, min(image.shape[:2]) // 24))
    for (x, y, *_), name in zip(np.asarray(boxes).reshape(-1, 4), names, strict=True):
        place = max(0, int(x)), max(0, int(y))
        pen.rectangle(pen.textbbox(place, name, font=font), fill="black")
        pen.text(place, name, fill=colour, font=font)
    return np.asarray(canvas)


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """Image with its longer side at no more than `side` pixels; a small one is enlarged by a whole factor."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return np.repeat(np.repeat(image, int(scale), axis=0), int(scale), axis=1)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA)


def sheet(rows: Sequence[Sequence[Tile]], *, side: int = 200) -> bytes:
    """PNG of rows of tiles, each with its caption below it."""
    placed = [[(fitted(image, side), caption) for image, caption in row] for row in rows]
    heights = [max(image.shape[0] for image, _ in row) for row in placed]
    width = GAP + max(len(row) for row in placed) * (side + GAP)
    canvas = Image.new("RGB", (width, GAP + sum(heights) + len(rows) * (GAP + LINE)), "white")
    pen, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(10), GAP
    for row, height in zip(placed, heights, strict=True):
        for column, (image, caption) in enumerate(row):
            left = GAP + column * (side + GAP)
            canvas.paste(Image.fromarray(image), (left, top))
            pen.text((left, top + height + 1), caption[: side // LETTER], fill="black", font=font)
        top += height + LINE + GAP
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    return file.getvalue()


def moving(frames: Sequence[np.ndarray], *, milliseconds: int = 120) -> bytes:
    """Animated GIF of frames (H, W, 3) uint8 that repeats for ever."""
    pictures = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(
        file, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=False
    )
    return file.getvalue()


def stacked(pictures: Sequence[bytes]) -> bytes:
    """PNG of pictures, one below the other."""
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    canvas = Image.new("RGB", (max(p.width for p in opened), sum(p.height for p in opened)), "white")
    top = 0
    for picture in opened:
        canvas.paste(picture, (0, top))
        top += picture.height
    file = io.BytesIO()
    canvas.save(file, format="PNG")
    return file.getvalue()
