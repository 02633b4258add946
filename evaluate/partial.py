"""Results of single images or sequences, kept as they come, so that an interrupted task goes on where it was.

.cache/<task>/<key>/<process>.jsonl    one line a finished item: {"item": name, "result": ...}

Every process appends to a file of its own, so several may share a folder; a line that a kill cut short is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from evaluate.features import Store, identity
from evaluate.storage import plain
from pretrain.checkpoint import write_json


class Partial(Mapping[str, Any]):
    """What has been computed of one task on one dataset by one checkpoint: item name -> result, JSON types only."""

    def __init__(self, store: Store, backbone: Any, task: str, settings: Mapping[str, Any], dataset: str = ""):
        packages = {name: version(name) for name in ("torch", "timm", "pillow")}
        key = {"weights": identity(backbone), "precision": store.precision, "packages": packages}
        text = json.dumps(key | {"settings": plain(settings, "settings")}, sort_keys=True)
        self.folder = store.root.parent / task / hashlib.sha256(text.encode()).hexdigest()[:24]
        self._file = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._names = {"checkpoint": store.label, "dataset_name": dataset}  # for whoever lists the cache
        self._done: dict[str, Any] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_bytes().splitlines(keepends=True):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the end of a killed write, or damage: anew
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                    self._done[entry["item"]] = entry["result"]

    def add(self, item: str, result: Any) -> None:
        """Keep the result of one item."""
        if not (self.folder / "meta.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "meta.json", self._names)
        result = plain(result, item)
        with open(self._file, "ab") as file:
            file.write(json.dumps({"item": item, "result": result}).encode() + b"\n")
        self._done[item] = result

    def __getitem__(self, item: str) -> Any:
        return self._done[item]

    def __iter__(self) -> Any:
        return iter(self._done)

    def __len__(self) -> int:
        return len(self._done)
