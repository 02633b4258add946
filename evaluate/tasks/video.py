"""Video object segmentation without training: labels of the first frame follow similar patches (DAVIS 2017).

Jabri et al. 2020 ("Space-Time Correspondence as a Contrastive Random Walk") in the form that Caron et al. 2021 (DINO)
evaluate. A video is read once, frame by frame: only the context of the next frame is held, whatever its length.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from evaluate.dense import dense_features
from evaluate.features import identity
from evaluate.metrics import bootstrap_interval
from evaluate.metrics.masks import nearest_resize
from evaluate.metrics.propagation import labels_to_masks, propagate, start, unit_frame
from evaluate.metrics.video import VOID, SequenceScores, evaluate_frame, object_count
from evaluate.overlay import blend, fitted, moving, sheet, stacked
from evaluate.partial import Partial
from evaluate.storage import write_whole
from evaluate.tasks.base import Result, Score, Subject, Task, Unavailable
from pretrain.backbones import IMAGENET_STD
from pretrain.datasets.indexed import encode_labels
from pretrain.datasets.videos import Davis, Video
from pretrain.shapeworld import davis_palette

__all__ = ["VideoObjects", "labels_to_masks", "propagate"]

BLOCK = 64  # the longer side of the input is a multiple of this many pixels
STATISTICS = [f"{measure}{part}" for measure in "jf" for part in ("", "_recall", "_decay")]
GIF_FRAMES, GIF_SIDE = 16, 220  # of a moving picture; pixels of the longer side of each half
STRIP, STRIPS = 6, 10  # frames of a sequence on the sheet; sequences


class VideoObjects(Task):
    """J&F of following the objects of the first frame through each sequence.

    size: shorter side of the input in pixels; n_last_frames, radius (in patches, 0: no limit), topk, temperature: as in
    `propagate`; std_red: deviation of the red channel, 0.228 in the published code, used where the backbone has
    ImageNet's normalisation; pictures: sequences of which a moving picture is kept. `save` names a folder for the
    predicted masks, indexed PNGs in the layout that DAVIS' own evaluator reads; it moves no number, so give
    overwrite=true to get masks of what is recorded already.
    """

    name = "video"

    def __init__(
        self,
        size: int = 480,
        n_last_frames: int = 7,
        radius: int = 12,
        topk: int = 5,
        temperature: float = 0.1,
        std_red: float = 0.228,
        pictures: int = 30,
        save: str | None = None,
    ):
        if size < 1 or pictures < 0 or std_red <= 0:
            raise ValueError(f"size={size} and std_red={std_red} must be positive and pictures={pictures} not negative")
        self.size, self.std_red, self.pictures, self.save = size, std_red, pictures, save
        self.settings = {"n_last_frames": n_last_frames, "radius": radius, "topk": topk}
        self.temperature = temperature

    @property
    def splits(self) -> tuple[str, ...]:
        """Videos with masks."""
        return ("videos",)

    def main(self, subject: Subject) -> str:
        """Mean of J and F over objects."""
        return "jf"

    def protocol(self, subject: Subject) -> dict[str, Any]:
        """Input, propagation and the rules of the metric."""
        view: dict[str, Any] = {"short_side": self.size, "block": block(self.size, subject.backbone.patch_size)}
        view |= {"interpolation": "bilinear, no antialias", "std": list(self.std(subject))}
        shared = {"features": "patches", "view": view, "precision": subject.store.precision, **self.settings}
        return shared | {"temperature": self.temperature, "jf": "DAVIS 2017, objects weigh the same"}

    def std(self, subject: Subject) -> tuple[float, ...]:
        """Deviations of the channels."""
        usual = tuple(subject.backbone.std)
        return (self.std_red, *usual[1:]) if usual == IMAGENET_STD else usual

    def check(self, subject: Subject) -> None:
        """Needs videos."""
        if not isinstance(data := subject.data.split("videos"), Davis):
            raise Unavailable(f"{data.name} has no videos", "use a dataset in the layout of DAVIS 2017")

    def prepare(self, subject: Subject) -> None:
        """Follow this process's share of the sequences."""
        self.follow(subject, subject.store.share(self.data(subject).videos))

    def data(self, subject: Subject) -> Davis:
        """The split with videos."""
        return subject.data.split("videos")  # type: ignore[return-value]

    def follow(self, subject: Subject, videos: list[Video]) -> Partial:
        """J and F of sequences, from earlier runs where they were kept: {name: {"j": (K, T), "f": (K, T)}}."""
        data = self.data(subject)
        settings = self.protocol(subject) | {"data": data.fingerprint}
        kept = Partial(subject.store, subject.backbone, self.name, settings, data.name)
        shown = {video.name for video in data.videos[: self.pictures]}
        with subject.store.progress(f"videos of {data.name}", sum(map(len, videos)), "frame") as bar:
            for video in videos:
                place = self.folder(subject, video)
                if video.name in kept and (place is None or len(list(place.glob("*.png"))) == len(video)):
                    bar.update(len(video))
                    continue
                pictures = Pictures(video) if video.name in shown else None
                scores: list[tuple[np.ndarray, np.ndarray]] = []
                objects = object_count(data.annotation(video, 0), video.name)
                for t, (frame, truth, found) in enumerate(self.masks(subject, data, video)):
                    scores.append(evaluate_frame(truth, found, objects, where=f"{video.name}, frame {t}"))
                    if pictures:
                        pictures.add(t, frame, truth, found)
                    if place:
                        write_mask(place / f"{data.frame_name(video, t)}.png", found)
                    bar.update()
                j, f = (np.stack(part, axis=1) for part in zip(*scores, strict=True))
                if pictures:
                    pictures.write(kept.folder)
                kept.add(video.name, {"j": j, "f": f})
        return kept

    @torch.no_grad()
    def masks(self, subject: Subject, data: Davis, video: Video) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Frame, annotation and predicted labels of every frame in turn; the first frame's are its annotation."""
        first = data.annotation(video, 0)
        labels = np.where(first == VOID, 0, first)
        patch, state = subject.backbone.patch_size, None
        for t in range(len(video)):
            frame, truth = data.frame(video, t), data.annotation(video, t)
            if frame.shape[:2] != first.shape:
                raise ValueError(f"{video.name}: frame {t} has {frame.shape[:2]} pixels, the first one {first.shape}")
            pixels = torch.from_numpy(resized(frame, self.size, patch)).permute(2, 0, 1)[None]
            features = dense_features(subject.store, subject.backbone, pixels, std=self.std(subject))[0]
            if state is None:
                small = nearest_resize(torch.from_numpy(labels), (features.shape[0], features.shape[1]))
                state = start(features, small, temperature=self.temperature, **self.settings)
                yield frame, truth, labels
                continue
            soft = state.step(unit_frame(features)).permute(2, 0, 1)
            yield frame, truth, labels_to_masks(soft[None], first.shape, patch)[0].cpu().numpy()

    def folder(self, subject: Subject, video: Video) -> Path | None:
        """Where the masks of a sequence go, if anywhere."""
        if self.save is None:
            return None
        return Path(self.save) / f"{subject.data.name}-{identity(subject.backbone)}" / video.name

    def run(self, subject: Subject) -> Result:
        """Follow what is not followed yet, and score."""
        data = self.data(subject)
        kept = self.follow(subject, data.videos)
        sequences = [SequenceScores(*(np.array(kept[video.name][key]) for key in "jf")) for video in data.videos]
        names, groups, columns = object_table(data.videos, sequences)
        scores = {name: grouped_score(values, groups) for name, values in columns.items()}
        outcomes = {"sample_id": np.array(names), "group": groups, **columns}
        notes = [f"{len(names)} objects in {len(data.videos)} sequences of {len(data)} frames"]
        if self.save is not None:
            notes.append(f"masks written to {self.folder(subject, data.videos[0]).parent}")  # type: ignore[union-attr]
        files = tables(names, groups, columns) | pictures_of(kept.folder, data.videos[: self.pictures])
        return Result(scores, outcomes, notes=notes, files=files)


