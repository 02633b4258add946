"""Views: random crops cut by the loader's workers, and their colours changed in batches on the device.

Every random choice follows from (seed, epoch, image) alone, never from a worker's or a process's state: any number of
workers or processes sees the same views, and a run continues in the middle of an epoch without saving random states.
Order as in DINO's public code: crop, flip, jitter, grayscale, blur, solarise, scale to [0, 1], normalise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pretrain.datasets import ImageData, ImageError
from pretrain.teacher import hash_seed

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
#: columns of the parameters drawn for each view
COLUMNS = (
    "flip",
    "jitter",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "order",
    "gray",
    "blur",
    "solarize",
    "invert",
)
GRAY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class View:
    """How one view is made: side in pixels, share of the area cropped, and the chance of each change.

    jitter: brightness, contrast, saturation and hue strengths, applied together with chance `jitter_p`; blur: standard
    deviation in pixels drawn from `blur_sigma`; solarize inverts values of 128 and more, invert inverts all.
    """

    size: int = 224
    scale: tuple[float, float] = (0.4, 1.0)
    interpolation: str = "bicubic"
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0
    invert_p: float = 0.0

    def __post_init__(self) -> None:
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"unknown interpolation {self.interpolation!r}; use {', '.join(RESAMPLING)}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"crop scale {tuple(self.scale)} must be 0 < low <= high")
        for name in ("scale", "jitter", "blur_sigma"):  # as a configuration holds them, each look costs microseconds
            object.__setattr__(self, name, tuple(getattr(self, name)))


def multi_crop(
    global_view: dict[str, Any], first: dict[str, Any], second: dict[str, Any], local_crops: int, local: dict[str, Any]
) -> list[View]:
    """Two global views that share `global_view` and differ by `first` and `second`, then `local_crops` of `local`."""
    views = [View(**{**global_view, **first}), View(**{**global_view, **second})]
    return views + [View(**{**global_view, **local}) for _ in range(local_crops)]


def crop_box(width: int, height: int, scale: tuple[float, float], u: np.ndarray) -> tuple[float, float, float, float]:
    """Crop of a random share of the area and aspect ratio 3/4 to 4/3, as (left, top, right, bottom) pixels.

    u: uniforms, ten attempts of four. Falls back to the largest central crop within the ratio limits.
    Source: Inception-style random resized crop as in torchvision.
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for a, b, c, d in u.reshape(-1, 4):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * a)
        ratio = math.exp(low + (high - low) * b)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(c * (width - w + 1)), int(d * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def draw_colours(view: View, u: np.ndarray) -> np.ndarray:
    """Parameters of one view in the order of `COLUMNS`, from 12 uniforms."""
    b, c, s, h = view.jitter
    return np.array([
        u[0] < view.flip_p,
        u[1] < view.jitter_p,
        1 + b * (2 * u[2] - 1),
        1 + c * (2 * u[3] - 1),
        1 + s * (2 * u[4] - 1),
        h * (2 * u[5] - 1),
        int(u[6] * len(ORDERS)),
        u[7] < view.gray_p,
        (view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * u[9]) * (u[8] < view.blur_p),
        u[10] < view.solarize_p,
        u[11] < view.invert_p,
    ], np.float32)  # fmt: skip


class Crops(Dataset):
    """Dataset of (epoch, index) -> list of (uint8 crop (3, S, S), colour parameters), one a view."""

    def __init__(self, images: ImageData, views: Sequence[View], seed: int):
        self.images, self.views, self.seed = images, list(views), seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        image, bad = self._load(index)
        uniforms = np.random.Generator(np.random.PCG64(hash_seed(self.seed, epoch, index)))
        draws = uniforms.random((len(self.views), 52))
        crops = [cut(image, view, u[:40]) for view, u in zip(self.views, draws, strict=True)]
        colours = [draw_colours(view, u[40:]) for view, u in zip(self.views, draws, strict=True)]
        return {"crops": crops, "colours": torch.from_numpy(np.stack(colours)), "bad": bad}

    def _load(self, index: int) -> tuple[Image.Image, int]:
        """The image, or with `skip_bad` the next one that can be decoded, and how many were passed over."""
        for skipped in range(len(self.images)):
            try:
                return self.images.image((index + skipped) % len(self.images)), skipped
            except ImageError:
                if not self.images.skip_bad:
                    raise
        raise ImageError(f"no image of {self.images.name} can be decoded")


def cut(image: Image.Image, view: View, u: np.ndarray) -> Tensor:
    """One crop of a PIL image, resized with antialiasing: uint8 (3, S, S)."""
    box = crop_box(*image.size, view.scale, u)
    small = image.resize((view.size, view.size), RESAMPLING[view.interpolation], box=box)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


class EpochBatches:
    """Batches of (epoch, index) keys: a permutation of (seed, epoch), cut into global batches, this process's slice.

    The last incomplete batch is dropped. Sized per process: batch_size / processes images.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        if batch_size > n:
            raise ValueError(
                f"trainer.batch_size={batch_size} is larger than the data set of {n} images; use at most {n}"
            )
        if batch_size % world:
            raise ValueError(f"trainer.batch_size={batch_size} does not divide by {world} processes")
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.n // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        random = np.random.Generator(np.random.PCG64(hash_seed(self.seed, self.epoch, -1)))
        order = random.permutation(np.arange(self.n, dtype=np.uint32))
        share = self.batch_size // self.world
        for step in range(self.start, len(self)):
            first = step * self.batch_size + self.rank * share
            yield [(self.epoch, int(i)) for i in order[first : first + share]]


@dataclass(frozen=True)
class Finished:
    """Collates items as batches whose views are finished in the process that decodes them, on the CPU."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Items of `Crops` -> {"views": V x (N, 3, S, S) float32, "bad": (N,)}."""
        batch = default_collate(items)
        return {"views": colour_views(batch, self.mean, self.std, torch.device("cpu")), "bad": batch["bad"]}


def finished_views(
    batch: dict[str, Any], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> list[Tensor]:
    """The views of a batch on the device: as a worker finished them, or finished here by `colour_views`."""
    return batch["views"] if "views" in batch else colour_views(batch, mean, std, device)


def colour_views(
    batch: dict[str, Any], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> list[Tensor]:
    """Finish the views of a batch on the device: uint8 crops -> normalised float32 (N, 3, S, S), one tensor a view.

    Consecutive views of one size are worked on together.
    """
    crops, colours = batch["crops"], batch["colours"].to(device, non_blocking=True)  # V x (N, 3, S, S); (N, V, 11)
    centre = torch.tensor(mean, device=device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=device).view(1, 3, 1, 1)
    views: list[Tensor] = []
    start = 0
    while start < len(crops):
        stop = start + 1
        while stop < len(crops) and crops[stop].shape == crops[start].shape:
            stop += 1
        x = torch.cat([crop.to(device, non_blocking=True) for crop in crops[start:stop]]).float().div_(255)
        x = change_colours(x, colours[:, start:stop].transpose(0, 1).reshape(-1, len(COLUMNS)))
        views += list(((x - centre) / scale).chunk(stop - start))
        start = stop
    return views


def change_colours(x: Tensor, colours: Tensor) -> Tensor:
    """Flip, jitter, gray, blur, solarise and invert images (n, 3, S, S) in [0, 1] by their own parameters (n, 11)."""
    p = dict(zip(COLUMNS, colours.T, strict=True))
    x = pick(p["flip"] > 0, x.flip(-1), x)
    x = jitter(x, p)
    x = pick(p["gray"] > 0, to_gray(x).expand_as(x), x)
    x = blur(x, p["blur"])
    x = pick((p["solarize"] > 0), torch.where(x >= 128 / 255, 1 - x, x), x)
    return pick(p["invert"] > 0, 1 - x, x)


def pick(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Per-image choice between two batches: which (n,) bool."""
    return torch.where(which.view(-1, 1, 1, 1), yes, no)


def to_gray(x: Tensor) -> Tensor:
    """Luma of RGB images: (n, 3, S, S) -> (n, 1, S, S)."""
    r, g, b = x.unbind(1)
    return (GRAY[0] * r + GRAY[1] * g + GRAY[2] * b).unsqueeze(1)


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor x + (1 - factor) other, clamped to [0, 1]; factor (n,)."""
    return torch.lerp(other.expand_as(x), x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def shift_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of RGB images (n, 3, S, S) by `turn` (n,) full circles, through HSV."""
    high, low = x.amax(1), x.amin(1)
    chroma = high - low
    r, g, b = x.unbind(1)
    safe = chroma.clamp_min(1e-12)  # grey: all three differences are 0
    sixth = torch.where(high == r, (g - b) / safe, torch.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    sixth = sixth + 6 * turn.view(-1, 1, 1)
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = (offsets + sixth.unsqueeze(1)) % 6
    return high.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)


#: the 24 orders in which brightness, contrast, saturation and hue may be applied
ORDERS = [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) if b != a for c in range(4) if c not in (a, b)]


def jitter(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Colour jitter with every image's own strengths and order of the four changes."""
    orders = torch.tensor(ORDERS, device=x.device)[p["order"].long()]  # (n, 4)
    factors = torch.stack([p["brightness"], p["contrast"], p["saturation"], torch.ones_like(p["hue"])], 1)
    factors = torch.where(p["jitter"].unsqueeze(1) > 0, factors, torch.ones_like(factors))
    for step in range(4):
        kind = orders[:, step]
        is_contrast, is_saturation = ((kind == i).to(x.dtype).view(-1, 1, 1, 1) for i in (1, 2))
        gray = to_gray(x)
        # brightness, contrast and saturation are one blend: with black, with the mean grey, with the grey image
        other = gray * is_saturation + gray.mean((1, 2, 3), keepdim=True) * is_contrast
        x = blend(x, other, factors.gather(1, kind.unsqueeze(1)).squeeze(1))
        turned = ((kind == 3) & (p["jitter"] > 0)).nonzero().squeeze(1)
        if len(turned):
            x[turned] = shift_hue(x[turned], p["hue"][turned])
    return x


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with every image's own standard deviation in pixels (n,); 0 leaves an image alone."""
    chosen = (sigma > 0).nonzero().squeeze(1)
    if not len(chosen):
        return x
    part, s = x[chosen], sigma[chosen]
    n, channels, height, width = part.shape
    reach = min(math.ceil(3 * float(s.max())), min(height, width) - 1)
    taps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    s = s.unsqueeze(1)
    exponents = (-taps.square() / (2 * s.square())).masked_fill(taps.abs() > (3 * s).ceil(), -math.inf)
    kernel = torch.softmax(exponents, 1)  # (n, 2 reach + 1), cut by each image's own deviation, whatever the batch
    for axis in (-1, -2):
        pad = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        padded = F.pad(part, pad, mode="reflect")
        part = sum(  # type: ignore[assignment]
            kernel[:, i].view(-1, 1, 1, 1) * padded.narrow(axis, i, width if axis == -1 else height)
            for i in range(2 * reach + 1)
        )
    return x.index_copy(0, chosen, part)
