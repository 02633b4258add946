"""Label propagation against golden values and against the affinity of all pairs of patches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.metrics import propagation
from evaluate.metrics.largest import largest
from evaluate.tasks.video import labels_to_masks, propagate

GOLDEN = Path(__file__).parent / "golden" / "eval"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "label_propagation.npz")


def golden_case(golden, case: int):
    """Features (T, h, w, d), first labels, the settings and a reader of the expected arrays."""
    values = {key.split("_", 1)[1]: golden[key] for key in golden.files if key.startswith(f"case{case}_")}
    height, width = map(int, values["grid"])
    features = torch.from_numpy(values["features"]).unflatten(1, (height, width))
    settings = {
        "n_last_frames": int(values["n_last_frames"]),
        "radius": int(values["size_mask_neighborhood"]),
        "topk": int(values["topk"]),
        "temperature": 0.1,
    }
    return features, torch.from_numpy(values["first_labels"]), settings, values


def plain_propagate(features, first_labels, *, n_last_frames, radius, topk, temperature):
    """Every patch against every context patch in float64, one target patch at a time."""
    frames, height, width, _ = features.shape
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    labels = [np.eye(first_labels.max() + 1)[first_labels]]
    for t in range(1, frames):
        context = [0] + [s for s in range(t - n_last_frames, t) if s > 0]
        out = np.zeros_like(labels[0])
        for y in range(height):
            for x in range(width):
                rows, columns = np.mgrid[:height, :width]
                near = (abs(rows - y) <= radius) & (abs(columns - x) <= radius) | (radius == 0)
                weights = np.concatenate([np.exp(unit[s][near] @ unit[t, y, x] / temperature) for s in context])
                weights[weights < np.sort(weights)[-topk]] = 0
                out[y, x] = weights @ np.concatenate([labels[s][near] for s in context]) / weights.sum()
        labels.append(out)
    return np.stack(labels[1:]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("case", range(3))
def test_soft_labels_and_masks_equal_the_golden_values(golden, case):
    features, first_labels, settings, expected = golden_case(golden, case)
    soft = propagate(features, first_labels, **settings)
    np.testing.assert_allclose(soft.numpy(), expected["soft"], atol=1e-5, rtol=0)
    masks = labels_to_masks(soft, expected["labels_full"].shape[1:], int(expected["patch_size"]))
    assert masks.dtype == torch.uint8
    assert (masks.numpy() == expected["labels_full"]).mean() >= 0.9995


@pytest.mark.parametrize("tile", [3, 16])
@pytest.mark.parametrize(("n_last_frames", "radius", "topk"), [(0, 2, 3), (2, 0, 7), (3, 1, 4), (9, 20, 5)])
def test_tiles_and_windows_equal_the_full_affinity(monkeypatch, tile, n_last_frames, radius, topk):
    monkeypatch.setattr(propagation, "TILE", tile)
    rng = np.random.default_rng(radius)
    features, labels = rng.standard_normal((5, 7, 10, 6)), rng.integers(0, 4, (7, 10))
    settings = {"n_last_frames": n_last_frames, "radius": radius, "topk": topk, "temperature": 0.1}
    soft = propagate(torch.from_numpy(features), torch.from_numpy(labels), **settings)
    assert soft.shape == (4, 4, 7, 10) and soft.dtype == torch.float32
    np.testing.assert_allclose(soft.numpy(), plain_propagate(features, labels, **settings), atol=2e-5, rtol=0)


def test_all_patches_tied_at_the_last_place_are_kept():
    features = torch.ones(2, 4, 6, 3)
    labels = torch.arange(24).view(4, 6) % 3
    soft = propagate(features, labels, n_last_frames=1, radius=0, topk=5, temperature=0.1)
    np.testing.assert_allclose(soft.numpy(), np.full((1, 3, 4, 6), 1 / 3), atol=1e-6)


def test_a_still_scene_keeps_its_labels():
    features = torch.randn(6, 5, 8, 32, generator=torch.Generator().manual_seed(0))[:1].expand(6, -1, -1, -1)
    labels = torch.randint(0, 3, (5, 8), generator=torch.Generator().manual_seed(1))
    soft = propagate(features, labels, n_last_frames=7, radius=2, topk=1, temperature=0.1)
    assert (soft.argmax(dim=1) == labels).all()


def test_very_low_temperature_stays_finite():
    features = torch.randn(3, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    soft = propagate(features, torch.eye(4).long(), n_last_frames=2, radius=0, topk=5, temperature=1e-4)
    np.testing.assert_allclose(soft.sum(dim=1).numpy(), 1.0, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns", "k"), [(40, 500, 5), (20, 40, 5), (3, 1000, 30), (4, 6, 6), (5, 321, 1)])
def test_the_largest_entries_equal_a_full_sort_and_ties_are_reported(rows, columns, k):
    rng = np.random.default_rng(columns)
    scores = torch.from_numpy(rng.integers(0, 2 * columns, (rows, columns))).float()
    values, index, tied = largest(scores, k)
    expected = scores.sort(dim=1, descending=True).values
    assert torch.equal(values, expected[:, :k]) and torch.equal(scores.gather(1, index), values)
    assert all(len(set(row)) == k for row in index.tolist())
    assert torch.equal(tied, (scores >= values[:, -1:]).sum(dim=1) > k)
    assert k == columns or k > 5 or 0 < tied.sum() < rows


def test_masks_stretch_each_channel_by_its_own_range():
    soft = torch.tensor([[[[0.9, 0.6]], [[0.1, 0.4]], [[0.0, 0.0]]]])  # (1, 3, 1, 2)
    np.testing.assert_array_equal(labels_to_masks(soft, (1, 2), 1)[0].numpy(), [[0, 1]])


def test_masks_of_a_constant_channel_and_of_ties_take_the_lower_label():
    soft = torch.full((1, 3, 2, 2), 1 / 3)
    assert (labels_to_masks(soft, (4, 4), 2) == 0).all()
    soft = torch.tensor([[[[0.0, 1.0]], [[0.0, 1.0]]]])
    assert (labels_to_masks(soft, (1, 2), 1) == 0).all()


def test_masks_reach_the_original_size_by_nearest_neighbour():
    soft = torch.rand(2, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    small = labels_to_masks(soft, (45, 75), 15).numpy()  # odd sides: no target centre falls between two pixels
    resized = [np.array(Image.fromarray(frame).resize((77, 47), Image.Resampling.NEAREST)) for frame in small]
    np.testing.assert_array_equal(labels_to_masks(soft, (47, 77), 15).numpy(), np.stack(resized))


def test_bad_input_is_refused_with_the_value():
    features, labels = torch.randn(3, 4, 5, 6), torch.zeros(4, 5, dtype=torch.long)
    good: dict[str, Any] = {"n_last_frames": 2, "radius": 1, "topk": 4, "temperature": 0.1}
    propagate(features, labels, **good)
    with pytest.raises(ValueError, match="topk 5 exceeds the 4 context patches"):
        propagate(features, labels, **good | {"topk": 5})
    with pytest.raises(ValueError, match="topk 21 exceeds the 20"):
        propagate(features, labels, **good | {"topk": 21, "radius": 0})
    for wrong in ({"topk": 0}, {"temperature": 0.0}, {"radius": -1}, {"n_last_frames": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            propagate(features, labels, **good | wrong)
    with pytest.raises(ValueError, match=r"shape \(5, 4\)"):
        propagate(features, labels.T, **good)
    with pytest.raises(ValueError, match="hold -1"):
        propagate(features, labels - 1, **good)
    features[1, 0, 2, 0] = torch.inf
    with pytest.raises(ValueError, match="row 22"):
        propagate(features, labels, **good)
    with pytest.raises(ValueError, match="300 labels"):
        labels_to_masks(torch.zeros(1, 300, 2, 2), (4, 4), 2)
