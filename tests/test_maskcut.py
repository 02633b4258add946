"""MaskCut against golden values, a dense eigen-solver and the seven rules written out one by one."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as mask_utils
from scipy import linalg, ndimage

from evaluate.metrics import graph_cut
from evaluate.metrics.bit_graph import adjacency as adjacency_bits
from evaluate.metrics.bit_graph import neighbour_sums
from evaluate.metrics.eigen import second_smallest_eigenvectors
from evaluate.metrics.graph_cut import _object_side
from evaluate.tasks.objects import maskcut, maskcut_batch, masks_to_detections

GOLDEN = Path(__file__).parent / "golden" / "eval"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "maskcut.npz")


def golden_features(golden, case: int) -> torch.Tensor:
    height, width = golden[f"case{case}_grid"]
    return torch.from_numpy(golden[f"case{case}_feats"].astype(np.float32)).view(-1, int(height), int(width))


def adjacency(rows: np.ndarray, tau: float, eps: float = 1e-5) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1)
    return np.where(unit @ unit.T > tau, 1.0, eps)


def dense_vector(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second eigenvector and the three smallest eigenvalues, by LAPACK in float64."""
    degree = np.diag(a.sum(axis=1))
    values, vectors = linalg.eigh(degree - a, degree, subset_by_index=[0, 2])
    return vectors[:, 1], values


def lanczos(a: np.ndarray, **options) -> tuple[np.ndarray, float]:
    matrix = torch.from_numpy(a)[None]
    vectors, values = second_smallest_eigenvectors(lambda x: matrix @ x, matrix.sum(dim=2), **options)
    return vectors[0].numpy(), float(values[0])


