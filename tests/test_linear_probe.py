"""The linear sweep: the published reference's weights and curves, divergence, selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluate.probes import Sweep, Tokens, batch_table, select
from evaluate.views import RandomCrops, crop_box
from pretrain.datasets import ImageFolder

GOLDEN = np.load(Path(__file__).parent / "golden" / "eval" / "linear_sweep.npz")
INPUTS = ((1, False), (1, True), (4, False), (4, True))


def golden_tokens(split: str) -> tuple[Tokens, torch.Tensor]:
    cls, average = torch.from_numpy(GOLDEN[f"{split}_cls"]), torch.from_numpy(GOLDEN[f"{split}_avg"])
    return Tokens(cls, average), torch.from_numpy(GOLDEN[f"{split}_labels"])


def golden_sweep() -> Sweep:
    tokens, _ = golden_tokens("train")
    rates = [float(rate) * int(GOLDEN["batch_size"]) / 256 for rate in GOLDEN["learning_rates"]]
    starts = {kind: torch.from_numpy(GOLDEN[f"init_w_{kind[0]}_{int(kind[1])}"]) for kind in INPUTS}
    widths = {kind: tokens.width(kind) for kind in INPUTS}
    return Sweep(widths, rates, int(GOLDEN["num_classes"]), int(GOLDEN["iterations"]), starts=starts)


@pytest.fixture(scope="module")
def trained() -> tuple[Sweep, np.ndarray]:
    """The golden sweep after its last step, and top-1 of every head at the iterations of the golden curve."""
    sweep, (train, labels), (val, val_labels) = golden_sweep(), golden_tokens("train"), golden_tokens("val")
    curve = []
    for step, rows in enumerate(torch.from_numpy(GOLDEN["batches"]), start=1):
        sweep.step(train.rows(rows), labels[rows])
        if step in GOLDEN["curve_iters"]:
            curve.append((sweep.places(val, val_labels) == 0).double().mean(1).numpy())
    return sweep, np.array(curve)


def test_every_head_ends_with_the_weights_of_the_reference(trained):
    sweep, _ = trained
    assert [head[:2] for head in sweep.heads] == [(int(n), bool(avg)) for n, avg, _ in GOLDEN["config"]]
    for head in range(len(sweep.heads)):
        weight, bias = sweep.weights(head)
        np.testing.assert_allclose(weight.numpy(), GOLDEN[f"final_w_{head}"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(bias.numpy(), GOLDEN[f"final_b_{head}"], rtol=1e-3, atol=1e-5)


def test_the_curves_of_all_heads_are_those_of_the_reference(trained):
    _, curve = trained
    scale = 100 if GOLDEN["curve_top1"].max() > 1 else 1
    one_sample = scale / len(GOLDEN["val_labels"])
    assert np.abs(scale * curve - GOLDEN["curve_top1"]).max() <= one_sample * 1.001


def test_the_selected_head_is_that_of_the_reference(trained):
    _, curve = trained
    assert select(curve[-1].tolist()) == int(GOLDEN["best_config"])


def test_the_first_head_wins_among_equals():
    assert select([0.1, 0.5, 0.5, 0.2]) == 1


def test_a_fused_head_takes_the_steps_of_torch_sgd_on_its_own_loss():
    torch.manual_seed(0)
    tokens, labels = Tokens(torch.randn(4, 40, 6), torch.randn(40, 6)), torch.randint(0, 5, (40,))
    start, steps, rates = torch.randn(5, 30) * 0.01, 12, (0.05, 2.0)
    sweep = Sweep({(4, True): 30}, rates, 5, steps, starts={(4, True): start})
    layer = nn.Linear(30, 5)
    layer.load_state_dict({"weight": start.clone(), "bias": torch.zeros(5)})
    optimizer = torch.optim.SGD(layer.parameters(), lr=rates[1], momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for rows in batch_table(40, 16, steps, seed=0):
        sweep.step(tokens.rows(rows), labels[rows])
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(tokens.input((4, True))[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    weight, bias = sweep.weights(1)
    torch.testing.assert_close(weight, layer.weight.data, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bias, layer.bias.data, rtol=1e-4, atol=1e-6)


def test_a_head_that_diverges_stops_and_leaves_the_others_as_they_were():
    torch.manual_seed(0)
    tokens, labels = Tokens(torch.randn(1, 32, 4), None), torch.randint(0, 3, (32,))
    alone = Sweep({(1, False): 4}, [0.1], 3, 20, seed=1)
    both = Sweep({(1, False): 4}, [0.1, 1e38], 3, 20, seed=1)
    for rows in batch_table(32, 8, 20, seed=0):
        alone.step(tokens.rows(rows), labels[rows])
        both.step(tokens.rows(rows), labels[rows])
    assert both.diverged == [1] and alone.diverged == []
    torch.testing.assert_close(both.weights(0)[0], alone.weights(0)[0], rtol=1e-5, atol=1e-7)
    assert (both.places(tokens, labels)[1] == 3).all(), "a diverged head was counted right somewhere"


def test_equal_logits_count_for_the_lower_class():
    sweep = Sweep({(1, False): 2}, [0.1], 4, 1, starts={(1, False): torch.zeros(4, 2)})
    tokens, labels = Tokens(torch.randn(1, 4, 2), None), torch.arange(4)
    assert sweep.places(tokens, labels).tolist() == [[0, 1, 2, 3]]
    assert sweep.predictions(0, tokens).tolist() == [0, 0, 0, 0]


def test_places_and_predictions_among_some_classes_pass_over_the_others():
    start = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
    sweep = Sweep({(1, False): 1}, [0.1], 4, 1, starts={(1, False): start})
    tokens, labels, among = Tokens(torch.ones(1, 2, 1), None), torch.tensor([1, 3]), torch.tensor([1, 3])
    assert sweep.places(tokens, labels).tolist() == [[2, 3]] and sweep.predictions(0, tokens).tolist() == [0, 0]
    assert sweep.places(tokens, labels, among).tolist() == [[0, 1]]
    assert sweep.predictions(0, tokens, among).tolist() == [1, 1]


def test_every_row_is_used_equally_often_and_no_batch_is_short():
    table = batch_table(10, 4, 5, seed=0)
    assert table.shape == (5, 4)
    assert torch.bincount(table.flatten()).tolist() == [2] * 10
    assert not torch.equal(table, batch_table(10, 4, 5, seed=1))


@pytest.mark.parametrize(
    "name, filter", [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)]
)
def test_training_crops_are_resized_by_the_filter_of_the_protocol(images, name, filter):
    train = ImageFolder(images, "train")
    view, row, error = RandomCrops(train, 16, 3, name)[5, 7]
    rng = np.random.default_rng((3, 5))
    image = train.image(7)
    expected = np.array(image.resize((16, 16), filter, box=crop_box(*image.size, rng)))
    expected = expected[:, ::-1] if rng.random() < 0.5 else expected
    assert (row, error) == (7, "") and np.array_equal(view, expected)
    with pytest.raises(ValueError, match="'nearest'.*bicubic, bilinear"):
        RandomCrops(train, 16, 3, "nearest")
