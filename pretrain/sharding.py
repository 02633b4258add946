"""Networks in shards over all processes (FSDP2): each keeps a slice of every weight, gradient and moment.

A unit is whole only while it computes. Blocks are units, so that one block at a time is whole; backbone and head are
units too, because health figures call them by themselves. What reads or writes tensors between forward passes
(clipping, optimisers, teacher, head reset, saving) goes through `distributed.local`, `norms`, `gathered` and `assign`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pretrain.teacher import Network


def shard(network: Network, device_type: str) -> Network:
    """Shard a network in place over all processes; its tensors become DTensors on the device, unit by unit.

    The process group must be there.
    """
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    units: list[nn.Module] = [*network.backbone.vit.blocks, network.backbone, network.head, network]
    for unit in units:
        # True, not the default: a root that stays whole after its forward pass would hide the teacher's shards
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    return network


class Sharded(DDPStrategy):
    """Data-parallel training as Fabric starts it, with shards in place of copies."""

    def module_to_device(self, module: nn.Module) -> None:
        """Nothing: `shard` moves a unit at a time, so that the whole network is never on one device."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """Shard the module."""
        assert isinstance(module, Network)
        return shard(module, self.root_device.type)


@contextlib.contextmanager
def gradients_stay(network: nn.Module) -> Iterator[None]:
    """Keep the gradients of a sharded network on each process, to be reduced with those of a later part of the step."""
    network.set_requires_gradient_sync(False)  # type: ignore[operator]
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)  # type: ignore[operator]
