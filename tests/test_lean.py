"""A command starts without the compiler and without a tracker, and finds both where it asks for them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
START = """
import sys
import evaluate.run
early = [name for name in ("torch._dynamo", "sympy", "wandb") if name in sys.modules]
assert not early, f"imported unasked: {early}"
"""
USE = """
import torch
from torchvision.ops import roi_align
boxes = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]])
assert roi_align(torch.ones(1, 1, 4, 4), boxes, 2).shape == (1, 1, 2, 2)
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
import torch._dynamo
assert torch._dynamo.__file__ and torch._dynamo.utils.__file__, "a stand-in stayed"
"""


@pytest.mark.thorough
@pytest.mark.parametrize("program", [START, START + USE])
def test_the_compiler_and_trackers_load_when_used_and_not_before(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
