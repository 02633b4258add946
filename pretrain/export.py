"""`python -m pretrain.export runs/NAME --to timm|hf|torchscript|onnx`: a folder that others load without this package.

timm          config.json, model.safetensors      timm.create_model("local-dir:FOLDER", pretrained=True)
hf            the same for transformers, with preprocessor_config.json      AutoModel.from_pretrained("FOLDER")
torchscript   model.pt      images (B, 3, S, S) -> feature (B, D), patches (B, h, w, D)
onnx          model.onnx      the same; needs the extra `export`

Each with README.md, a model card. Nothing leaves this machine unless --push-to-hub names a repository.
"""

from __future__ import annotations

import argparse
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import conversions
from pretrain.arguments import Parser
from pretrain.backbones import Backbone
from pretrain.checkpoint import CheckpointError, atomic_file, load_backbone, read_run, write_json, write_tensors
from pretrain.cli import one_line_errors
from pretrain.model_card import measured, model_card


class FeaturesOnly(nn.Module):
    """A backbone that returns plain tensors, as traced formats want it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) normalised -> feature (B, D), patches (B, h, w, D)."""
        found = self.backbone.features(images)
        return found.cls, found.patches


def to_timm(backbone: Backbone, folder: Path, info: dict[str, Any], licence: str) -> None:
    """A folder for plain timm; raises ValueError for a backbone that it cannot build."""
    write_json(folder / "config.json", conversions.timm_config(backbone, str(info["objective"]), licence))
    write_tensors(folder / "model.safetensors", backbone.vit.state_dict())


def to_transformers(backbone: Backbone, folder: Path, info: dict[str, Any], licence: str) -> None:
    """A folder for plain transformers; raises ValueError for a backbone that it cannot build."""
    write_json(folder / "config.json", conversions.transformers_config(backbone))
    write_json(folder / "preprocessor_config.json", conversions.transformers_preprocessor(backbone))
    write_tensors(folder / "model.safetensors", conversions.transformers_tensors(backbone), metadata={"format": "pt"})


def to_torchscript(backbone: Backbone, folder: Path, info: dict[str, Any], licence: str) -> None:
    """TorchScript by tracing, for images of the backbone's own size in batches of any size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes are constant, as it says
        module = torch.jit.trace(FeaturesOnly(backbone).eval(), example(backbone), check_trace=False)
    with atomic_file(folder / "model.pt") as file:
        torch.jit.save(module, file)
    write_json(folder / "preprocessing.json", view(backbone))


def to_onnx(backbone: Backbone, folder: Path, info: dict[str, Any], licence: str) -> None:
    """ONNX, for images of the backbone's own size in batches of any size; raises ValueError without the extra."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError("--to onnx needs the extra `export`: pip install -e '.[export]'") from error
    batch = {"images": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        FeaturesOnly(backbone).eval(), (example(backbone),), folder / "model.onnx", input_names=["images"],
        output_names=["feature", "patches"], dynamic_shapes=batch, dynamo=True, verbose=False, external_data=False,
    )  # fmt: skip
    write_json(folder / "preprocessing.json", view(backbone))


FORMATS: dict[str, Callable[[Backbone, Path, dict[str, Any], str], None]] = {
    "timm": to_timm,
    "hf": to_transformers,
    "torchscript": to_torchscript,
    "onnx": to_onnx,
}


def example(backbone: Backbone) -> Tensor:
    """Two images to trace with: one would be taken for a batch that is always of one."""
    return torch.zeros(2, 3, backbone.image_size, backbone.image_size)


def view(backbone: Backbone) -> dict[str, Any]:
    """The preprocessing that belongs to the weights."""
    about = {"resize": backbone.resize, "interpolation": "bicubic", "crop": backbone.image_size}
    return about | {"mean": list(backbone.mean), "std": list(backbone.std)}


def export(
    run: str | Path,
    form: str,
    output: str | Path,
    *,
    branch: str = "teacher",
    licence: str = "unknown",
    results: str | Path = "results",
) -> Path:
    """Write a run or one of its kept epochs to a new folder, whole or not at all; returns the folder.

    form: a name in `FORMATS`; results: where leaderboard.json has what was measured of these weights.
    Raises ValueError when the folder exists or the format cannot express the backbone, CheckpointError as `read_run`.
    """
    info, folder = read_run(run), Path(output)
    if folder.exists():
        raise ValueError(f"{folder} exists; remove it or give another --output")
    backbone = load_backbone(run, branch=branch)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        part.mkdir(parents=True)
        FORMATS[form](backbone, part, info, licence)
        scores = measured(Path(results), backbone)
        card = model_card(info, backbone, scores, form=form, folder=folder.name, licence=licence)
        (part / "README.md").write_text(card, encoding="utf-8")
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def push(folder: Path, name: str) -> str:
    """Upload a folder to the Hugging Face hub; returns its address; raises CheckpointError when that fails."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name)
    except Exception as error:  # whatever the hub's HTTP library raises
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"cannot push to {name} ({reason}); the folder {folder} is complete") from error
    return f"https://huggingface.co/{name}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m pretrain.export", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", help="runs/NAME, or runs/NAME/epochs/NNN")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format")
    parser.add_argument("--output", help="new folder (exports/NAME-FORMAT)")
    parser.add_argument("--branch", default="teacher", choices=("teacher", "student"), help="which network (teacher)")
    parser.add_argument("--licence", default="unknown", help="licence of the weights, an identifier such as apache-2.0")
    parser.add_argument("--results", default="results", help="folder of leaderboard.json, for the card (results)")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="also upload to the Hugging Face hub")
    return parser.parse_args(arguments)


def main() -> None:
    """Entry point of `python -m pretrain.export`."""
    asked = parse()
    with one_line_errors("pretrain"):
        name = Path(str(read_run(asked.run)["name"])).name  # a file's word: it cannot lead out of the folder
        output = asked.output or Path("exports") / f"{name}-{asked.to}"
        options = {"branch": asked.branch, "licence": asked.licence, "results": asked.results}
        folder = export(asked.run, asked.to, output, **options)
        print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
        if asked.push_to_hub:
            print(f"pushed to {push(folder, asked.push_to_hub)}")


if __name__ == "__main__":
    main()
