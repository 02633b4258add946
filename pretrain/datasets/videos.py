"""Videos with object masks in the layout of DAVIS 2017 (Pont-Tuset et al. 2017)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from pretrain.datasets.base import ImageData, is_image
from pretrain.datasets.indexed import decode_labels, image_size
from pretrain.datasets.sources import ImageError, locate, read_lines

VOID = 255


@dataclass(frozen=True)
class Video:
    """One sequence: its name, the positions of its frames in the set, and their masks (relative names) in order."""

    name: str
    frames: tuple[int, ...]
    masks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)


class Davis(ImageData):
    """`{JPEGImages,Annotations}/480p/<sequence>/<frame>.{jpg,png}` and `ImageSets/2017/<split>.txt`.

    An image set of all frames in the order of the list, with `videos` on top; without `ImageSets/2017` the list is
    looked for in `ImageSets` itself, and `resolution` names another folder than 480p. Raises FileNotFoundError naming
    the layout, or the frame that has no annotation.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        folder: str = "DAVIS",
        name: str = "davis2017",
        resolution: str = "480p",
        skip_bad: bool = False,
    ):
        layout = (
            f"JPEGImages/{resolution}/<sequence>/<frame>.jpg, Annotations/{resolution}/<sequence>/<frame>.png and "
            f"ImageSets/2017/{split}.txt"
        )
        source = locate(root, (folder, "davis2017", "davis"), layout)
        names = source.names()
        lists = [file for file in (f"ImageSets/2017/{split}.txt", f"ImageSets/{split}.txt") if source.holds(file)]
        sequences = read_lines(source, lists[0] if lists else f"ImageSets/2017/{split}.txt", layout)
        self.videos: list[Video] = []
        paths: list[str] = []
        by_folder: dict[str, list[str]] = {}
        for path in names:
            by_folder.setdefault(path.rpartition("/")[0], []).append(path)
        for sequence in sequences:
            if "/" in sequence or sequence.startswith("."):  # results are written under these names
                raise ImageError(f"{source.root}: the list of sequences holds {sequence!r}, which is no plain name")
            frames = [path for path in by_folder.get(f"JPEGImages/{resolution}/{sequence}", []) if is_image(path)]
            masks = [f"Annotations/{resolution}/{sequence}/{PurePosixPath(path).stem}.png" for path in frames]
            known = set(by_folder.get(f"Annotations/{resolution}/{sequence}", []))
            if not frames:
                raise FileNotFoundError(f"no frame in {source.root}/JPEGImages/{resolution}/{sequence}; {layout}")
            if extra := sorted(known - set(masks)):
                raise FileNotFoundError(f"{sequence}: annotation {source.root}/{extra[0]} has no frame of that name")
            if missing := [mask for mask in masks if mask not in known]:
                raise FileNotFoundError(f"{sequence}: frame without annotation, {source.root}/{missing[0]} is missing")
            self.videos.append(Video(sequence, tuple(range(len(paths), len(paths) + len(frames))), tuple(masks)))
            paths += frames
        super().__init__(name, source, paths, skip_bad=skip_bad)

    def frame(self, video: Video, t: int) -> np.ndarray:
        """Frame t of a sequence as RGB, (H, W, 3) uint8; raises ImageError naming its path when it is damaged."""
        return np.asarray(self.image(video.frames[t]))

    def frame_name(self, video: Video, t: int) -> str:
        """Name of frame t without its ending, which a result for it must have."""
        return PurePosixPath(self.paths[video.frames[t]]).stem

    def annotation(self, video: Video, t: int) -> np.ndarray:
        """Objects of frame t: 0 background, 1..K, 255 void, (H, W) uint8.

        Raises ImageError naming sequence and file when it is damaged, in colour, or of another size than its frame, and
        for t = 0 when it holds no object.
        """
        where = f"{self.source.root}/{video.masks[t]}"
        labels = decode_labels(self.source.read(video.masks[t]), where)
        path = self.paths[video.frames[t]]
        width, height = image_size(self.source.read(path), f"{self.source.root}/{path}")
        if labels.shape != (height, width):
            raise ImageError(
                f"{video.name}: annotation {where} has {labels.shape[1]} x {labels.shape[0]} pixels, its frame "
                f"{width} x {height}; both must come at one resolution"
            )
        if t == 0 and not ((labels > 0) & (labels != VOID)).any():
            found = " but void, 255" if (labels == VOID).any() else ""
            raise ImageError(
                f"{video.name}: the annotation of frame 0 has no object{found}; objects are 1..K ({where})"
            )
        return labels.astype(np.uint8)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all names and file sizes of frames and annotations, in order."""
        digest = hashlib.sha256()
        for video in self.videos:
            for path in (*(self.paths[i] for i in video.frames), *video.masks):
                digest.update(f"{path}\0{self.source.size(path)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]
