"""The README of an exported model: data, recipe, what was measured, preprocessing and licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.backbones import Backbone
from pretrain.checkpoint import network_digest, read_json

LOADING = {
    "timm": "import timm\n\nmodel = timm.create_model('local-dir:{folder}', pretrained=True).eval()",
    "hf": "from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained('{folder}'{extra}).eval()",
    "torchscript": "import torch\n\nmodel = torch.jit.load('{folder}/model.pt')  # images -> (feature, patches)",
    "onnx": "import onnxruntime\n\nmodel = onnxruntime.InferenceSession('{folder}/model.onnx')  # -> feature, patches",
}
LIBRARY = {"timm": "timm", "hf": "transformers", "torchscript": "pytorch", "onnx": "onnx"}
RECIPE = ("optim", "trainer", "views", "head_reset")  # sections of the configuration that the card shows


def measured(results: Path, backbone: Backbone) -> list[dict[str, Any]]:
    """Main scores of exactly these weights in leaderboard.json of a results folder; none where there is none."""
    file = results / "leaderboard.json"
    if not file.is_file():
        return []
    digest = network_digest(backbone)
    rows = read_json(file).get("scores", [])
    return [row for row in rows if row.get("weights_digest") == digest and row.get("main")]


def model_card(
    info: Mapping[str, Any], backbone: Backbone, scores: list[dict[str, Any]], *, form: str, folder: str, licence: str
) -> str:
    """Markdown with the front matter of the Hugging Face hub; `info` is run.json, `form` a name in `LOADING`."""
    data, objective = plain(info["data"].get("name", "unknown")), plain(info["objective"])
    tags = json.dumps(["image-feature-extraction", "self-supervised", str(info["objective"]), LIBRARY[form]])
    loading = LOADING[form].format(folder=folder, extra=", add_pooling_layer=False" if is_plain_vit(backbone) else "")
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        f"library_name: {LIBRARY[form]}",
        "pipeline_tag: image-feature-extraction",
        f"tags: {tags}",
        "---",
        f"# {plain(info['name'])}",
        "",
        f"A vision transformer of {backbone.dim} channels and {backbone.depth} blocks on patches of "
        f"{backbone.patch_size} pixels, pre-trained on {data} by {objective} without labels{label(info)}.",
        "",
        "```python",
        loading,
        "```",
        "",
        "## Images",
        "",
        f"RGB in [0, 1], shorter side to {backbone.resize} pixels (bicubic), centre crop of {backbone.image_size}, "
        f"minus {[round(v, 4) for v in backbone.mean]}, divided by {[round(v, 4) for v in backbone.std]}.",
        "",
        *section("Data", data_rows(info)),
        *section("Recipe", recipe_rows(info)),
        *measured_lines(scores),
        "## Licence",
        "",
        f"{plain(licence)}" if licence != "unknown" else "Not stated by whoever exported this model.",
    ]
    return "\n".join(lines) + "\n"


def is_plain_vit(backbone: Backbone) -> bool:
    """Whether transformers would look for a pooler that our weights do not have."""
    vit: Any = backbone.vit
    return not vit.num_reg_tokens and not hasattr(vit.blocks[0].ls1, "gamma")


def label(info: Mapping[str, Any]) -> str:
    """What has to be said of the objective."""
    return f" ({plain(info['label'])})" if info.get("label") else ""


def data_rows(info: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights were trained on."""
    return {key: value for key, value in info["data"].items() if not isinstance(value, dict | list)}


def recipe_rows(info: Mapping[str, Any]) -> dict[str, Any]:
    """How the weights were trained."""
    rows = {key: info.get(key) for key in ("objective", "epoch", "images_seen", "seed", "commit")}
    for name in RECIPE:
        values = info.get("config", {}).get(name)
        if values is not None:
            rows[name] = json.dumps(values)
    return rows


def section(title: str, rows: Mapping[str, Any]) -> list[str]:
    """A heading and a table of two columns."""
    return [f"## {title}", "", "| | |", "|:--|:--|", *(f"| {plain(k)} | {plain(v)} |" for k, v in rows.items()), ""]


def measured_lines(scores: list[dict[str, Any]]) -> list[str]:
    """The table of what was measured, with intervals and protocol fingerprints."""
    if not scores:
        return ["## Measured", "", "Nothing: these weights have no record in the results folder.", ""]
    rows = ["| Task | Data | Metric | Value | Protocol |", "|:--|:--|:--|--:|:--|"]
    for row in scores:
        cells = (row["task"], row["dataset"], row["metric"], value(row), row.get("fingerprint", ""))
        rows.append(f"| {' | '.join(plain(cell) for cell in cells)} |")
    return ["## Measured", "", "With 95 % bootstrap intervals where the task has samples.", "", *rows, ""]


def value(row: Mapping[str, Any]) -> str:
    """A score as the leaderboard shows it: fractions in percent."""
    scale = 100 if row.get("scale") == "fraction" else 1
    text = "–" if row["value"] is None else f"{scale * row['value']:.2f}"
    if row.get("low") is None or row.get("high") is None:
        return text
    return f"{text} ({scale * row['low']:.2f}–{scale * row['high']:.2f})"


def plain(text: Any) -> str:
    """Text of a table cell in which nothing is markup: names come from files."""
    kept = "".join(c if c.isprintable() else " " for c in str(text))
    return "".join(f"\\{c}" if c in "\\`*_[]|<>#" else c for c in kept)
