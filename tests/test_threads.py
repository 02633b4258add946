"""Training in a few threads of its own, with workers that finish the views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import train as loop
from tests.training import EQUAL, assert_equal_up_to_sums, run_tiny


def test_threads_of_its_own_change_nothing_but_the_order_of_sums(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = [], loop.train_step

    def noting(run: Any, batch: dict[str, Any], epoch: int) -> dict[str, torch.Tensor]:
        seen.append((torch.get_num_threads(), sorted(batch)))
        return original(run, batch, epoch)

    monkeypatch.setattr(loop, "train_step", noting)
    before = torch.get_num_threads()
    whole = run_tiny(images, "dino", tmp_path / "whole", *EQUAL)
    assert set(map(str, seen)) == {str((before, ["bad", "colours", "crops"]))}
    seen.clear()
    own = run_tiny(images, "dino", tmp_path / "own", *EQUAL, f"trainer.threads={before + 1}", "trainer.accumulate=3")
    assert set(map(str, seen)) == {str((before + 1, ["bad", "views"]))} and torch.get_num_threads() == before
    assert_equal_up_to_sums(whole, own)


@pytest.mark.parametrize("threads", ["0", "1.5", "many"])
def test_threads_that_are_no_number_are_refused(threads: str, images: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=f"trainer.threads={threads} must be a whole number of at least 1"):
        run_tiny(images, "dino", tmp_path, f"trainer.threads={threads}")
    assert torch.get_num_threads() == before
