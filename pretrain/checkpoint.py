"""The on-disk contract of a run: tensors as safetensors, everything else as JSON, each file whole or not at all.

runs/NAME/   backbone.safetensors head.safetensors (teacher)  student.safetensors  run.json  log.csv
             epochs/NNN/  the same tensors for each kept epoch        resume/  what a continued run needs
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pretrain.backbones import Backbone
from pretrain.distributed import assign

SCHEMA = 1
#: what no run.json lacks
REQUIRED = {"name": str, "objective": str, "backbone": dict, "data": dict, "config": dict, "sha256": dict}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another architecture; the message names file and remedy."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` only when the block ends without an error; an older one survives until then.

    Raises OSError naming the path (disk full, folder not writable).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; what was there before is untouched"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write named tensors atomically as safetensors; returns the sha256 of the file."""
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with atomic_file(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises CheckpointError naming the file when it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not an object")
        return content
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it or train again") from error


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file, checking its digest when one is given; raises CheckpointError on damage."""
    try:
        if sha256 and file_digest(path) != sha256:
            raise CheckpointError(f"{path} is damaged: its content does not match the digest it was saved with")
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"no such checkpoint file: {path}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error})") from error


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Digest of all parameters and buffers of a module by name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def network_digest(backbone: Backbone) -> str:
    """Digest of weights and architecture: the number of heads or the normalisation leave no trace in the weights."""
    text = f"{weights_digest(backbone)} {json.dumps(backbone.spec, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Raises CheckpointError that names what a module of this architecture misses, what is left over or misshapen."""
    wanted = module.state_dict()
    wrong = [f"missing {name}" for name in wanted if name not in tensors]
    wrong += [f"left over {name}" for name in tensors if name not in wanted]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{origin} is of another architecture: {'; '.join(wrong[:3])}{more}")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Load tensors into a module of exactly this architecture; raises CheckpointError as `check_weights` does."""
    check_weights(module, tensors, origin)
    for name, value in module.state_dict().items():
        assign(value, tensors[name])


def save_run(
    directory: Path,
    teacher: tuple[nn.Module, nn.Module],
    student: tuple[nn.Module, nn.Module] | None,
    info: Mapping[str, Any],
) -> None:
    """Save (backbone, head) of the teacher, of the student when there is one, and run.json last: it vouches for all."""
    digests = {
        "backbone.safetensors": write_tensors(directory / "backbone.safetensors", teacher[0].state_dict()),
        "head.safetensors": write_tensors(directory / "head.safetensors", teacher[1].state_dict()),
    }
    if student is not None:
        parts = zip(("backbone", "head"), student, strict=True)
        tensors = {f"{part}.{name}": value for part, module in parts for name, value in module.state_dict().items()}
        digests["student.safetensors"] = write_tensors(directory / "student.safetensors", tensors)
    write_json(directory / "run.json", {"schema": SCHEMA, **info, "sha256": digests})


def read_run(path: str | Path) -> dict[str, Any]:
    """run.json of a run or of one of its kept epochs; raises CheckpointError when it is no run of this suite."""
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"no run at {directory}; expected a folder that holds run.json and backbone.safetensors")
    info = read_json(directory / "run.json")
    if info.get("schema") != SCHEMA:
        raise CheckpointError(f"{directory}/run.json has schema {info.get('schema')!r}, this version reads {SCHEMA}")
    for key, kind in REQUIRED.items():
        if not isinstance(info.get(key), kind):
            raise CheckpointError(f"{directory}/run.json is damaged ({key} is {info.get(key)!r:.60}); train again")
    return info


def load_backbone(path: str | Path, *, branch: str = "teacher") -> Backbone:
    """Backbone of a run (or of one of its kept epochs) in evaluation mode; branch teacher or student.

    Raises CheckpointError when a file is missing, damaged or does not fit the architecture that run.json describes.
    """
    info = read_run(path)
    tensors = _branch_tensors(Path(path), info, "backbone", branch)
    backbone = build_like(info["backbone"], tensors, Path(path))
    load_weights(backbone, tensors, Path(path))
    return backbone.eval().requires_grad_(False)


def build_like(spec: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Path) -> Backbone:
    """The backbone that a file describes, allocated only where its tensors have the sizes that it speaks of.

    Raises CheckpointError for another architecture, or a description that is none.
    """
    try:
        if int(spec.get("depth") or 0) > len(tensors):
            raise CheckpointError(f"{origin} is of another architecture: it speaks of {spec['depth']} blocks")
        with torch.device("meta"):
            check_weights(Backbone(**spec), tensors, origin)
        return Backbone(**spec)
    except (TypeError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"{origin}/run.json describes no backbone ({error})") from error


def load_head(path: str | Path, *, branch: str = "teacher") -> nn.Module:
    """Projection head of a run (for BITS the binary channel) in evaluation mode: features (n, D) -> logits (n, B)."""
    from pretrain.heads import build_head  # private to pre-training; needed only here

    info = read_run(path)
    if not isinstance(info.get("head"), dict):
        raise CheckpointError(f"{path} has no head; begin with its backbone alone: init.head=fresh")
    head = build_head(info["head"])
    load_weights(head, _branch_tensors(Path(path), info, "head", branch), Path(path))
    return head.eval().requires_grad_(False)


def _branch_tensors(directory: Path, info: dict[str, Any], part: str, branch: str) -> dict[str, Tensor]:
    if branch not in ("teacher", "student"):
        raise CheckpointError(f"unknown branch {branch!r}; use 'teacher' or 'student'")
    file = f"{part}.safetensors" if branch == "teacher" else "student.safetensors"
    if file not in info["sha256"]:
        raise CheckpointError(f"{directory} holds no {branch}: its objective trains one network; use branch=teacher")
    tensors = read_tensors(directory / file, info["sha256"][file])
    if branch == "teacher":
        return tensors
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def save_resume(directory: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Save everything a continued run needs; the pointer is switched last, the older state removed after that."""
    folder = directory / "resume"
    name = f"state-{state['step']:09d}.safetensors"
    sha256 = write_tensors(folder / name, tensors)
    write_json(folder / "latest.json", {**state, "file": name, "sha256": sha256})
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def resume_run(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest saved state of a run as (tensors, state), or None when there is none to continue."""
    pointer = Path(directory) / "resume" / "latest.json"
    if not pointer.exists():
        return None
    state = read_json(pointer)
    return read_tensors(pointer.parent / state["file"], state["sha256"]), state
