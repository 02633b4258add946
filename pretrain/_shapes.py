"""Shapes, random numbers and painting for the embedded world, bit-exact on every machine.

Only operations that IEEE 754 rounds exactly are used (+ - * / sqrt, comparisons, integers), element by element: sine,
exponential and float sums differ in the last bit between processors and library versions. Random numbers come from
splitmix64 (Steele, Lea, Flood 2014) itself and not from numpy's distributions, whose streams may change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

_MASK, _GAMMA = (1 << 64) - 1, 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
    return z ^ (z >> 31)


class Stream:
    """The splitmix64 sequence that belongs to a tuple of integers, such as (seed, part, split, index)."""

    def __init__(self, *words: int) -> None:
        self._state = 0
        for word in words:
            self._state = _mix((self._state + _GAMMA + _mix(word & _MASK)) & _MASK)

    def bits(self) -> int:
        """The next 64 bits."""
        self._state = (self._state + _GAMMA) & _MASK
        return _mix(self._state)

    def below(self, n: int) -> int:
        """An integer in 0 .. n-1."""
        return ((self.bits() >> 32) * n) >> 32

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def sample(self, n: int, k: int) -> list[int]:
        """k different integers of 0 .. n-1 in random order."""
        pool = list(range(n))
        return [pool.pop(self.below(len(pool))) for _ in range(k)]

    def bytes(self, count: int) -> np.ndarray:
        """`count` bytes, uint8; count a multiple of 8."""
        z = np.arange(1, count // 8 + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(self._state)
        self._state = (self._state + _GAMMA * (count // 8)) & _MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
        return (z ^ (z >> np.uint64(31))).astype("<u8").view(np.uint8)  # little-endian on big-endian machines too


TURNS = 3600  # angles are whole tenths of a degree


@cache
def _directions() -> list[tuple[float, float]]:
    """(cos, sin) of every angle, by repeated rotation through 0.1 degree: products and sums only."""
    cos, sin = 0.9999984769132877, 0.0017453283658983088
    out = [(1.0, 0.0)]
    for _ in range(TURNS - 1):
        x, y = out[-1]
        out.append((x * cos - y * sin, x * sin + y * cos))
    return out


def direction(turn: int) -> tuple[float, float]:
    """(cos, sin) of `turn` tenths of a degree."""
    return _directions()[turn % TURNS]


# Signed distances: positive inside, exact near the outline (which is all that coverage needs).

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(cx: float, cy: float, radius: float) -> Field:
    return lambda x, y: radius - np.sqrt((x - cx) * (x - cx) + (y - cy) * (y - cy))


def _polygon(*corners: tuple[float, float]) -> Field:
    def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest, inside = np.full(np.broadcast(x, y).shape, np.inf), np.zeros(np.broadcast(x, y).shape, bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            dx, dy = x - ax - along * ex, y - ay - along * ey
            nearest = np.minimum(nearest, dx * dx + dy * dy)
            if ey != 0.0:
                inside ^= ((y >= ay) != (y >= by)) & (x < ax + (y - ay) * (ex / ey))
        return np.where(inside, np.sqrt(nearest), -np.sqrt(nearest))

    return field


def _union(*fields: Field) -> Field:
    return lambda x, y: np.maximum.reduce([f(x, y) for f in fields])


def _minus(field: Field, *holes: Field) -> Field:
    return lambda x, y: np.minimum.reduce([field(x, y), *(-h(x, y) for h in holes)])


def _star() -> Field:
    spokes = [(direction(k * 360 - 900), 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
    return _polygon(*((c * r, s * r) for (c, s), r in spokes))


_NOTCHES = {  # of equal area within the unit disc, about
    "square": ((0.45, -0.2), (1.2, -0.2), (1.2, 0.2), (0.45, 0.2)),
    "vee": ((0.35, 0.0), (1.2, -0.445), (1.2, 0.445)),
}


def _notched(count: int, form: str) -> Field:
    """A disc with `count` evenly spaced notches in its rim, square or V-shaped."""
    holes = []
    for k in range(count):
        c, s = direction(k * TURNS // count)
        holes.append(_polygon(*((c * u - s * v, s * u + c * v) for u, v in _NOTCHES[form])))
    return _minus(_disc(0, 0, 1), *holes)


_FIELDS: dict[str, Field] = {
    "arrow": _polygon((0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)),
    "crescent": _minus(_disc(0.2, 0, 1), _disc(0.65, 0, 0.8)),
    "cross": _polygon(
        *((0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33), (0.33, 1)),
        *((-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33), (-0.33, -1)),
    ),
    "disc": _disc(0, 0, 1),
    "ell": _polygon((-0.7, -1), (-0.1, -1), (-0.1, 0.4), (0.7, 0.4), (0.7, 1), (-0.7, 1)),
    "heart": _union(
        _polygon((0, 1), (-1, 0), (0, -1), (1, 0)),
        *(_disc(0.5, -0.5, 0.7071067811865476), _disc(-0.5, -0.5, 0.7071067811865476)),
    ),
    "ring": _minus(_disc(0, 0, 1), _disc(0, 0, 0.55)),
    "square": _polygon((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "star": _star(),
    "triangle": _polygon((0, -1), (0.8660254037844386, 0.5), (-0.8660254037844386, 0.5)),
    **{f"{form}{n}": _notched(n, form) for form in ("square", "vee") for n in (1, 2, 3, 4)},
}

CELLS, REACH = 512, 1.1  # tables of 512 x 512 distances over [-1.1, 1.1]^2; unit: the side of the square of equal area
TEXELS = 64  # an object carries its texture as 64 x 64 values over the same square


@cache
def distance_table(name: str) -> np.ndarray:
    """Signed distance to the outline of a shape of area 1, positive inside, float32 (CELLS * CELLS,), row-major."""
    ticks = (np.arange(CELLS) * 2 + (1 - CELLS)) / CELLS  # cell centres over [-1, 1]
    wide, cell = 1.5, 3.0 / CELLS  # every raw outline lies within [-1.5, 1.5]^2
    cover = np.clip(_FIELDS[name](ticks * wide, ticks[:, None] * wide) / cell + 0.5, 0.0, 1.0)
    cells = int((cover * 4096).astype(np.int64).sum()) / 4096  # summed as integers: float sums depend on their order
    side = float(np.sqrt(cells * cell * cell))
    ticks *= REACH * side
    return (_FIELDS[name](ticks, ticks[:, None]) / side).astype(np.float32).ravel()


@cache
def _interpolation(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Left neighbour and weight of the right one for `size` pixels over `cells` lattice cells."""
    position = (np.arange(size) + 0.5) * (cells / size)
    left = position.astype(np.int64)
    return left, (position - left).astype(np.float32)


