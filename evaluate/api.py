"""The suite in a notebook: a checkpoint, its features, its scores, and a comparison, in a line each.

    from evaluate.api import compare, evaluate, extract, load

    model = load("runs/a")
    features = extract(model, "shapeworld").cls()
    evaluate(["runs/a", "runs/b"], suite="shapeworld")
    compare("runs/a", "runs/b")

What is computed is kept on disk as by the commands, and not computed again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from evaluate import importer, run
from evaluate.features import Frozen, Store
from evaluate.importer import Checkpoint
from evaluate.leaderboard.__main__ import rebuild
from evaluate.leaderboard.compare import compare_all, select
from evaluate.records import Record, read_all
from pretrain.datasets import ImageData, Images

__all__ = ["compare", "evaluate", "extract", "load"]


def load(name: str | Path, runs: str | Path = "runs") -> Checkpoint:
    """A frozen checkpoint by any name that `make eval-all` takes: its `backbone`, `head` and `record`.

    Raises CheckpointError naming the file and what would help.
    """
    return importer.open_checkpoint(name, runs)


def extract(
    checkpoint: Checkpoint | str | Path,
    images: str | Path | ImageData,
    split: str = "test",
    *,
    data_root: str | Path = "data",
    cache: str | Path = ".cache",
    device: str = "auto",
    batch_size: int = 128,
) -> Frozen:
    """Features of images, stored once: `cls()` (n, D) and `average()` (n, D) float32, `ids`, and `labels` if any.

    images: a dataset of configs/data by its name, with the split of it; or a folder of images, with or without
    sub-folders; or a reader of `pretrain.datasets`. Raises ValueError for a dataset or split that is unknown, and
    ImageError for an image that is damaged.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else load(checkpoint)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    store = Store(cache, device=device, batch_size=batch_size, quiet=True)
    store.label = opened.record["name"]
    return store.get(opened.backbone, _images(images, split, data_root))


def _images(images: str | Path | ImageData, split: str, data_root: str | Path) -> ImageData:
    if isinstance(images, ImageData):
        return images
    if str(images) not in run.choices("data") and Path(images).is_dir():
        return Images(images, name=Path(images).name)
    data = run.load_data(str(images), data_root)
    if split not in data.readers:
        raise ValueError(f"{images} has no split {split!r}; it has {', '.join(data.readers)}")
    return data.split(split)


def evaluate(checkpoints: str | Path | Sequence[str | Path], suite: str | None = None, **settings: Any) -> pd.DataFrame:
    """Headline scores of checkpoints on a suite, one row a checkpoint and task; records and tables go to `output`.

    settings: any of configs/evaluate.yaml, by name (`data_root`, `baselines`, `device`, `jobs`, ...). What is skipped
    or fails has no value and says why in its note. Raises ValueError for what is unknown, before any work.
    """
    names = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    changes = {"quiet": True, "baselines": False} | settings
    config = run.settings(suite, checkpoints=[str(name) for name in names], **changes)
    done = run.measure(config)
    if done is None:
        raise ValueError("torchrun shares out `python -m evaluate`, not this function; use jobs=... here")
    evaluator, lost = done
    for line in lost:
        warnings.warn(f"unfinished: {line}", stacklevel=2)
    recorded = [*evaluator.standing, *evaluator.written]
    if recorded:
        rebuild(evaluator.root, config.output, evaluator.runs)
    rows = [_row(record) for record in recorded]
    for status in evaluator.unfit:
        about = {"checkpoint": status.checkpoint["name"], "task": status.task, "dataset": status.dataset}
        rows.append(about | {"note": f"{status.status}: {status.reason}; {status.remedy}"})
    columns = ["checkpoint", "task", "dataset", "metric", "value", "low", "high", "scale", "note"]
    return pd.DataFrame(rows, columns=columns)


def _row(record: Record) -> dict[str, Any]:
    score = record.score
    about = {"checkpoint": record.checkpoint["name"], "task": record.task, "dataset": record.dataset}
    return about | {
        "metric": record.main,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "scale": score.scale,
        "note": "; ".join(record.notes),
    }


def compare(
    reference: str, *others: str, records: str | Path = "results/records", samples: int = 10_000
) -> pd.DataFrame:
    """Paired comparison of checkpoints with the first, one row a task that both have; a warning names the others.

    difference: other minus reference, its 95 % interval, p after Holm's correction over all rows, and a verdict.
    Raises ValueError for a checkpoint that has no records.
    """
    stored = read_all(records)
    made, refused = compare_all([select(stored, name) for name in (reference, *others)], samples=samples)
    for line in refused:
        warnings.warn(f"not compared: {line}", stacklevel=2)
    rows = [
        {
            "checkpoint": each.other.checkpoint["name"],
            "task": each.other.task,
            "dataset": each.other.dataset,
            "metric": each.other.main,
            "reference": each.reference.score.value,
            "value": each.other.score.value,
            "difference": each.difference,
            "low": each.low,
            "high": each.high,
            "p": each.adjusted,
            "verdict": each.verdict,
        }
        for each in made
    ]
    return pd.DataFrame(rows)
