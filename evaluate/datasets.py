"""`python -m evaluate.datasets`: which datasets of configs/data are there, and the layout expected of the others.

Nothing is written, made or fetched, and no torch is imported. `--check NAME` decodes every image of a dataset.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from evaluate.leaderboard.escape import terminal
from pretrain.arguments import Parser
from pretrain.datasets import ImageData, ImageError
from pretrain.datasets.classes import are_indices

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "data"
OWN = {
    "ImageFolder",
    "Images",
    "ImageList",
    "Masks",
}  # without a folder of their own these read whatever DATA_ROOT holds
CHUNK = 1024  # images decoded between two steps of the progress bar
SHOWN = 10  # damaged images that are named
NAME, SPLIT = 18, 13  # columns


@dataclass
class Dataset:
    """One configuration: how its splits are opened, and what became of that.

    layout: what the first line of its file says of the files; own: whether it stands for the user's own images;
    found: splits that are there; missing, unreadable: reasons by split.
    """

    name: str
    layout: str
    own: bool
    readers: dict[str, Callable[[], ImageData]]
    found: dict[str, ImageData] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        """Open every split, and note those that are not there or cannot be read."""
        for split, reader in self.readers.items():
            try:
                self.found[split] = reader()
            except FileNotFoundError as error:
                self.missing[split] = str(error)
            except (ValueError, OSError) as error:
                self.unreadable[split] = str(error)

    def lies_at(self, root: Path) -> bool:
        """Whether every split that is there was found in this folder itself, not in one named like the dataset."""
        return bool(self.found) and all(images.source.root == root for images in self.found.values())


def read(file: Path, data_root: Path) -> Dataset:
    """A configuration of a dataset as functions that open its splits; Hydra is not needed for that."""
    text = file.read_text("utf-8")
    splits: dict[str, dict[str, Any]] = yaml.safe_load(text)["splits"]
    readers = {split: reader(settings, data_root) for split, settings in splits.items()}
    own = any(
        each.get("folder", "" if each["_target_"].rpartition(".")[2] in OWN else "its own") == ""
        for each in splits.values()
    )
    return Dataset(file.stem, layout(text.partition("\n")[0]), own, readers)


def layout(header: str) -> str:
    """What the first line of a configuration, `# Title: DATA_ROOT/...`, says of the files in whole sentences."""
    title, colon, rest = header.lstrip("# ").partition(": ")
    text = (rest if colon else title).replace("DATA_ROOT/", "")
    return text if text.endswith(".") else text[: text.rfind(". ") + 1] or text


def reader(settings: dict[str, Any], data_root: Path) -> Callable[[], ImageData]:
    """A function that opens a split as its `_target_` and settings say."""
    module, _, name = settings["_target_"].rpartition(".")
    given = {key: value for key, value in settings.items() if key != "_target_"}
    for key, value in given.items():
        given[key] = value.replace("${data_root}", str(data_root)) if isinstance(value, str) else value
    return lambda: getattr(importlib.import_module(module), name)(**given)


def describe(images: ImageData) -> str:
    """Images and classes of a split in words."""
    videos = getattr(images, "videos", None)
    classes = f"{len(images.classes):,} classes" if images.classes else "no labels"
    if videos is not None:
        classes = f"{len(videos):,} videos"
    elif images.labels is not None and images.labels.ndim == 2:
        classes = f"sets of {classes}"
    return f"{len(images):>11,} images   {classes}"


def lines(datasets: Sequence[Dataset], data_root: Path, width: int) -> Iterator[str]:
    """The listing, wrapped to `width` columns."""
    own = [each for each in datasets if each.own]
    rest = [each for each in datasets if not each.own]
    itself = [each for each in rest if each.lies_at(data_root)]
    there = [each for each in rest if (each.found or each.unreadable) and each not in itself]
    yield f"Below {data_root}:" if there else f"No dataset below {data_root}."
    for each in there:
        yield from present(each, width)
    if itself:
        names = ", ".join(each.name for each in itself)
        yield from ["", *wrapped(f"{data_root} itself can be read as {names}; data=NAME says as which.", width)]
    absent = [each for each in rest if not (each.found or each.unreadable)]
    if absent:
        yield from [
            "",
            "Not there, and the layout of each below DATA_ROOT (or as DATA_ROOT itself):",
        ]
        for each in absent:
            yield from wrapped(f"  {each.name:<{NAME}}{each.layout}", width, split=True)
    if own:
        yield from ["", "Your own images:"]
        for each in own:
            yield from wrapped(f"  {each.name:<{NAME}}{each.layout}", width, split=True)


def present(dataset: Dataset, width: int) -> Iterator[str]:
    """The lines of a dataset of which at least a part is there."""
    name = dataset.name
    for split in dataset.readers:
        start = f"  {name:<{NAME}}{split:<{SPLIT}}"
        name = ""
        if split in dataset.found:
            yield f"{start}{describe(dataset.found[split])}"
        else:
            reason = dataset.missing.get(split) or dataset.unreadable[split]
            yield from wrapped(f"{start}{terminal(reason)}", width)
    named = {split: images.classes for split, images in dataset.found.items() if images.labels is not None}
    first = next(iter(named.values()), [])
    if any(classes != first and not are_indices(classes, first) for classes in named.values()):
        text = (
            f"{' and '.join(named)} have different classes: matched by name, and those that training lacks count wrong"
        )
        yield from wrapped(f"  {'':<{NAME}}{text}", width)


def wrapped(text: str, width: int, *, split: bool = False) -> list[str]:
    """A line broken at spaces, continued below the second column; `split` breaks long words too, as no path may be."""
    options: dict[str, Any] = {"break_long_words": split, "break_on_hyphens": False}
    return textwrap.wrap(text, width, subsequent_indent=" " * (2 + NAME), **options)


def damaged(images: ImageData, progress: bool) -> list[str]:
    """What is wrong with every image of a split that cannot be decoded, in order."""

    def fault(index: int) -> str:
        try:
            images.image(index)
        except ImageError as error:
            return str(error)
        return ""

    found: list[str] = []
    bar = tqdm(total=len(images), desc=images.name, unit="image", disable=None if progress else True, leave=False)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), CHUNK):
            rows = range(start, min(start + CHUNK, len(images)))
            found += [text for text in pool.map(fault, rows) if text]
            bar.update(len(rows))
    return found


def check(dataset: Dataset) -> bool:
    """Decode every image of a dataset and print the damaged ones; whether all that is defined is there and whole."""
    whole = True
    for split in dataset.readers:
        if split not in dataset.found:
            print(terminal(f"{dataset.name} {split}: {dataset.missing.get(split) or dataset.unreadable[split]}"))
            whole = False
            continue
        faults = damaged(dataset.found[split], progress=True)
        print(f"{dataset.name} {split}: {len(faults):,} of {len(dataset.found[split]):,} images damaged")
        for text in faults[:SHOWN]:
            print(f"  {terminal(text)}")
        if len(faults) > SHOWN:
            print(f"  and {len(faults) - SHOWN:,} more")
        whole &= not faults
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """List the datasets of configs/data: which are there, with how many images and classes, and which are not."""
    parser = Parser(prog="python -m evaluate.datasets", description=main.__doc__)
    parser.add_argument("--data-root", default="data", help="folder that holds the datasets (default: %(default)s)")
    parser.add_argument("--check", nargs="+", metavar="NAME", help="decode every image of these, count the damaged")
    options = parser.parse_args(arguments)
    root = Path(options.data_root).expanduser()
    files = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    unknown = [name for name in options.check or () if name not in files]
    if unknown:
        parser.error(f"--check {unknown[0]}: no such dataset; known: {', '.join(files)}")
    datasets = [read(files[name], root) for name in options.check or files]
    for dataset in datasets:
        if options.check or not dataset.own:
            dataset.open()
    if options.check:
        return 0 if all([check(dataset) for dataset in datasets]) else 1
    print("\n".join(lines(datasets, root, min(100, shutil.get_terminal_size((100, 24)).columns))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
