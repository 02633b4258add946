"""Label maps stored as images: grey or palette PNGs whose pixel values are the labels."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pretrain.datasets.sources import ImageError, reason

INDEXED = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # Pillow's kinds with one number a pixel


def decode_labels(data: bytes, where: str) -> np.ndarray:
    """Labels of a mask file, (H, W) uint8 or wider; a palette is ignored.

    Raises ImageError naming the file when it is no image, ends too early, or holds colours instead of labels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in INDEXED:
                raise ImageError(
                    f"mask {where} holds {image.mode} colours; expected one label a pixel (indexed or grey PNG), "
                    "so look colours up in the palette of the dataset and store their numbers"
                )
            return np.asarray(image if image.mode != "1" else image.convert("L")) // (255 if image.mode == "1" else 1)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot decode mask {where}: {reason(error)}; mend or remove it") from error


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height of an image without decoding it; raises ImageError naming the file when it is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot decode {where}: {reason(error)}; mend or remove it") from error


def encode_labels(labels: np.ndarray, palette: Sequence[int] | np.ndarray) -> bytes:
    """Indexed PNG of labels (H, W) uint8 with a palette of up to 256 colours, flat or (n, 3)."""
    image = Image.fromarray(np.ascontiguousarray(labels, np.uint8), mode="P")
    image.putpalette(np.asarray(palette, np.uint8).reshape(-1).tolist())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
