"""The library that pre-training is timed against, where it is installed."""

from __future__ import annotations

import pytest
import torch

from pretrain.bench_peers import PEERS, import_lightly, make_parts

HEAD = {"hidden": 16, "bottleneck": 8, "prototypes": 12, "bn": False, "out": 16, "layers": 3}


@pytest.mark.parametrize("objective", PEERS)
def test_every_peer_has_a_head_and_a_loss_that_trains(objective):
    pytest.importorskip("lightly")
    torch.manual_seed(0)
    head, loss = make_parts(import_lightly(), objective, 6, HEAD)
    views = [head(torch.randn(8, 6)) for _ in range(2)]
    value = loss([view.detach() for view in views], views, epoch=0) if objective == "dino" else loss(*views)
    value.backward()
    assert torch.isfinite(value) and sum(p.grad.abs().sum() for p in head.parameters() if p.grad is not None) > 0


def test_an_objective_without_a_peer_is_named():
    pytest.importorskip("lightly")
    with pytest.raises(ValueError, match="no peer for simdino; choose objective=dino, barlow_twins, vicreg"):
        make_parts(import_lightly(), "simdino", 6, HEAD)
