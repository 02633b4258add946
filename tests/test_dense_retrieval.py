"""In-context segmentation against golden values, the definition over all pairs, and counted examples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.metrics.segmentation import confusion, mean_iou
from evaluate.tasks.dense_retrieval import (
    enlarge_labels,
    patch_label_histogram,
    patches_per_image,
    sample_patches,
    transfer_labels,
)

GOLDEN = Path(__file__).parent / "golden" / "eval"


@pytest.fixture(scope="module")
def golden():
    return {
        key: value if value.ndim == 0 else torch.from_numpy(value)
        for key, value in np.load(GOLDEN / "hummingbird.npz").items()
    }


@pytest.fixture(scope="module")
def golden_labels(golden):
    k, beta = int(golden["k"]), float(golden["beta"])
    return transfer_labels(golden["memory"], golden["memory_labels"], golden["queries"], k=k, beta=beta)


def plain_transfer(memory, labels, queries, k, beta):
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (memory, queries)]
    out = []
    for cosine in unit[1] @ unit[0].T:
        nearest = np.argsort(-cosine, kind="stable")[:k]
        weights = np.exp(cosine[nearest] / beta)
        out.append(weights @ labels[nearest] / weights.sum())
    return np.stack(out)


def test_transferred_labels_equal_the_golden_ones(golden, golden_labels):
    assert golden_labels.shape == golden["label_hat"].shape
    np.testing.assert_allclose(golden_labels.numpy(), golden["label_hat"], atol=1e-5, rtol=0)


def test_predictions_and_their_scores_equal_the_golden_ones(golden, golden_labels):
    grid = int(golden["grid"])
    soft = golden_labels.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    prediction = enlarge_labels(soft, golden["gt"].shape[1:])
    assert (prediction == golden["pred"]).float().mean() >= 0.9995
    counts = confusion(golden["gt"], prediction, soft.shape[1])
    hits = counts.diagonal()
    np.testing.assert_allclose(hits, golden["tp"], rtol=5e-4)
    np.testing.assert_allclose(counts.sum(axis=0) - hits, golden["fp"], atol=5e-4 * counts.sum())
    np.testing.assert_allclose(counts.sum(axis=1) - hits, golden["fn"], atol=5e-4 * counts.sum())
    assert mean_iou(counts) == pytest.approx(float(golden["miou_identity"]), abs=1e-3)
    assert mean_iou(counts, hungarian=True) == pytest.approx(float(golden["miou_hungarian"]), abs=1e-3)


def test_patch_histograms_equal_the_golden_ones(golden):
    classes = golden["patch_soft_labels"].shape[-1]
    histogram = patch_label_histogram(golden["patch_gt"][:, 0], int(golden["patch_size"]), classes)
    assert torch.equal(histogram, golden["patch_soft_labels"])


@pytest.mark.parametrize(("k", "beta"), [(1, 0.02), (7, 0.02), (40, 0.5), (300, 1.0)])
def test_transfer_equals_the_definition_over_all_pairs(k, beta):
    rng = np.random.default_rng(k)
    memory, queries = rng.standard_normal((300, 16)), rng.standard_normal((2, 3, 5, 16))
    labels = rng.dirichlet(np.ones(4), 300)
    ours = transfer_labels(*map(torch.from_numpy, (memory, labels, queries)), k=k, beta=beta)
    assert ours.shape == (2, 3, 5, 4) and ours.dtype == torch.float32
    expected = plain_transfer(memory, labels, queries.reshape(30, 16), k, beta).reshape(2, 3, 5, 4)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5, rtol=0)


def test_equal_neighbours_go_to_the_lower_memory_row():
    memory = torch.tensor([[1.0, 0.0]]).repeat(50, 1)
    labels = torch.eye(50)
    soft = transfer_labels(memory, labels, torch.tensor([[2.0, 0.0]]), k=3, beta=0.02)
    np.testing.assert_allclose(soft[0, :3].numpy(), 1 / 3, atol=1e-6)


def test_void_pixels_count_as_background_in_the_memory():
    mask = torch.tensor([[255, 255, 2, 2], [1, 1, 2, 0]])
    np.testing.assert_array_equal(patch_label_histogram(mask, 2, 3)[0], [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])


def test_bounded_memory_takes_the_lowest_scores_of_frequency_times_chance():
    rng = np.random.default_rng(0)
    histograms = torch.from_numpy(rng.dirichlet(np.full(5, 0.1), 60)).round(decimals=1)
    chosen = sample_patches(histograms, 20, torch.Generator().manual_seed(3))
    uniform = torch.rand(60, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).numpy()
    present = histograms.numpy() > 0
    score = np.array([uniform[i] * sum(present[:, c].sum() for c in range(5) if present[i, c]) for i in range(60)])
    np.testing.assert_array_equal(chosen.numpy(), np.sort(np.argsort(score)[:20]))


def test_bounded_memory_favours_rare_classes():
    histograms = torch.zeros(100, 2)
    histograms[:90, 0] = histograms[90:, 1] = 1
    generator = torch.Generator().manual_seed(0)
    rare = sum(int((sample_patches(histograms, 10, generator) >= 90).sum()) for _ in range(50))
    assert rare > 200  # 10 of 100 patches would be 50 by chance alone


def test_memory_size_is_shared_equally_by_images_and_epochs():
    assert patches_per_image(102_400, 1464, 2) == 34
    assert len(sample_patches(torch.ones(9, 2), 34)) == 9
    with pytest.raises(ValueError, match="memory of 10 patches is too small for 11 images"):
        patches_per_image(10, 11)


def test_mean_iou_counts_pixels_and_ignores_void():
    truth = np.array([[0, 0, 1, 255], [1, 1, 1, 255]])
    prediction = np.array([[0, 1, 1, 0], [1, 1, 0, 3]])
    counts = confusion(truth, prediction, 4)
    np.testing.assert_array_equal(counts[:2, :2], [[1, 1], [1, 3]])
    assert counts.sum() == 6
    assert mean_iou(counts) == pytest.approx((1 / 3 + 3 / 5) / 2)
    assert mean_iou(counts, empty_as_zero=True) == pytest.approx((1 / 3 + 3 / 5) / 4)
    assert np.isnan(mean_iou(np.zeros((3, 3), dtype=int)))


def test_hungarian_match_undoes_a_renaming_of_the_classes():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 5, (20, 30))
    noisy = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 5, truth.shape), truth)
    renamed = np.array([3, 0, 4, 1, 2])[noisy]
    identity = mean_iou(confusion(truth, noisy, 5))
    assert mean_iou(confusion(truth, renamed, 5), hungarian=True) == pytest.approx(identity)
    assert mean_iou(confusion(truth, renamed, 5)) < 0.3 < identity


def test_bad_input_is_refused_with_the_value():
    memory, labels, queries = torch.randn(10, 4), torch.rand(10, 3), torch.randn(2, 4)
    for wrong in ({"k": 0}, {"k": 11}, {"beta": 0.0}):
        with pytest.raises(ValueError, match="k must be in 1..10|beta must be positive"):
            transfer_labels(memory, labels, queries, **{"k": 3, "beta": 0.02} | wrong)
    with pytest.raises(ValueError, match="width 5, the memory 4"):
        transfer_labels(memory, labels, torch.randn(2, 5), k=3)
    with pytest.raises(ValueError, match="10 patches but 9"):
        transfer_labels(memory, labels[:9], queries, k=3)
    with pytest.raises(ValueError, match="NaN"):
        transfer_labels(memory.index_fill(0, torch.tensor(4), torch.nan), labels, queries, k=3)
    with pytest.raises(ValueError, match="empty"):
        transfer_labels(memory, labels, queries[:0], k=3)
    with pytest.raises(ValueError, match="5 x 4 pixels"):
        patch_label_histogram(torch.zeros(5, 4), 2, 3)
    with pytest.raises(ValueError, match="0..3; allowed are 0..2"):
        patch_label_histogram(torch.tensor([[0, 3], [0, 0]]), 2, 3)
    with pytest.raises(ValueError, match="prediction holds labels 0..9"):
        confusion(np.array([0, 1]), np.array([9, 0]), 3)
    with pytest.raises(ValueError, match="must agree"):
        confusion(np.zeros(3), np.zeros(4), 3)
