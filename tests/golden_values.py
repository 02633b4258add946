"""Golden values: published reference results for seeded inputs, and how closely ours must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, Any]:
    """Arrays of a golden file as float64 tensors (labels and indices keep their type), scalars as Python numbers."""
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) if file[key].ndim else file[key].item() for key in file.files}


def close(ours: Any, golden: Any, tolerance: float = 1e-5) -> None:
    """Assert max|a - b| <= tolerance max|b|."""
    a, b = (
        x.detach().double() if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64)
        for x in (ours, golden)
    )
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    assert (a - b).abs().max() <= tolerance * b.abs().max(), f"off by {(a - b).abs().max():.3g}"


def gradient(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Gradients of a scalar with respect to the inputs."""
    return list(torch.autograd.grad(loss, inputs))


def by_view(rows: Tensor, views: int) -> Tensor:
    """View-major rows (V N, D) -> (V, N, D)."""
    return rows.view(views, -1, rows.shape[-1])
