"""Files of other projects as named tensors: `.pth`, `.pt`, `.bin`, `.ckpt`, `.tar` of torch.save, and safetensors.

Untrusted: a file is data. Pickles are read with `weights_only`, so nothing in them is called or imported; what they
would call is named in the refusal. Sizes are checked against the file before memory is taken.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.checkpoint import CheckpointError, read_json

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder; with .index.json where they are in parts


class Inert:
    """Stands in for a class that a checkpoint mentions beside its tensors: keeps nothing, does nothing."""

    def __new__(cls, *_args: Any, **_named: Any) -> Inert:
        """Takes whatever the class it stands for would take."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forgets the state."""


def plain_dictionary(*_: Any) -> dict[Any, Any]:
    """Stands in for the constructors of special dictionaries."""
    return {}


# Classes that training programs store beside the weights. None of them is imported; omegaconf is Hydra's, the history
# buffers are mmengine's, the numpy names belong to scalars in logs.
BESIDE = {
    "omegaconf.dictconfig.DictConfig": Inert,
    "omegaconf.listconfig.ListConfig": Inert,
    "omegaconf.base.ContainerMetadata": Inert,
    "omegaconf.base.Metadata": Inert,
    "omegaconf.nodes.AnyNode": Inert,
    "typing.Any": Inert,
    "collections.defaultdict": plain_dictionary,
    "builtins.getattr": Inert,
    "builtins.dict": Inert,
    "builtins.list": Inert,
    "builtins.int": Inert,
    "pathlib.PosixPath": Inert,
    "pathlib.WindowsPath": Inert,
    "mmengine.logging.history_buffer.HistoryBuffer": Inert,
    "numpy.core.multiarray.scalar": Inert,
    "numpy.core.multiarray._reconstruct": Inert,
    "numpy._core.multiarray.scalar": Inert,
    "numpy._core.multiarray._reconstruct": Inert,
    "numpy.ndarray": Inert,
    "numpy.dtype": Inert,
    "argparse.Namespace": argparse.Namespace,
    "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
    "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
}
# What torch.save itself writes; `weights_only` is the judge of these. Not `torch.Tensor` and its like: called by a
# pickle, they take memory by a number in the file rather than by what the file holds.
MADE_OF = re.compile(
    r"torch\._utils\._rebuild\w+|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout|"
    r"torch\.nn\.parameter\.Parameter|torch\.storage\.\w+|torch\.(?!\w*Tensor)\w+|"
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)"
)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: tensors by dotted name, facts (numbers and text by dotted name), config.json if any."""

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> Contents:
    """Everything in a checkpoint file, or in a folder with config.json and weights.

    Raises CheckpointError in one line when it is empty, truncated, no checkpoint, or wants to run code.
    """
    if path.is_dir():
        return read_folder(path)
    tensors, facts = read_file(path)
    beside = path.name in WEIGHTS  # a file of another name may lie beside the config.json of something else
    return Contents(path, tensors, facts, *(read_configs(path.parent) if beside else ({}, {})))


def read_folder(folder: Path) -> Contents:
    """A folder as transformers and timm write it, in one file or in parts."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= read_file(file)[0]
    return Contents(folder, tensors, {}, *read_configs(folder))


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json of a folder, empty where they are not there."""
    files = (folder / "config.json", folder / "preprocessor_config.json")
    config, preprocessor = (read_json(file) if file.is_file() else {} for file in files)
    if not isinstance(config, dict) or not isinstance(preprocessor, dict):
        raise CheckpointError(f"config.json in {folder} is no JSON object")
    return config, preprocessor


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a folder; raises CheckpointError when one is missing or lies elsewhere."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise CheckpointError(f"{index} names no parts: it lacks a weight_map")
            names = sorted({str(part) for part in parts.values()})
            if any(Path(part).name != part for part in names):
                raise CheckpointError(f"{index} names a part outside its folder")
            missing = [part for part in names if not (folder / part).is_file()]
            if missing:
                raise CheckpointError(f"{folder} lacks {', '.join(missing[:3])}, which {index.name} names")
            return [folder / part for part in names]
    alone = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(alone) != 1:
        found = ", ".join(path.name for path in alone) or "no weights"
        raise CheckpointError(f"{folder} holds {found}; expected {' or '.join(WEIGHTS)}, or give the path of one file")
    return alone


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of one file; raises CheckpointError as `read`."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return read_safetensors(path), {}
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them (git lfs pull)")
    content = read_zip(path) if start.startswith(b"PK") else read_legacy(path, size)
    tensors, facts = {}, {}
    for name, value in flatten(content):
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            facts[name] = value
    check_sizes(tensors, path, size)
    return tensors, facts


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file: its header is checked against its length before anything is read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error})") from error


def read_zip(path: Path) -> Any:
    """A file that torch.save wrote in the last years: an archive of one pickle and raw storages, mapped, not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise CheckpointError(f"{path} is TorchScript, which is code; give the weights it was made from")
            if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
                raise CheckpointError(f"{path} is a compressed archive; torch.save stores tensors as they are")
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path} is an archive, but none that torch.save wrote")
            with archive.open(pickles[0]) as file:
                refuse_code(file, path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error})") from error
    return load(path, mmap=True)


