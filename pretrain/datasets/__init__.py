"""Images on disk, read as their publishers lay them out: one file a format, each a class with `root` and `split`.

base        what every reader is; ImageFolder, folders without labels, list files; tar archives
"""

from pretrain.datasets.base import (
    EXTENSIONS,
    Archive,
    Folder,
    ImageData,
    ImageError,
    ImageFolder,
    ImageList,
    Images,
    centre_view,
    decode,
    is_image,
    locate,
)

__all__ = [
    "EXTENSIONS",
    "Archive",
    "Folder",
    "ImageData",
    "ImageError",
    "ImageFolder",
    "ImageList",
    "Images",
    "centre_view",
    "decode",
    "is_image",
    "locate",
]