class Pictures:
    """A moving picture and a strip of one sequence, annotation beside prediction, drawn small as the frames pass."""

    def __init__(self, video: Video):
        self.video = video
        self.chosen = set(np.linspace(0, len(video) - 1, min(GIF_FRAMES, len(video))).round().astype(int).tolist())
        self.on_strip = set(np.linspace(0, len(video) - 1, min(STRIP, len(video))).round().astype(int).tolist())
        self.frames: list[np.ndarray] = []
        self.strip: list[tuple[np.ndarray, str]] = []

    def add(self, t: int, frame: np.ndarray, truth: np.ndarray, found: np.ndarray) -> None:
        """Draw a frame if it is one of those chosen."""
        if t in self.chosen | self.on_strip:
            picture = fitted(blend(frame, found), GIF_SIDE)
            if t in self.on_strip:
                self.strip.append((picture, f"{self.video.name}, frame {t} of {len(self.video)}"))
            if t in self.chosen:
                self.frames.append(np.hstack([fitted(blend(frame, truth), GIF_SIDE), picture]))

    def write(self, folder: Path) -> None:
        """Keep both in a folder."""
        write_whole(folder / f"{self.video.name}.gif", moving(self.frames))
        write_whole(folder / f"{self.video.name}.png", sheet([self.strip]))