def read_legacy(path: Path, size: int) -> Any:
    """A file of torch.save before 1.6 (OpenMMLab still publishes these): pickles, then raw storages.

    It is walked through once without taking memory for tensors, and read when what it asks for fits what it holds.
    """
    with open(path, "rb") as file:
        refuse_code(file, path, pickles=4)  # magic number, protocol, system, content
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import, and needed for old files alone

    with FakeTensorMode():
        shapes = {name: value for name, value in flatten(load(path)) if isinstance(value, Tensor)}
    if any(value.untyped_storage().nbytes() > size for value in shapes.values()):
        raise CheckpointError(f"{path} asks for more memory than it holds; it is truncated or damaged")
    check_sizes(shapes, path, size)
    return load(path)


def load(path: Path, **options: Any) -> Any:
    """torch.load with `weights_only`, in which the classes of `BESIDE` are stand-ins; errors become one line."""
    allowed: list[Any] = [(stand_in, name) for name, stand_in in BESIDE.items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, **options)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError,
            AssertionError, ImportError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{path} is truncated, damaged or no file of torch.save ({reason})") from error


def refuse_code(file: Any, path: Path, pickles: int = 1) -> None:
    """Raise CheckpointError naming what a pickle would call beyond the making of tensors; nothing in it is run.

    pickles: how many follow each other in the file.
    """
    for _ in range(pickles):
        try:
            names = set(mentioned(file))
        except (ValueError, EOFError, UnicodeDecodeError, IndexError) as error:
            raise CheckpointError(f"{path} is truncated, damaged or no checkpoint ({error})") from error
        unknown = sorted(name for name in names - set(BESIDE) if not MADE_OF.fullmatch(name))
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise CheckpointError(
                f"{path} wants to run code when it is opened ({', '.join(unknown[:3])}{more}) and was not opened; "
                "save the weights alone: torch.save(model.state_dict(), ...), or safetensors"
            )


def mentioned(file: Any) -> Iterator[str]:
    """Dotted names that a pickle would import, read from its opcodes."""
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)
            yield "builtins.int" if name == "builtins.long" else name  # of Python 2, whose names old protocols keep
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts.append(argument)


def flatten(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors, numbers and text in nested dictionaries and namespaces, by dotted name."""
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if isinstance(content, Mapping) and depth < 8:
        for key, value in content.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    elif isinstance(content, Tensor | str | int | float | bool) and prefix:
        yield prefix, content


def check_sizes(tensors: Mapping[str, Tensor], path: Path, size: int) -> None:
    """Raise CheckpointError when tensors claim more than the file holds, as a few bytes seen a million times would."""
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized:
            raise CheckpointError(f"{name} in {path} is sparse or quantised; give the dense float weights")
        if value.numel() * value.element_size() > size:
            raise CheckpointError(f"{name} in {path} claims {tuple(value.shape)}, more than the file holds")
    if sum(value.numel() * value.element_size() for value in tensors.values()) > 8 * size:  # tied weights count twice
        raise CheckpointError(f"the tensors in {path} claim many times what the file holds")
