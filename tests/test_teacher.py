"""The moving-average teacher and the reset of heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.heads import MLPHead
from pretrain.optim import make_optimizer, parameter_groups
from pretrain.teacher import HeadReset, Network, hash_seed, make_teacher, update_teacher


class Mean(nn.Module):
    """A backbone that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 8), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(images.shape))
        return self.linear(images.mean((2, 3)))


def network() -> Network:
    torch.manual_seed(0)
    return Network(Mean(), MLPHead(8, hidden=16, out=4))


def test_views_of_one_size_share_a_backbone_call_and_keep_their_order() -> None:
    net, views = network(), [torch.rand(2, 3, s, s) for s in (8, 8, 4, 4, 4)]
    out = net(views)
    assert net.backbone.calls == [(4, 3, 8, 8), (6, 3, 4, 4)] and out.shape == (5, 2, 4)
    for v, view in enumerate(views):
        assert torch.allclose(out[v], net.head(net.backbone(view)), atol=1e-6)


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, "teacher"), (0.0, "student"), (0.25, "mix")])
def test_teacher_moves_by_its_momentum(momentum: float, expected: str) -> None:
    student, teacher = network(), make_teacher(network())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in teacher.parameters()]
    update_teacher(teacher, student, momentum)
    for old, new, s in zip(before, teacher.parameters(), student.parameters(), strict=True):
        wanted = {"teacher": old, "student": s, "mix": 0.25 * old + 0.75 * s}[expected]
        assert torch.allclose(new, wanted) and not new.requires_grad


def test_teacher_starts_as_an_exact_copy_without_stochastic_depth() -> None:
    from pretrain.backbones import Backbone

    small = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    student = Backbone("vit_tiny_patch16_224", drop_path=0.5, **small)
    teacher = make_teacher(student)
    rates = [m.drop_prob for m in student.modules() if hasattr(m, "drop_prob")]
    assert max(rates) == 0.5 and rates[0] < rates[-1]
    assert all(m.drop_prob == 0 for m in teacher.modules() if hasattr(m, "drop_prob"))
    for a, b in zip(student.state_dict().values(), teacher.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize(
    ("every", "at_start", "epochs"), [(0, False, []), (0, True, [0]), (3, False, [3, 6, 9]), (4, True, [0, 4, 8])]
)
def test_resets_fall_before_every_nth_epoch_and_never_at_the_end(every: int, at_start: bool, epochs: list[int]) -> None:
    reset = HeadReset(every_epochs=every, at_start=at_start)
    assert [e for e in range(10) if reset.due(e)] == epochs
    assert reset.last_before(9) == (epochs[-1] if epochs else None)


def trained() -> tuple[Network, Network, torch.optim.Optimizer]:
    student = network()
    teacher = make_teacher(student)
    optimizer = make_optimizer("adamw", parameter_groups(student))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    student([torch.rand(2, 3, 8, 8)] * 2).square().sum().backward()
    optimizer.step()
    return student, teacher, optimizer


@pytest.mark.parametrize("policy", ["copy", "ema", "independent"])
@pytest.mark.parametrize("clear", [True, False])
def test_a_reset_redraws_heads_and_leaves_backbones_bit_identical(policy: str, clear: bool) -> None:
    student, teacher, optimizer = trained()
    before = {n: v.clone() for n, v in student.state_dict().items()}
    old_teacher = {n: v.clone() for n, v in teacher.state_dict().items()}
    pointers = [p.data_ptr() for p in student.parameters()]
    HeadReset(every_epochs=1, teacher=policy, clear_moments=clear).apply(student.head, teacher.head, optimizer, 7, 3)
    assert pointers == [p.data_ptr() for p in student.parameters()]
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone")
    same = all(torch.equal(a, b) for a, b in zip(student.head.parameters(), teacher.head.parameters(), strict=True))
    kept = all(torch.equal(v, old_teacher[n]) for n, v in teacher.state_dict().items() if n.startswith("head"))
    assert (same, kept) == {"copy": (True, False), "ema": (False, True), "independent": (False, False)}[policy]
    assert all((p in optimizer.state) != clear for p in student.head.parameters())
    assert all(p in optimizer.state for p in student.backbone.parameters())


def test_the_draw_of_a_reset_depends_on_seed_and_epoch_alone() -> None:
    heads = []
    for seed, epoch in ((7, 3), (7, 3), (7, 4), (8, 3)):
        student, teacher, optimizer = trained()
        torch.rand(5)  # the global random state plays no part
        HeadReset(every_epochs=1).apply(student.head, teacher.head, optimizer, seed, epoch)
        heads.append(student.head.mlp[0].weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2]) and not torch.equal(heads[0], heads[3])


def test_unknown_reset_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="use copy, ema or independent"):
        HeadReset(teacher="swap")


def test_seeds_of_neighbouring_inputs_are_unrelated() -> None:
    seeds = {hash_seed(a, b, c) for a in range(10) for b in range(10) for c in range(-1, 9)}
    assert len(seeds) == 1000 and all(0 <= s < 2**63 for s in seeds)
