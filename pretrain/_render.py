"""The images, masks and sequences of the embedded world, each drawn from (seed, index, split) alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretrain._shapes import (
    TEXELS,
    TURNS,
    Sprite,
    Stream,
    blend,
    colour_of,
    direction,
    illuminate,
    locate,
    paint,
    pixel_noise,
    to_bytes,
    value_noise,
)

VERSION = 1  # to be raised with every change of a pixel: it enters the random numbers and the manifest
SPLITS = ("train", "val")
CLASSES = ("arrow", "crescent", "cross", "disc", "ell", "heart", "ring", "square", "star", "triangle")
FINE_CLASSES = tuple(f"{form}{n}" for form in ("square", "vee") for n in (1, 2, 3, 4))
PART_NUMBERS = {"shapes": 0, "scenes": 1, "videos": 2, "style": 3, "fine": 4}  # part of the random key: never renumber
SIDE, SCENE_SIDE, FRAME, FRAMES = 64, 96, (96, 128), 20


def _stream(part: str, seed: int, index: int, split: str) -> Stream:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist in ShapeWorld; use one of {', '.join(SPLITS)}")
    return Stream(VERSION, seed, PART_NUMBERS[part], SPLITS.index(split), index)


def _background(stream: Stream, height: int, width: int) -> tuple[np.ndarray, float]:
    """A textured canvas and its luminance."""
    luma = stream.uniform(0.4, 0.6)
    texture = value_noise(stream, height, width, 8) * 0.04 + value_noise(stream, height, width, 20) * 0.04
    return texture[:, :, None] + np.array(colour_of(stream, luma, 0.25), np.float32), luma


def _dress(stream: Stream, sprite: Sprite, luma: float) -> Sprite:
    """Give a sprite colour, polarity, texture and shading against a background of this luminance."""
    contrast = stream.uniform(0.35, 0.5)
    light = stream.below(2) == 1
    sprite.colour = colour_of(stream, luma + contrast if light else luma - contrast, 0.3)
    sprite.texture = (value_noise(stream, TEXELS, TEXELS, 10) * 0.07).ravel()
    cos, sin = direction(stream.below(TURNS))
    slope = stream.uniform(0.0, 0.15)
    sprite.shading = (slope * cos, slope * sin)
    return sprite


def _grid(stream: Stream, shape: str, low: float, high: float) -> list[Sprite]:
    """3 or 4 sprites of one shape in a jittered 2 x 2 grid; each takes `low` to `high` of the area of its cell."""
    cell, sprites = SIDE / 2, []
    for place in stream.sample(4, 3 + stream.below(2)):
        x = (place % 2 + 0.5) * cell + stream.uniform(-3.0, 3.0)
        y = (place // 2 + 0.5) * cell + stream.uniform(-3.0, 3.0)
        side = float(np.sqrt(stream.uniform(low, high))) * cell
        sprites.append(Sprite(shape, x, y, side, stream.below(TURNS)))
    return sprites


def _finish(stream: Stream, canvas: np.ndarray, noise: float) -> np.ndarray:
    illuminate(canvas, stream, 0.2)
    canvas += pixel_noise(stream, canvas.shape, noise)
    return to_bytes(canvas)


def _filled(stream: Stream, shape: str, low: float, high: float) -> np.ndarray:
    canvas, luma = _background(stream, SIDE, SIDE)
    for sprite in _grid(stream, shape, low, high):
        paint(canvas, _dress(stream, sprite, luma))
    return _finish(stream, canvas, 0.03)


def render_shapes(seed: int, index: int, split: str) -> tuple[np.ndarray, int]:
    """One image of `shapes`, uint8 (64, 64, 3), and its index into CLASSES; an unknown split is a ValueError."""
    label = index % len(CLASSES)
    return _filled(_stream("shapes", seed, index, split), CLASSES[label], 0.22, 0.36), label


def render_fine(seed: int, index: int, split: str) -> tuple[np.ndarray, int]:
    """One image of `fine`, uint8 (64, 64, 3), and its index into FINE_CLASSES; an unknown split is a ValueError."""
    label = index % len(FINE_CLASSES)
    return _filled(_stream("fine", seed, index, split), FINE_CLASSES[label], 0.34, 0.44), label


def _hatch(stream: Stream, canvas: np.ndarray, depth: float) -> None:
    """Darken along parallel lines of random direction and period, in place."""
    height, width = canvas.shape[:2]
    cos, sin = direction(stream.below(TURNS))
    period = stream.uniform(4.0, 8.0)
    phase = (np.arange(height)[:, None] * (sin / period) + np.arange(width) * (cos / period)) % 1.0
    line = np.clip(1.0 - np.abs(phase - 0.5) * period, 0, 1).astype(np.float32)  # one pixel wide on either side
    canvas -= line[:, :, None] * depth


def render_style(seed: int, index: int, split: str) -> tuple[np.ndarray, int]:
    """One image of `style`, uint8 (64, 64, 3), and its index into CLASSES; an unknown split is a ValueError."""
    stream, label = _stream("style", seed, index, split), index % len(CLASSES)
    paper = np.array(colour_of(stream, stream.uniform(0.72, 0.92), 0.1), np.float32)
    canvas = value_noise(stream, SIDE, SIDE, 16)[:, :, None] * 0.02 + paper
    _hatch(stream, canvas, stream.uniform(0.1, 0.25))
    for sprite in _grid(stream, CLASSES[label], 0.22, 0.36):
        ink = np.array(colour_of(stream, stream.uniform(0.1, 0.35), 0.35), np.float32)
        window, distance, _ = locate(sprite, SIDE, SIDE)
        blend(
            canvas, window, np.clip(distance + 0.5, 0, 1) * stream.uniform(0.0, 1.0), paper
        )  # the hatching may show through
        half = stream.uniform(0.6, 1.3)
        blend(canvas, window, np.clip(half + 0.5 - np.abs(distance), 0, 1), ink)
    return _finish(stream, canvas, 0.015), label


def render_scene(seed: int, index: int, split: str) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image of `scenes`, uint8 (96, 96, 3), its labels (96, 96) with 0 background and 1 + class, and its objects.

    An object is (class, boolean mask (96, 96) of what occlusion leaves visible); at least 45 % of each remains.
    An unknown split is a ValueError.
    """
    stream = _stream("scenes", seed, index, split)
    canvas, luma = _background(stream, SCENE_SIDE, SCENE_SIDE)
    owner = np.zeros((SCENE_SIDE, SCENE_SIDE), np.uint8)  # 0 background, k the k-th object
    classes: list[int] = []
    areas: list[float] = []
    for label in stream.sample(len(CLASSES), 1 + stream.below(4)):
        side = stream.uniform(20.0, 36.0)
        for _ in range(12):
            x, y = (stream.uniform(12.0, SCENE_SIDE - 12.0) for _ in "xy")
            sprite = Sprite(CLASSES[label], x, y, side, stream.below(TURNS))
            trial = owner.copy()
            window, distance, _ = locate(sprite, SCENE_SIDE, SCENE_SIDE)
            trial[window][distance > 0] = len(areas) + 1
            wanted = [*areas, side * side]
            if all(np.count_nonzero(trial == k + 1) >= 0.45 * area for k, area in enumerate(wanted)):
                paint(canvas, _dress(stream, sprite, luma))
                owner, areas = trial, wanted
                classes.append(label)
                break
    names = np.array([0, *(c + 1 for c in classes)], np.uint8)
    objects = [(label, owner == k + 1) for k, label in enumerate(classes)]
    return _finish(stream, canvas, 0.03), names[owner], objects


