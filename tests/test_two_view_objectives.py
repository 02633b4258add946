"""IMSVD, MUSIC, Barlow Twins and VICReg against published reference values, and the facts their formulas imply."""

from __future__ import annotations

import math

import pytest
import torch
from golden_values import close, gradient, load

from pretrain.objectives.barlow_twins import BarlowTwins, barlow_twins_loss
from pretrain.objectives.imsvd import joint_entropy_loss
from pretrain.objectives.music import Music
from pretrain.objectives.segments import block_probabilities, joint_probabilities
from pretrain.objectives.vicreg import vicreg_loss

IMSVD, BARLOW, VICREG = load("imsvd_loss.npz"), load("barlow_twins_loss.npz"), load("vicreg_loss.npz")


@pytest.mark.parametrize("case", range(2))
def test_joint_entropy_equals_the_reference(case: int) -> None:
    g = {key.removeprefix(f"c{case}_"): value for key, value in IMSVD.items() if key.startswith(f"c{case}_")}
    x1, x2 = g["x1"].requires_grad_(), g["x2"].requires_grad_()
    coefficients = {f"{name}_coeff": g[f"{name}_coeff"] for name in ("dia", "off", "ti")}
    terms = joint_entropy_loss(x1, x2, bin_size=g["bin_size"], temperature=g["temperature"], **coefficients)
    for ours, key in zip(terms, ("loss", "dia", "off", "ti"), strict=True):
        close(ours, g[key])
    for ours, key in zip(gradient(terms[0], x1, x2), ("grad_x1", "grad_x2"), strict=True):
        close(ours, g[key])
    p1, p2 = (block_probabilities(x, g["bin_size"], g["temperature"]) for x in (x1, x2))
    close(joint_probabilities(p1, p2), g["joint"])


def test_blocks_of_the_joint_matrix_sum_to_one_and_views_may_be_swapped() -> None:
    x1, x2 = torch.randn(9, 12, dtype=torch.float64), torch.randn(9, 12, dtype=torch.float64)
    joint = joint_probabilities(block_probabilities(x1, 4, 1.0), block_probabilities(x2, 4, 1.0))
    close(joint.view(3, 4, 3, 4).sum((1, 3)), torch.ones(3, 3), 1e-6)
    forward, backward = (joint_entropy_loss(*pair, bin_size=4, temperature=1.0)[0] for pair in ((x1, x2), (x2, x1)))
    close(forward, backward, 1e-12)


def test_ideal_variables_reach_the_ideal_values() -> None:
    k = 3  # balanced one-hot, equal in both views, independent: all k^2 combinations of two variables once
    codes = torch.cartesian_prod(torch.arange(k), torch.arange(k))
    x = torch.cat([torch.nn.functional.one_hot(codes[:, i], k) for i in range(2)], 1).double() * 1e3
    _, dia, off, ti = joint_entropy_loss(x, x, bin_size=k, temperature=1.0)
    close(dia, -math.log(k), 1e-5)
    close(off, -2 * math.log(k), 1e-5)
    assert ti.abs() < 1e-6


def test_music_is_the_same_loss_under_its_label() -> None:
    head = {"out": 12}
    x = torch.randn(2, 6, 12)
    close(Music(head, bins=4)(x, None).loss, joint_entropy_loss(x[0], x[1], bin_size=4, temperature=1.0)[0])
    assert Music.label == "inferred loss and IMSVD hyper-parameters"
    with pytest.raises(ValueError, match="bins=5 must divide"):
        Music(head, bins=5)


@pytest.mark.parametrize("case", range(2))
def test_barlow_twins_equals_the_reference(case: int) -> None:
    a, b = BARLOW[f"c{case}_z_a"].requires_grad_(), BARLOW[f"c{case}_z_b"].requires_grad_()
    loss = barlow_twins_loss(a, b, lambda_=BARLOW[f"c{case}_lambda"])
    close(loss, BARLOW[f"c{case}_loss"])
    for ours, key in zip(gradient(loss, a, b), ("grad_a", "grad_b"), strict=True):
        close(ours, BARLOW[f"c{case}_{key}"])


def test_barlow_twins_is_zero_for_equal_decorrelated_views() -> None:
    z = torch.linalg.qr(torch.cat([torch.ones(16, 1), torch.randn(16, 5)], 1).double()).Q[:, 1:] * 100
    assert barlow_twins_loss(z, z, lambda_=1.0) < 1e-6


@pytest.mark.parametrize("case", range(2))
def test_vicreg_equals_the_reference(case: int) -> None:
    a, b = VICREG[f"c{case}_z_a"].requires_grad_(), VICREG[f"c{case}_z_b"].requires_grad_()
    coefficients = {key: VICREG[f"c{case}_{key}"] for key in ("sim_coeff", "std_coeff", "cov_coeff", "eps")}
    terms = vicreg_loss(a, b, **coefficients)
    for ours, key in zip(terms, ("loss", "invariance", "variance", "covariance"), strict=True):
        close(ours, VICREG[f"c{case}_{key}"])
    for ours, key in zip(gradient(terms[0], a, b), ("grad_a", "grad_b"), strict=True):
        close(ours, VICREG[f"c{case}_{key}"])


def test_vicreg_has_no_covariance_in_one_dimension() -> None:
    assert vicreg_loss(torch.randn(8, 1), torch.randn(8, 1))[3].abs() < 1e-6


def test_bad_shapes_and_constants_are_refused() -> None:
    x = torch.randn(4, 6)
    for call in (
        lambda: joint_entropy_loss(x, x, bin_size=4, temperature=1.0),
        lambda: joint_entropy_loss(x, x, bin_size=3, temperature=0.0),
        lambda: joint_entropy_loss(x, x[:2], bin_size=3, temperature=1.0),
        lambda: barlow_twins_loss(x, x[:, :3], lambda_=0.005),
        lambda: barlow_twins_loss(x, x, lambda_=0.005, norm_scope="all"),
        lambda: vicreg_loss(x[:1], x[:1]),
    ):
        with pytest.raises(ValueError):
            call()


def test_a_batch_too_small_for_its_statistic_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="needs at least 2 images in all processes, got 1; raise trainer.batch_size"):
        BarlowTwins({"out": 8}).check_batch(1, 2)