def value_noise(stream: Stream, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise in [-1, 1], float32 (H, W): bilinear between random values on a lattice of `cells` cells a side."""
    count = (cells + 1) * (cells + 1)
    values = stream.bytes(-(-count // 8) * 8)[:count].reshape(cells + 1, cells + 1)
    lattice = (values.astype(np.float32) - 127.5) / 127.5
    row, down = _interpolation(height, cells)
    column, right = _interpolation(width, cells)
    lines = lattice[row] + (lattice[row + 1] - lattice[row]) * down[:, None]
    return lines[:, column] + (lines[:, column + 1] - lines[:, column]) * right


def pixel_noise(stream: Stream, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Near-Gaussian noise, float32: the sum of four random bytes, centred and scaled; the size a multiple of 2."""
    b = stream.bytes(4 * int(np.prod(shape))).reshape(-1, 4).astype(np.int16)
    total = b[:, 0] + b[:, 1] + b[:, 2] + b[:, 3]
    return ((total - 510).astype(np.float32) * (std / 147.801)).reshape(shape)  # 147.801 = sqrt(4 (256^2 - 1) / 12)


LUMA = (0.299, 0.587, 0.114)


def colour_of(stream: Stream, luma: float, chroma: float) -> tuple[float, ...]:
    """A random RGB colour of exactly this luminance; it may leave [0, 1] and is clipped at the end."""
    tint = [stream.uniform(-chroma, chroma) for _ in range(3)]
    grey = luma - (tint[0] * LUMA[0] + tint[1] * LUMA[1] + tint[2] * LUMA[2])
    return tuple(t + grey for t in tint)


@dataclass
class Sprite:
    """One object: its centre and side (pixels; side = root of the area), rotation (tenths of a degree) and look."""

    shape: str
    x: float
    y: float
    side: float
    turn: int
    colour: tuple[float, ...] = (0.0, 0.0, 0.0)
    texture: np.ndarray | None = None  # (TEXELS * TEXELS,) added to the colour, fixed to the object
    shading: tuple[float, float] = (0.0, 0.0)  # brightness slope along x and y over one side


Window = tuple[slice, slice]


def locate(sprite: Sprite, height: int, width: int) -> tuple[Window, np.ndarray, np.ndarray]:
    """The image window the sprite can touch, the signed distance (pixels, float32) in it, and texel indices."""
    reach = sprite.side * REACH
    top, bottom = max(0, int(sprite.y - reach)), min(height, int(sprite.y + reach) + 2)
    left, right = max(0, int(sprite.x - reach)), min(width, int(sprite.x + reach) + 2)
    cos, sin = direction(sprite.turn)
    scale, middle = CELLS / (2 * REACH) / sprite.side, CELLS / 2
    dx = (np.arange(left, right) + (0.5 - sprite.x)) * scale
    dy = ((np.arange(top, bottom) + (0.5 - sprite.y)) * scale)[:, None]
    column = np.clip(dx * cos + (dy * sin + middle), 0, CELLS - 1).astype(np.int32)
    row = np.clip(dy * cos - (dx * sin - middle), 0, CELLS - 1).astype(np.int32)
    distance = distance_table(sprite.shape).take(row * CELLS + column) * sprite.side
    texel = (row // (CELLS // TEXELS)) * TEXELS + column // (CELLS // TEXELS)
    return (slice(top, bottom), slice(left, right)), distance, texel


def blend(canvas: np.ndarray, window: Window, cover: np.ndarray, paint: np.ndarray) -> None:
    """Lay `paint` over the window of a float32 (H, W, 3) canvas with opacity `cover` (h, w) in [0, 1], in place."""
    under = canvas[window]
    under += (paint - under) * cover[:, :, None]


def paint(canvas: np.ndarray, sprite: Sprite) -> tuple[Window, np.ndarray]:
    """Draw the filled sprite; returns its window and the boolean mask of the pixels whose centre it covers."""
    window, distance, texel = locate(sprite, *canvas.shape[:2])
    light = np.zeros(distance.shape, np.float32)
    if sprite.texture is not None:
        light += sprite.texture.take(texel)
    rows, columns = window
    across = (np.arange(columns.start, columns.stop) - sprite.x) * (sprite.shading[0] / sprite.side)
    along = (np.arange(rows.start, rows.stop) - sprite.y) * (sprite.shading[1] / sprite.side)
    light += (along[:, None] + across).astype(np.float32)
    blend(canvas, window, np.clip(distance + 0.5, 0, 1), light[:, :, None] + np.array(sprite.colour, np.float32))
    return window, distance > 0


def illuminate(canvas: np.ndarray, stream: Stream, strength: float) -> None:
    """Multiply in place by a linear ramp of random direction: 1 in the middle, `strength` off at most along an axis."""
    height, width = canvas.shape[:2]
    cos, sin = direction(stream.below(TURNS))
    slope = stream.uniform(0.0, strength)
    x = (np.arange(width) * 2 - (width - 1)) * (slope * cos / width)
    y = (np.arange(height) * 2 - (height - 1)) * (slope * sin / height)
    canvas *= (1.0 + (y[:, None] + x)).astype(np.float32)[:, :, None]


def to_bytes(canvas: np.ndarray) -> np.ndarray:
    """Float [0, 1] to uint8, values outside clipped."""
    return np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
