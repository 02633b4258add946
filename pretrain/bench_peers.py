"""The same objective as another library trains it, for `python -m pretrain.bench --peers`.

Same images, crops and colours (as the library's own transforms make them), network, head, optimiser, batch, precision
and decoding processes; the loop is the one of the library's examples: a forward pass for every view.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pretrain.backbones import Backbone
from pretrain.prepare import Run

INSTALL = "pip install -e '.[bench]'"
PEERS = {"dino": "lightly", "barlow_twins": "lightly", "vicreg": "lightly"}


class Viewed(Dataset):
    """Images of a run's data through a transform."""

    def __init__(self, images: Any, transform: Callable[[Any], list[Tensor]]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.images.image(index))


def import_lightly() -> Any:
    """The library, without its question home whether there is a newer one; raises ValueError naming the command."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
    try:
        import lightly
        import lightly.loss
        import lightly.models.modules.heads
        import lightly.transforms
    except ImportError as error:
        raise ValueError(f"the peer to compare with is not installed: {INSTALL}") from error
    return lightly


def make_transform(lightly: Any, run: Run) -> Callable[[Any], list[Tensor]]:
    """The run's views as transforms of the library."""
    backbone = run.network.backbone
    normalize = {"mean": list(backbone.mean), "std": list(backbone.std)}
    made = []
    for view in run.loader.dataset.views:  # type: ignore[attr-defined]
        bright, contrast, saturation, hue = view.jitter
        made.append(
            lightly.transforms.dino_transform.DINOViewTransform(
                crop_size=view.size, crop_scale=tuple(view.scale), hf_prob=view.flip_p, cj_prob=view.jitter_p,
                cj_strength=1.0, cj_bright=bright, cj_contrast=contrast, cj_sat=saturation, cj_hue=hue,
                random_gray_scale=view.gray_p, gaussian_blur=view.blur_p, sigmas=tuple(view.blur_sigma),
                solarization_prob=view.solarize_p, normalize=normalize,
            )
        )  # fmt: skip
    return lightly.transforms.multi_view_transform.MultiViewTransform(made)


class Peer:
    """A training step of the library; `step` takes the next batch of its loader."""

    def __init__(self, run: Run):
        lightly = import_lightly()
        self.run, self.device = run, run.fabric.device
        spec, config = dict(run.network.backbone.spec), run.info["config"]
        images = run.loader.dataset.images  # type: ignore[attr-defined]
        self.loader = DataLoader(
            Viewed(images, make_transform(lightly, run)), run.batches.batch_size, shuffle=True, drop_last=True,
            num_workers=run.trainer["workers"], persistent_workers=run.trainer["workers"] > 0,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        nets = []
        for _ in range(2):  # built twice: a head with weight norm cannot be copied
            backbone = Backbone(**spec, drop_path=config["backbone"]["drop_path"])
            head, loss = make_parts(lightly, run.info["objective"], backbone.dim, config["objective"]["head"])
            nets.append(nn.ModuleList([backbone, head]).to(self.device))
        self.student: Any = nets[0]
        self.teacher: Any = nets[1].requires_grad_(False) if run.teacher is not None else None
        if self.teacher is not None:
            self.teacher.load_state_dict(self.student.state_dict())
        self.loss, self.update = loss.to(self.device), lightly.models.utils.update_momentum
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, weight_decay=0.04)
        self.batches = self._for_ever()

    def _for_ever(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        """One step as in the library's examples."""
        views = [view.to(self.device, non_blocking=True) for view in next(self.batches)]
        with self.run.fabric.autocast():
            if self.teacher is not None:
                for ours, theirs in zip(self.student, self.teacher, strict=True):
                    self.update(ours, theirs, m=0.99)
                with torch.no_grad():
                    wanted = [self.teacher[1](self.teacher[0].vit(view)) for view in views[:2]]
            found = [self.student[1](self.student[0].vit(view)) for view in views]
            loss = self.loss(wanted, found, epoch=0) if self.teacher is not None else self.loss(*found)
        self.optimizer.zero_grad()
        loss.backward()
        if self.teacher is not None:
            self.student[1].cancel_last_layer_gradients(current_epoch=0)
        self.optimizer.step()


def make_parts(lightly: Any, objective: str, dim: int, head: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Head and loss of the library for an objective, as wide and deep as the run's; raises ValueError without one."""
    modules, losses = lightly.models.modules, lightly.loss
    if objective == "dino":
        made = modules.DINOProjectionHead(
            dim, head["hidden"], head["bottleneck"], head["prototypes"], batch_norm=head["bn"], freeze_last_layer=1
        )
        return made, losses.DINOLoss(head["prototypes"], warmup_teacher_temp_epochs=0)
    if objective == "barlow_twins":
        return modules.BarlowTwinsProjectionHead(dim, head["hidden"], head["out"]), losses.BarlowTwinsLoss()
    if objective == "vicreg":
        made = modules.heads.VICRegProjectionHead(dim, head["hidden"], head["out"], num_layers=head["layers"])
        return made, losses.VICRegLoss()
    raise ValueError(f"no peer for {objective}; choose objective={', '.join(PEERS)}")
