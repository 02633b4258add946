"""A checkpoint of another project as a `Backbone`: read, recognise, describe, compare, fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluate.layouts import architecture, files, huggingface
from evaluate.layouts.base import Renamed, Root, choose, find_roots, rename
from evaluate.layouts.coverage import Coverage, compare
from evaluate.layouts.dino import DINO
from evaluate.layouts.huggingface import HUGGINGFACE
from evaluate.layouts.openmmlab import OPENMMLAB
from evaluate.layouts.options import Options
from evaluate.layouts.torchvision_vit import TORCHVISION
from pretrain.backbones import Backbone
from pretrain.checkpoint import CheckpointError

LAYOUTS = (DINO, HUGGINGFACE, OPENMMLAB, TORCHVISION)
SEED = 0  # of what an accepted checkpoint lacks


@dataclass(frozen=True)
class Foreign:
    """A checkpoint that was recognised: the arguments of its `Backbone`, how well it fits, and its tensors."""

    spec: dict[str, Any]
    coverage: Coverage
    tensors: dict[str, Tensor]
    objective: str

    def backbone(self) -> Backbone:
        """The network with its weights in float32, in evaluation mode; raises CheckpointError on values not finite."""
        damaged = next((name for name, value in self.tensors.items() if not value.isfinite().all()), None)
        if damaged:
            raise CheckpointError(f"{self.coverage.origin}: {damaged} holds values that are not finite")
        given = {name: value.to(torch.float32, copy=True).contiguous() for name, value in self.tensors.items()}
        if self.coverage.missing:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                backbone = Backbone(**self.spec)
        else:
            with torch.device("meta"):
                backbone = Backbone(**self.spec)
        backbone.vit.load_state_dict(given, strict=False, assign=True)  # `coverage` has looked at every name
        return backbone.eval().requires_grad_(False)


def recognise(path: Path, origin: str, branch: str = "", options: Options = Options()) -> Foreign:  # noqa: B008
    """What a checkpoint is, before any network is built.

    path: a file or folder; origin: what the user called it; branch: a word of the network wanted (teacher, ...).
    Raises CheckpointError in one line when it is damaged, of an unknown naming, or does not fit and was not accepted.
    """
    contents = files.read(path)
    roots = find_roots(contents.tensors, LAYOUTS)
    if not roots:
        raise CheckpointError(
            f"{origin}: no vision transformer of a known naming ({', '.join(layout.name for layout in LAYOUTS)}) in "
            f"{len(contents.tensors)} tensors, which begin with {', '.join(list(contents.tensors)[:3]) or 'nothing'}"
        )
    root = choose(roots, branch, origin)
    renamed = rename(root, contents.tensors)
    try:
        spec, notes = specify(contents, root, renamed.tensors, options, origin)
        with torch.device("meta"):
            wanted = Backbone(**spec).vit.state_dict()
    except (ValueError, TypeError, ZeroDivisionError) as error:  # a configuration file may say anything
        raise CheckpointError(str(error) if origin in str(error) else f"{origin}: {error}") from error
    notes += precisions(renamed)
    coverage = compare(origin, root, renamed, wanted, contents.tensors, notes)
    coverage.refuse(options.accept)
    fitting = {name: value for name, value in renamed.tensors.items() if name in wanted}
    return Foreign(spec, coverage, fitting, objective(contents, renamed))


def specify(
    contents: files.Contents, root: Root, tensors: Mapping[str, Tensor], options: Options, origin: str
) -> tuple[dict[str, Any], list[str]]:
    """Arguments of `Backbone`, and what had to be assumed: the user's word goes before the file's, that before ours."""
    found = architecture.from_tensors(tensors, origin)
    if root.layout.bare and "norm.weight" not in tensors:
        found["final_norm"] = False
    config, notes = contents.config, []
    spec: dict[str, Any] = {"name": architecture.BASE, "norm_eps": root.layout.eps, "positions": root.layout.positions}
    if root.layout is DINO and "reg_tokens" in found and "architecture" not in config:
        spec["positions"] = "timm"  # DINOv2 with registers resamples with antialiasing, and without the offset
    view: dict[str, Any] = {}
    if "architecture" in config:
        spec = architecture.from_timm(config, found["depth"], "cls_token" in tensors) | {"positions": "timm"}
        found = {key: found[key] for key in ("native_size",)}
        view = architecture.timm_view(config)
    else:
        said = huggingface.settings(config) if root.layout is HUGGINGFACE and config else {}
        number, assumed = architecture.heads(found["embed_dim"], options, said.pop("num_heads", None), root.prefix)
        found, notes = found | {"num_heads": number}, [assumed] if assumed else []
        check_config(config, found, origin)
        if root.layout is HUGGINGFACE and not config:
            said["norm_eps"] = 1e-6 if "init_values" in found else 1e-12  # the defaults of DINOv2 and of ViT
        view = huggingface.view(contents.preprocessor)
        spec |= said
    if "image_size" not in view and options.size is None:
        common, assumed = architecture.common_view(found["native_size"], tensors)
        view, notes = common | view, [*notes, assumed]
    spec |= found | view
    chosen: dict[str, Any] = {"norm_eps": options.eps, "act_layer": options.act, "positions": options.positions}
    chosen |= {"image_size": options.size, "resize": options.resize, "mean": options.mean, "std": options.std}
    if options.size and not options.resize:
        spec.pop("resize", None)
    if "architecture" in config and options.heads:
        chosen["num_heads"] = options.heads
    spec |= {key: value for key, value in chosen.items() if value is not None}
    return tidy(spec), notes


def tidy(spec: dict[str, Any]) -> dict[str, Any]:
    """The arguments without those that say what is so anyway."""
    usual = {"positions": "timm", "norm_eps": 1e-6, "qkv_bias": True, "native_size": spec["image_size"]}
    return {key: value for key, value in spec.items() if key not in usual or value != usual[key]}


def check_config(config: Mapping[str, Any], found: Mapping[str, Any], origin: str) -> None:
    """Raise CheckpointError when config.json of transformers speaks of another network than the weights."""
    names = {"hidden_size": "embed_dim", "num_hidden_layers": "depth", "patch_size": "patch_size"}
    for name, key in names.items():
        if config.get(name, found[key]) != found[key]:
            raise CheckpointError(f"{origin}: config.json says {name} {config[name]}, the weights show {found[key]}")


def precisions(renamed: Renamed) -> list[str]:
    """A note when weights are stored in other than single precision."""
    kinds = {str(value.dtype).removeprefix("torch.") for value in renamed.tensors.values()} - {"float32"}
    return [f"stored as {', '.join(sorted(kinds))}, computed in float32"] if kinds else []


def objective(contents: files.Contents, renamed: Renamed) -> str:
    """How the weights were trained, where the file gives it away; else "imported"."""
    if "architecture" in contents.config:
        about = contents.config.get("pretrained_cfg") or {}
        return str(about.get("tag") or contents.config.get("tag") or "imported")
    if contents.config.get("model_type") in ("dinov2", "dinov2_with_registers"):
        return "dinov2"
    if contents.config.get("model_type") == "vit_mae" or any("decoder_embed" in name for name in contents.tensors):
        return "mae"
    return "dinov2" if "mask_token" in renamed.aside and "blocks.0.ls1.gamma" in renamed.tensors else "imported"
