"""What pre-training is timed against: the bare networks, and another library where it is installed."""

from __future__ import annotations

import pytest
import torch

from pretrain.backbones import Backbone
from pretrain.bench import whole_network
from pretrain.bench_peers import PEERS, import_lightly, make_parts
from pretrain.teacher import Network

HEAD = {"hidden": 16, "bottleneck": 8, "prototypes": 12, "bn": False, "out": 16, "layers": 3}


def test_the_bare_networks_compute_what_training_does():
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", image_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    network = Network(backbone, torch.nn.Linear(32, 5))
    views = [torch.randn(3, 3, side, side) for side in (16, 16, 8)]
    rows = whole_network(network, views)
    assert rows.shape == (9, 5)
    torch.testing.assert_close(rows.view(3, 3, 5), network(views), rtol=1e-4, atol=1e-5)


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
