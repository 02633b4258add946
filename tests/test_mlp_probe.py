"""The MLP probe: its heads are torch's own, side by side; curves from before training; pictures; rows from files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen import count_forward, folder_data, save_tiny_run, subject
from PIL import Image
from torch import nn

from evaluate.probes import Sweep, Tokens, batch_table
from evaluate.tasks import _probe
from evaluate.tasks._curves import as_table, draw
from evaluate.tasks._probe import StoredTokens
from evaluate.tasks.base import Unavailable
from evaluate.tasks.linear import LinearCached
from evaluate.tasks.linear_fixed import LinearFixed
from evaluate.tasks.mlp import MLP, MLPCached

ONE = (1, False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def toy(n: int = 48, width: int = 6, classes: int = 5) -> tuple[Tokens, torch.Tensor, list[torch.Tensor]]:
    """Tokens, labels and first weights of a head with 7 hidden units."""
    torch.manual_seed(0)
    start = [torch.randn(7, width) * 0.3, torch.randn(classes, 7) * 0.3]
    return Tokens(torch.randn(1, n, width), None), torch.randint(0, classes, (n,)), start


def plain_training(tokens: Tokens, labels: torch.Tensor, start: list[torch.Tensor], rate: float, table) -> nn.Module:
    """The same head by torch's modules, optimiser and schedule."""
    head = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 5))
    zeros = {"0.bias": torch.zeros(7), "2.bias": torch.zeros(5)}
    head.load_state_dict({"0.weight": start[0].clone(), "2.weight": start[1].clone()} | zeros)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(table))
    for rows in table:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(tokens.cls[0, rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return head


def test_heads_of_all_rates_take_the_steps_of_torch_on_their_own_loss():
    tokens, labels, start = toy()
    rates, table = (0.02, 0.3, 2.0), batch_table(48, 16, 20, seed=0)
    sweep = Sweep({ONE: 6}, rates, 5, len(table), hidden=7, starts={ONE: start})
    for rows in table:
        sweep.step(tokens.rows(rows), labels[rows])
    for index, rate in enumerate(rates):
        head = plain_training(tokens, labels, start, rate, table)
        for found, expected in zip(sweep.weights(index), head.parameters(), strict=True):
            torch.testing.assert_close(found, expected.data, rtol=1e-4, atol=1e-5)
        assert torch.equal(sweep.predictions(index, tokens), head(tokens.cls[0]).argmax(1))


def test_first_weights_are_normal_with_std_002_the_same_for_every_rate_and_biases_zero():
    first, first_bias, second, second_bias = Sweep({ONE: 64}, [0.1], 10, 1, hidden=512, seed=3).weights(0)
    assert first.shape == (512, 64) and second.shape == (10, 512)
    assert first.std().item() == pytest.approx(0.02, rel=0.05) == pytest.approx(second.std().item(), rel=0.05)
    assert not first_bias.any() and not second_bias.any()
    two = Sweep({ONE: 64}, [0.1, 0.2], 10, 1, hidden=512, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(two.weights(0), two.weights(1), strict=True))
    assert torch.equal(two.weights(1)[0], first)


def test_a_head_that_diverges_leaves_the_others_as_they_were():
    tokens, labels, start = toy()
    alone, both = (Sweep({ONE: 6}, rates, 5, 20, hidden=7, starts={ONE: start}) for rates in ([0.1], [1e38, 0.1]))
    for rows in batch_table(48, 8, 20, seed=0):
        alone.step(tokens.rows(rows), labels[rows])
        both.step(tokens.rows(rows), labels[rows])
    assert both.diverged == [0] and alone.diverged == []
    for a, b in zip(both.weights(1), alone.weights(0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert (both.places(tokens, labels)[0] == 5).all()


def test_places_and_predictions_do_not_depend_on_how_many_logits_are_held(monkeypatch):
    tokens, labels, start = toy()
    sweep = Sweep({ONE: 6}, [0.1, 0.2], 5, 20, hidden=7, starts={ONE: start})
    whole = sweep.places(tokens, labels), sweep.predictions(1, tokens)
    monkeypatch.setattr("evaluate.probes.LOGITS_AT_ONCE", 100)
    assert len(sweep.spans(48)) > 3
    assert torch.equal(sweep.places(tokens, labels), whole[0]) and torch.equal(sweep.predictions(1, tokens), whole[1])


# ---- the tasks


def test_curves_begin_before_training_and_end_at_the_reported_accuracy(images, run, cache):
    result = MLPCached(hidden=32, rates=[1e-2, 1.0], epochs=4, batch_size=8).run(
        subject(run, folder_data(images), cache)
    )
    curve = result.outcomes["curve_top1"]
    assert curve.shape == (5, 2) and (curve[0] == curve[0, 0]).all(), "untrained heads are equal"
    assert curve[-1].max() == result.scores["top1"].value > curve[0, 0] + 0.2
    lines = list(csv.DictReader(io.StringIO(result.files["curve.csv"].decode())))
    assert {line["epoch"] for line in lines} == set("01234") and len(lines) == 10
    assert float(lines[4]["top1"]) == pytest.approx(curve[4, 0], abs=1e-6)


def test_the_exact_probe_shares_one_forward_pass_of_fresh_crops_among_rates(images, run, cache):
    given = subject(run, folder_data(images), cache)
    given.features("test")
    with count_forward(given.backbone) as sizes:
        MLP(hidden=8, epochs=2, batch_size=12).run(given)
    assert sum(sizes) == 2 * 36
    assert MLP().protocol(given) != MLPCached().protocol(given) and MLP().protocol(given) != MLP(16).protocol(given)


def test_a_diverged_rate_is_named_and_has_no_curve(images, run, cache):
    result = MLPCached(hidden=8, rates=[1e-2, 1e38], epochs=2, batch_size=8).run(
        subject(run, folder_data(images), cache)
    )
    assert any(note.startswith("1 heads diverged and stopped: 1 block, rate") for note in result.notes)
    assert np.isnan(result.outcomes["curve_top1"][:, 1]).all() and not np.isnan(result.outcomes["curve_top1"]).all()
    assert b",,\r\n" in result.files["curve.csv"]


def test_raw_pixels_are_told_what_would_do(images, run, tmp_path):
    with pytest.raises(Unavailable, match="too wide .*linear_cached"):
        MLPCached().check(subject(f"pixels:{run}", folder_data(images), tmp_path))


def test_no_hidden_unit_is_refused():
    with pytest.raises(ValueError, match="hidden=0"):
        MLPCached(hidden=0)


@pytest.mark.parametrize("kinds", [[(1, False)], [(1, True)], [(1, False), (2, True)]])
def test_rows_from_mapped_files_are_those_held_in_memory(images, run, tmp_path, monkeypatch, kinds):
    monkeypatch.setattr("evaluate.features.SHARD_IMAGES", 7)
    stored = subject(run, folder_data(images), tmp_path).features("train")
    held = StoredTokens(stored, kinds, torch.device("cpu"))
    monkeypatch.setattr(_probe, "HELD_BYTES", 0)
    mapped = StoredTokens(stored, kinds, torch.device("cpu"))
    assert held.held is not None and mapped.held is None and len(held) == len(mapped) == 36
    whole = Tokens(torch.stack([stored.cls(-2), stored.cls(-1)]), stored.average())
    for index in (torch.tensor([35, 0, 7, 6, 7]), slice(5, 30)):
        for kind in kinds:
            assert torch.equal(mapped.rows(index).input(kind), held.rows(index).input(kind))
            assert torch.equal(held.rows(index).input(kind), whole.rows(index).input(kind))


def test_a_probe_gives_the_same_numbers_when_its_features_do_not_fit_in_memory(images, run, cache, monkeypatch):
    given, task = subject(run, folder_data(images), cache), LinearCached(epochs=2, batch_size=8)
    held = task.run(given)
    monkeypatch.setattr(_probe, "HELD_BYTES", 0)
    mapped = task.run(given)
    np.testing.assert_array_equal(mapped.outcomes["curve_top1"], held.outcomes["curve_top1"])
    np.testing.assert_array_equal(mapped.outcomes["prediction"], held.outcomes["prediction"])


# ---- the fixed protocol


def test_the_fixed_probe_reads_what_its_width_calls_for():
    class Wide:
        dim, depth, has_average = 768, 12, True

    class Narrow(Wide):
        dim = 384

    class Pixels(Wide):
        depth, has_average = 1, False

    assert LinearFixed().inputs(Wide()) == [(1, True)] and LinearFixed().inputs(Narrow()) == [(4, False)]
    assert LinearFixed(input="cls4").inputs(Wide()) == [(4, False)]
    assert LinearFixed().inputs(Pixels()) == [(1, False)], "no average: the class token alone"
    with pytest.raises(ValueError, match="'cls5'.*cls4"):
        LinearFixed(input="cls5")


def test_the_fixed_probe_reports_its_last_epoch_and_names_the_best_as_selected(images, run, cache):
    given = subject(run, folder_data(images), cache)
    given.features("test")
    with count_forward(given.backbone) as sizes:
        result = LinearFixed(rate=0.5, epochs=6, batch_size=12).run(given)
    assert sum(sizes) == 6 * 36
    curve = result.outcomes["curve_top1"][:, 0]
    assert result.scores["top1"].value == curve[-1] and result.scores["top1_best_epoch"].value == curve.max()
    assert any("selected on the test images" in note for note in result.notes)
    assert result.outcomes["heads"].tolist() == ["2 blocks, rate 0.0234"]


def test_the_fixed_probe_lowers_its_rate_by_epoch_as_the_reference_does():
    torch.manual_seed(0)
    tokens, labels, start = Tokens(torch.randn(1, 24, 4), None), torch.randint(0, 3, (24,)), torch.randn(3, 4)
    sweep = Sweep({ONE: 4}, [0.3], 3, 12, hold=3, starts={ONE: start})
    layer = nn.Linear(4, 3)
    layer.load_state_dict({"weight": start.clone(), "bias": torch.zeros(3)})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for step, rows in enumerate(batch_table(24, 8, 12, seed=0), start=1):
        sweep.step(tokens.rows(rows), labels[rows])
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(tokens.cls[0, rows]), labels[rows]).backward()
        optimizer.step()
        if step % 3 == 0:
            schedule.step()
    torch.testing.assert_close(sweep.weights(0)[0], layer.weight.data, rtol=1e-4, atol=1e-6)


# ---- pictures


def test_the_picture_of_curves_is_a_png_that_depends_on_them_alone():
    epochs, heads = np.arange(4), ["a", "b"]
    top1, top5 = np.random.default_rng(0).random((2, 4, 2))
    first = draw("title $x_", epochs, top1, top5, heads, 1)
    assert first == draw("title $x_", epochs, top1, top5, heads, 1) != draw("title $x_", epochs, top5, top1, heads, 1)
    picture = Image.open(io.BytesIO(first))
    assert picture.format == "PNG" and picture.size == (650, 442)
    assert np.asarray(picture.convert("RGB")).std() > 5, "nothing was drawn"


def test_a_table_of_curves_leaves_a_diverged_head_empty():
    top = np.array([[0.25, np.nan]])
    assert as_table(np.array([1]), top, top, ["a", "b"]).decode().split() == [
        "epoch,head,top1,top5",
        "1,a,0.250000,0.250000",
        "1,b,,",
    ]