def block(size: int, patch: int) -> int:
    """What the longer side is a multiple of, in pixels: 64, or a patch where that does not divide 64 or is too much."""
    return BLOCK if BLOCK % patch == 0 and size >= BLOCK else patch


def resized(frame: np.ndarray, size: int, patch: int) -> np.ndarray:
    """Frame (H, W, 3) uint8 with its shorter side at `size`, both sides whole patches; bilinear without antialias.

    The longer side keeps the ratio down to a multiple of `block`: 854 x 480 becomes 832 x 480.
    """
    height, width = frame.shape[:2]
    short = max(1, size // patch) * patch
    step = block(size, patch)
    long = max(step, size * max(height, width) // min(height, width) // step * step)
    sides = (long, short) if width >= height else (short, long)
    return cv2.resize(frame, sides, interpolation=cv2.INTER_LINEAR)


def write_mask(path: Path, labels: np.ndarray) -> None:
    """Write labels (H, W) uint8 as an indexed PNG in the colours of DAVIS."""
    write_whole(path, encode_labels(labels, davis_palette()))


def grouped_score(values: np.ndarray, groups: np.ndarray) -> Score:
    """Mean over objects; the interval resamples sequences, whose objects share their fate."""
    mean, low, high = bootstrap_interval(values, groups=groups)
    known = np.isfinite(low)
    return Score(mean, low if known else None, high if known else None, len(values), "object")


def object_table(
    videos: Sequence[Video], sequences: Sequence[SequenceScores]
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """Names `sequence/object` of all objects, the sequence of each, and J&F and its parts by column."""
    table = np.concatenate([scores.statistics().reshape(-1, 6) for scores in sequences])  # (objects, 6)
    names = [f"{video.name}/{k + 1}" for video, s in zip(videos, sequences, strict=True) for k in range(len(s.j))]
    groups = np.array([name.rpartition("/")[0] for name in names])
    columns = {"jf": (table[:, 0] + table[:, 3]) / 2} | dict(zip(STATISTICS, table.T, strict=True))
    return names, groups, columns


def tables(names: list[str], groups: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Two tables as CSV: a line an object, and a line a sequence with the means of its objects."""
    rows = [[name, *(f"{values[i]:.6f}" for values in columns.values())] for i, name in enumerate(names)]
    means = [
        [group, *(f"{values[groups == group].mean():.6f}" for values in columns.values())]
        for group in dict.fromkeys(groups.tolist())
    ]
    found = {}
    for unit, lines in (("object", rows), ("sequence", means)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[unit, *columns], *lines])
        found[f"per_{unit}.csv"] = text.getvalue().encode()
    return found


def pictures_of(folder: Path, videos: list[Video]) -> dict[str, bytes]:
    """The moving pictures of sequences, and one sheet with the strips of some."""
    moved = {f"{video.name}.gif": folder / f"{video.name}.gif" for video in videos}
    strips = [folder / f"{video.name}.png" for video in videos[:STRIPS]]
    found = {name: path.read_bytes() for name, path in moved.items() if path.exists()}
    drawn = [path.read_bytes() for path in strips if path.exists()]
    return found | ({"sequences.png": stacked(drawn)} if drawn else {})
