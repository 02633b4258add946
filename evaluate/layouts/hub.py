"""Names that ask for the network: `hf:org/name`, and `timm:NAME`, whose weights lie on the same hub.

What was fetched before is found in the hub's cache without the network.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import timm
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from evaluate.layouts.files import weight_files
from pretrain.checkpoint import CheckpointError

ABOUT = ["config.json", "preprocessor_config.json"]
FORMATS = (
    ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"],
)


def repository(name: str) -> str:
    """Where the hub keeps the weights of a timm name; raises CheckpointError with the nearest names when nowhere."""
    if not timm.is_model(name) or not name.startswith("vit_"):
        close = difflib.get_close_matches(name, timm.list_pretrained("vit_*"), 3)
        raise CheckpointError(
            f"unknown timm model {name!r}; nearest: {', '.join(close) or 'none, see timm.list_pretrained'}"
        )
    about = timm.get_pretrained_cfg(name)
    if about is None or not about.hf_hub_id:
        raise CheckpointError(f"timm has no weights for {name!r}; see timm.list_pretrained('vit_*')")
    full = f"{about.architecture}.{about.tag}" if about.tag else str(about.architecture)
    return f"{about.hf_hub_id}{full}" if about.hf_hub_id.endswith("/") else str(about.hf_hub_id)


def fetch(repo: str, name: str) -> Path:
    """Folder on this machine with configuration and weights of a repository on the hub, from the cache if it is there.

    name: what the user called it. Raises CheckpointError saying what to do where there is no network, no such
    repository, or nothing in it that can be read.
    """
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
        weight_files(folder)
        return folder
    except Exception:  # not there, or in part: the network is asked
        pass
    try:
        for patterns in FORMATS:
            folder = Path(snapshot_download(repo, allow_patterns=[*ABOUT, *patterns]))
            if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
                return folder
    except GatedRepoError as error:
        raise CheckpointError(f"{name}: its owner asks for a login; run `hf auth login`, then again") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{name}: the hub has no public repository {repo!r}") from error
    except Exception as error:  # whatever the hub's HTTP library raises
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{name} is not in the local cache and the hub cannot be reached ({reason}); where there is a network, run "
            f"`hf download {repo} --local-dir DIR`, and give the folder DIR in place of the name"
        ) from error
    raise CheckpointError(f"{name}: the repository {repo!r} holds neither model.safetensors nor pytorch_model.bin")