def aligned_error(vector: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest entry, after scaling to one length and the better sign."""
    vector, expected = vector / np.linalg.norm(vector), expected / np.linalg.norm(expected)
    return min(np.abs(vector - expected).max(), np.abs(vector + expected).max()) / np.abs(expected).max()


def plain_maskcut(features: np.ndarray, tau: float, stages: int) -> tuple[np.ndarray, bool]:
    """The published procedure with a dense solver; also whether every second eigenvalue was simple."""
    width_, height, width = features.shape
    rows = features.reshape(width_, -1).T.astype(np.float64)
    outputs, previous, simple = np.zeros((stages, height, width), dtype=bool), None, True
    for stage in range(stages):
        vector, values = dense_vector(adjacency(rows, tau))
        simple &= values[2] - values[1] > 1e-6
        order = np.abs(vector)
        if vector[np.flatnonzero(order >= order.max() * (1 - 1e-6))[0]] < 0:
            vector = -vector
        foreground = (vector > vector.mean()).reshape(height, width)
        if foreground[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
            foreground, vector = ~foreground, -vector
        seed = np.flatnonzero(vector >= vector.max() - 1e-6 * np.abs(vector).max())[0]
        parts, _ = ndimage.label(foreground)
        mask = parts == parts.flat[seed]
        if previous is not None:
            iou = (mask & previous).sum() / max((mask | previous).sum(), 1)
            if iou > 0.5 or mask.mean() <= 0.01:
                mask = np.zeros_like(mask)
        outputs[stage] = mask & ~outputs.any(axis=0)
        rows[mask.reshape(-1)] = 0
        previous = mask
    return outputs, simple


def scene(seed: int, height: int = 9, width: int = 11, objects: int = 3, dim: int = 12) -> torch.Tensor:
    """Features of a background and a few rectangles, with noise on every patch."""
    rng = np.random.default_rng(seed)
    prototypes = rng.standard_normal((objects + 1, dim))
    labels = np.zeros((height, width), dtype=int)
    for k in range(1, objects + 1):
        y, x = rng.integers(0, height - 3), rng.integers(0, width - 3)
        labels[y : y + rng.integers(2, 5), x : x + rng.integers(2, 5)] = k
    features = prototypes[labels] + 0.7 * rng.standard_normal((height, width, dim))
    return torch.from_numpy(features.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize("case", range(3))
def test_masks_equal_the_golden_masks_wherever_these_are_determined(golden, case):
    masks = maskcut(golden_features(golden, case), tau=float(golden[f"case{case}_tau"]))
    assert masks.dtype == torch.bool and masks.shape == (3, 30, 30)
    determined = golden[f"case{case}_determined"]
    np.testing.assert_array_equal(masks.numpy()[determined], golden[f"case{case}_mask_grid"][determined] > 0)
    assert masks[0].any()


@pytest.mark.parametrize("case", range(3))
def test_first_eigenvector_degrees_and_edges_equal_the_golden_ones(golden, case):
    rows = golden_features(golden, case).flatten(1).T.numpy()
    a = adjacency(rows, float(golden[f"case{case}_tau"]))
    assert (a == 1).sum() == golden[f"case{case}_edges0"]
    np.testing.assert_allclose(a.sum(axis=1), golden[f"case{case}_degree0"], rtol=1e-9)
    vector, value = lanczos(a)
    assert aligned_error(vector, golden[f"case{case}_eigenvectors"][0]) < 1e-6
    assert value == pytest.approx(golden[f"case{case}_eigenvalues"][0, 1], abs=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_masks_equal_the_rules_with_a_dense_solver(seed):
    features = scene(seed)
    expected, simple = plain_maskcut(features.numpy(), 0.3, 4)
    assert simple, "choose a scene whose second eigenvalues are simple"
    np.testing.assert_array_equal(maskcut(features, tau=0.3, stages=4).numpy(), expected)


def test_a_later_mask_of_at_most_one_percent_of_the_grid_is_dropped():
    features = scene(7, 12, 13, objects=4)  # its second stage finds a single patch
    expected, simple = plain_maskcut(features.numpy(), 0.3, 4)
    assert simple
    np.testing.assert_array_equal(maskcut(features, tau=0.3, stages=4).numpy(), expected)


def test_the_side_with_three_corners_of_the_image_is_background():
    corners = np.zeros((6, 9), dtype=bool)
    corners[0] = corners[:, 0] = True  # the smaller side, so the one with the larger entries
    features = torch.from_numpy(np.stack([corners, ~corners]).astype(np.float32))
    np.testing.assert_array_equal(maskcut(features, tau=0.3)[0].numpy(), ~corners)
    corners[0, 4:] = False
    features = torch.from_numpy(np.stack([corners, ~corners]).astype(np.float32))
    np.testing.assert_array_equal(maskcut(features, tau=0.3)[0].numpy(), corners)


@pytest.mark.parametrize("sign", [1, -1])
def test_sign_and_seed_ties_go_to_the_lowest_index(sign):
    vector = np.full((5, 5), -0.3)
    vector[1, 1] = 1 - 1e-8  # as large as the next up to rounding, and before it
    vector[3, 3] = 1
    expected = np.zeros((5, 5), dtype=bool)
    expected[1, 1] = True
    np.testing.assert_array_equal(_object_side(sign * vector), expected)
    opposite = np.full((5, 5), -0.01 * sign)
    opposite[1, 1], opposite[3, 3] = sign * (1 - 1e-8), -sign
    np.testing.assert_array_equal(_object_side(opposite), expected)


def test_stages_never_overlap_and_later_stages_find_more():
    masks = torch.stack([maskcut(scene(seed), tau=0.3) for seed in range(12)])
    assert masks.sum(dim=1).max() == 1
    assert masks[:, 1:].any()


def test_the_batch_equals_the_images_one_by_one():
    features = torch.stack([scene(seed) for seed in range(4)] + [torch.ones(12, 9, 11)])
    batch = maskcut_batch(features, tau=0.3)
    assert torch.equal(batch, torch.stack([maskcut(image, tau=0.3) for image in features]))


def test_graphs_solved_together_in_floats_give_the_masks_of_single_graphs_in_bits(monkeypatch):
    features = torch.stack([scene(seed) for seed in range(6)] + [torch.ones(12, 9, 11)])
    expected = maskcut_batch(features, tau=0.3)
    monkeypatch.setattr(graph_cut, "adjacency", lambda similarity, threshold: (similarity > threshold).double())
    assert torch.equal(graph_cut._cut(features, 0.3, 1e-5, 3), expected)


@pytest.mark.parametrize("n", [1, 7, 8, 33, 100])
def test_bit_products_equal_the_dense_product(n):
    rng = np.random.default_rng(n)
    similarity = rng.random((n, n)).astype(np.float32)
    similarity = torch.from_numpy(similarity + similarity.T)
    x = torch.from_numpy(rng.standard_normal((1, n, 3)))
    sums = neighbour_sums(adjacency_bits(similarity, 1.0)[None], x)
    np.testing.assert_allclose(sums.numpy(), ((similarity > 1.0).double() @ x).numpy(), atol=1e-12)


@pytest.mark.gpu
def test_masks_on_the_gpu_equal_those_on_the_cpu():
    features = torch.stack([scene(seed) for seed in range(8)] + [torch.ones(12, 9, 11)])
    assert torch.equal(maskcut_batch(features.cuda(), tau=0.3), maskcut_batch(features, tau=0.3))


def test_half_precision_features_are_accepted(golden):
    features, tau = golden_features(golden, 0), float(golden["case0_tau"])
    assert torch.equal(maskcut(features.half(), tau=tau), maskcut(features, tau=tau))


@pytest.mark.parametrize("name", ["all alike", "all different", "one patch"])
def test_a_graph_without_a_second_eigenvector_gives_no_mask(name):
    features = {
        "all alike": torch.ones(4, 3, 3),
        "all different": torch.eye(9).view(9, 3, 3),
        "one patch": torch.ones(4, 1, 1),
    }[name]
    masks = maskcut(features, tau=0.2)
    assert masks.shape == (3, *features.shape[1:]) and not masks.any()


def test_a_zero_patch_is_reported_and_stays_unjoined():
    features = scene(0)
    features[:, 4, 5] = 0
    expected, _ = plain_maskcut(features.numpy(), 0.3, 3)
    with pytest.warns(UserWarning, match="1 zero vector"):
        np.testing.assert_array_equal(maskcut(features, tau=0.3).numpy(), expected)


def test_bad_input_is_refused_with_the_value():
    features = scene(0)
    with pytest.raises(ValueError, match=r"tau must be in \[0, 1\), got -0.1"):
        maskcut(features, tau=-0.1)
    with pytest.raises(ValueError, match="tau"):
        maskcut(features, tau=1.0)
    features[3, 1, 2] = float("nan")
    with pytest.raises(ValueError, match="row 13"):
        maskcut(features, tau=0.3)


@pytest.mark.parametrize("n", [2, 3, 40, 90])
def test_lanczos_equals_the_dense_solver_on_random_graphs(n):
    rng = np.random.default_rng(n)
    for density in (0.1, 0.5, 0.9):
        upper = np.triu(rng.random((n, n)) < density)
        a = np.where(upper | upper.T, 1.0, 1e-5)
        degree = np.diag(a.sum(axis=1))
        values, vectors = linalg.eigh(degree - a, degree)
        if n > 2 and values[2] - values[1] < 1e-9:
            continue  # any vector of the plane is right
        vector, value = lanczos(a)
        assert value == pytest.approx(values[1], abs=1e-9)
        assert aligned_error(vector, vectors[:, 1]) < 1e-5


def test_graphs_that_do_not_converge_are_solved_densely():
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((60, 60)) < 0.3)
    a = np.where(upper | upper.T, 1.0, 1e-5)
    assert aligned_error(lanczos(a, max_steps=2)[0], dense_vector(a)[0]) < 1e-9
    mixed = torch.from_numpy(np.stack([a, np.ones((60, 60)) - 0.5 * np.outer(np.arange(60) < 20, np.arange(60) >= 20)]))
    mixed[1] = torch.minimum(mixed[1], mixed[1].T)
    vectors, _ = second_smallest_eigenvectors(lambda x: mixed @ x, mixed.sum(dim=2), max_steps=2)
    for graph, vector in zip(mixed.numpy(), vectors.numpy(), strict=True):
        assert aligned_error(vector, dense_vector(graph)[0]) < 1e-6


def test_an_eigenvalue_above_one_is_found_although_the_deflated_one_lies_below():
    a = np.ones((12, 12)) - np.diag(np.linspace(0.1, 0.9, 12))  # every other eigenvalue of M is negative
    vector, value = lanczos(a)
    expected, values = dense_vector(a)
    assert value > 1 and value == pytest.approx(values[1], abs=1e-12)
    assert aligned_error(vector, expected) < 1e-9


def test_equal_rows_of_a_graph_get_equal_entries():
    rng = np.random.default_rng(5)
    small = np.triu(rng.random((20, 20)) < 0.4)
    a = np.where(small | small.T | np.eye(20, dtype=bool), 1.0, 1e-5)
    twins = np.repeat(np.arange(20), 3)
    vector, _ = lanczos(a[np.ix_(twins, twins)])
    spread = np.ptp(vector.reshape(20, 3), axis=1).max()
    assert spread < 1e-12 * np.abs(vector).max()


def test_detections_have_tight_boxes_filled_holes_and_falling_scores():
    masks = np.zeros((3, 6, 8), dtype=bool)
    masks[0, 1:4, 2:6] = True
    masks[0, 2, 3] = False  # a hole
    masks[2, 5, 0] = True
    first, second = masks_to_detections(masks, (90, 240), image_id=7, input_size=(96, 128))
    assert (first["image_id"], first["category_id"], first["score"], second["score"]) == (7, 1, 1.0, 1 / 3)
    assert first["bbox"] == [60.0, 15.0, 120.0, 45.0] and second["bbox"] == [0.0, 75.0, 30.0, 15.0]
    decoded = mask_utils.decode(first["segmentation"])
    assert decoded.shape == (90, 240) and decoded.sum() == 45 * 120
    assert decoded[15:60, 60:180].all()


def test_empty_masks_give_no_detection():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert masks_to_detections(torch.zeros(3, 4, 4, dtype=torch.bool), (10, 10), image_id=1) == []