def _reflect(position: float, low: float, high: float) -> float:
    """Fold a straight path into [low, high], as by walls that reflect."""
    span = high - low
    folded = (position - low) % (2 * span)
    return low + (folded if folded <= span else 2 * span - folded)


def _visible(sprites: Sequence[Sprite]) -> np.ndarray:
    owner = np.zeros(FRAME, np.uint8)
    for k, sprite in enumerate(sprites):
        window, distance, _ = locate(sprite, *FRAME)
        owner[window][distance > 0] = k + 1
    return owner


def _cast(stream: Stream) -> list[Sprite]:
    """1 to 3 sprites of different shapes, none hidden by more than a fifth."""
    count = 1 + stream.below(3)
    while True:
        sprites = [
            Sprite(
                CLASSES[label],
                stream.uniform(20.0, FRAME[1] - 20.0),
                stream.uniform(20.0, FRAME[0] - 20.0),
                stream.uniform(20.0, 30.0),
                stream.below(TURNS),
            )
            for label in stream.sample(len(CLASSES), count)
        ]
        owner = _visible(sprites)
        if all(np.count_nonzero(owner == k + 1) >= 0.8 * s.side * s.side for k, s in enumerate(sprites)):
            return sprites


def render_video(seed: int, index: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """One sequence of `videos`: frames uint8 (20, 96, 128, 3) and object labels uint8 (20, 96, 128), 0 background.

    The first frame shows every object; an unknown split is a ValueError.
    """
    stream = _stream("videos", seed, index, split)
    backdrop, luma = _background(stream, *FRAME)
    start = [_dress(stream, sprite, luma) for sprite in _cast(stream)]
    motion = [(stream.uniform(-4.0, 4.0), stream.uniform(-4.0, 4.0), stream.below(161) - 80) for _ in start]
    frames, masks = [], []
    for t in range(FRAMES):
        sprites = [
            Sprite(
                s.shape,
                _reflect(s.x + vx * t, 16.0, FRAME[1] - 16.0),
                _reflect(s.y + vy * t, 16.0, FRAME[0] - 16.0),
                *(s.side, s.turn + spin * t, s.colour, s.texture, s.shading),
            )
            for s, (vx, vy, spin) in zip(start, motion, strict=True)
        ]
        canvas = backdrop.copy()
        for sprite in sprites:
            paint(canvas, sprite)
        frames.append(to_bytes(canvas + pixel_noise(stream, canvas.shape, 0.02)))
        masks.append(_visible(sprites))
    return np.stack(frames), np.stack(masks)
