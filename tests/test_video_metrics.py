"""DAVIS J and F against the published evaluator's values and against the definition written out pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from evaluate.metrics.masks import fill_holes, nearest_resize, tight_box
from evaluate.metrics.video import (
    VOID,
    contour_accuracy,
    contour_tolerance,
    evaluate_sequence,
    region_similarity,
    sequence_statistics,
    summarize_sequences,
)
from evaluate.metrics.video_kernels import boundaries, confirmed

GOLDEN = Path(__file__).parent / "golden" / "eval"
SEQUENCES = ("bmx-trees", "dogs-jump", "gold-fish")


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "davis_jf.npz")


def label_maps(folder: str, sequence: str) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted((GOLDEN / "davis_mini" / folder / sequence).glob("*.png"))]


def masks(sequence: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return label_maps("Annotations/480p", sequence), label_maps("results", sequence)


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    boundary = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            right, below = min(x + 1, width - 1), min(y + 1, height - 1)
            boundary[y, x] = any(mask[y, x] != mask[v, u] for v, u in ((y, right), (below, x), (below, right)))
    # On the last row and column the clamped neighbours are the pixel itself or the one neighbour that exists.
    boundary[-1, -1] = False
    return boundary


def plain_contour_accuracy(truth: np.ndarray, prediction: np.ndarray) -> float:
    a, b = plain_boundary(truth), plain_boundary(prediction)
    if a.sum() == 0 or b.sum() == 0:
        return float(a.sum() == b.sum())
    radius = np.ceil(0.008 * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    near = [ndimage.distance_transform_edt(~edge) <= radius + 1e-6 for edge in (a, b)]
    precision, recall = (b & near[0]).sum() / b.sum(), (a & near[1]).sum() / a.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blob_pair(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    noise = ndimage.gaussian_filter(rng.standard_normal((height, width)), 3)
    other = noise + 0.6 * ndimage.gaussian_filter(rng.standard_normal((height, width)), 3)
    return noise > rng.uniform(-0.1, 0.2), other > rng.uniform(-0.1, 0.2)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_j_and_f_equal_the_published_evaluator(golden, sequence):
    scores = evaluate_sequence(*masks(sequence), name=sequence)
    np.testing.assert_allclose(scores.j, golden[f"J__{sequence}"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(scores.f, golden[f"F__{sequence}"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(scores.statistics(), golden[f"stats__{sequence}"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_void_columns_are_left_out_of_both_measures(golden, sequence):
    truth, prediction = masks(sequence)
    void = np.zeros(truth[0].shape, dtype=bool)
    void[:, : int(golden["void_columns"])] = True
    j, f = golden[f"J_void__{sequence}"], golden[f"F_void__{sequence}"]
    for k in range(len(j)):
        for t, (a, b) in enumerate(zip(truth, prediction, strict=True)):
            assert region_similarity(a == k + 1, b == k + 1, void) == pytest.approx(j[k, t], abs=1e-12)
            assert contour_accuracy(a == k + 1, b == k + 1, void) == pytest.approx(f[k, t], abs=1e-12)


def test_totals_average_over_objects_not_over_sequences(golden):
    totals = summarize_sequences([evaluate_sequence(*masks(sequence)) for sequence in SEQUENCES])
    assert len(totals) == 7
    for key, value in totals.items():
        assert value == pytest.approx(float(golden[key]), abs=1e-9), key


@pytest.mark.parametrize("size", [(31, 44), (60, 35), (1, 40), (23, 1), (90, 170)])
def test_scores_equal_the_definition_to_the_last_bit(size):
    rng = np.random.default_rng(sum(size))
    for _ in range(6):
        truth, prediction = blob_pair(rng, *size)
        union = (truth | prediction).sum()
        assert region_similarity(truth, prediction) == ((truth & prediction).sum() / union if union else 1.0)
        assert contour_accuracy(truth, prediction) == plain_contour_accuracy(truth, prediction)
        found = np.zeros(truth.shape, bool)
        found[tuple(boundaries(truth.astype(np.uint8), 1)[:, 1:].T)] = True
        np.testing.assert_array_equal(found, plain_boundary(truth))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
def test_all_objects_of_a_frame_score_as_each_alone(kind):
    rng = np.random.default_rng(5)
    truth, prediction = np.zeros((2, 1, 70, 130), kind)
    for label in (1, 2, 3, 5):  # 4 is nowhere, and objects hide one another
        truth[0][blob_pair(rng, 70, 130)[0]] = prediction[0][blob_pair(rng, 70, 130)[1]] = label
    truth[0, :9], prediction[0, 20:40, 50:60] = VOID, 4
    scores = evaluate_sequence(truth, prediction)
    assert scores.j.shape == (5, 1)
    for k in range(5):
        alone = truth[0] == k + 1, prediction[0] == k + 1
        assert scores.j[k, 0] == (alone[0] & alone[1]).sum() / (alone[0] | alone[1]).sum()
        assert scores.f[k, 0] == plain_contour_accuracy(*alone)
    assert scores.j[:3].min() > 0 and scores.j[3, 0] == scores.f[3, 0] == 0


@pytest.mark.parametrize("radius", [1, 8, 31, 36, 70])
def test_boundaries_are_confirmed_within_a_radius_of_any_size(radius):
    rng = np.random.default_rng(radius)
    pixels, near = (np.stack([np.ones(60, int), *rng.integers(0, (90, 200), (60, 2)).T], 1) for _ in range(2))
    distance = np.linalg.norm(pixels[:, None, 1:] - near[None, :12, 1:], axis=2)
    expected = (distance.min(1) <= radius).sum()
    assert confirmed(pixels, near[:12], 1, 90, 200, radius).tolist() == [0, expected]


def test_tolerance_is_eight_pixels_at_480p():
    assert contour_tolerance(480, 854) == 8


def test_empty_masks_follow_the_stated_special_cases():
    empty, full, dot = np.zeros((3, 40, 50), dtype=bool)
    full[:], dot[20, 20] = True, True
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1.0
    assert region_similarity(empty, dot) == contour_accuracy(empty, dot) == contour_accuracy(dot, empty) == 0.0
    assert contour_accuracy(full, empty) == 1.0  # neither mask has a boundary
    assert region_similarity(full, empty) == 0.0


def test_tensors_and_arrays_score_alike():
    truth, prediction = blob_pair(np.random.default_rng(3), 50, 60)
    tensors = torch.from_numpy(truth), torch.from_numpy(prediction)
    assert region_similarity(*tensors) == region_similarity(truth, prediction)
    assert contour_accuracy(*tensors) == contour_accuracy(truth, prediction)
    assert contour_accuracy(np.asfortranarray(truth), prediction) == contour_accuracy(truth, prediction)


def test_decay_uses_inclusive_quarters():
    values = np.arange(10.0)  # edges round(1, 3.25, 5.5, 7.75, 10) - 1 = 0, 2, 5, 7, 9
    mean, recall, decay = sequence_statistics(values)
    assert (mean, recall, decay) == (4.5, 0.9, np.mean([0, 1, 2]) - np.mean([7, 8, 9]))
    assert sequence_statistics(np.array([0.5])) == (0.5, 0.0, 0.0)


def test_decay_of_a_long_sequence_does_not_wrap_at_256_frames():
    values = np.concatenate([np.ones(200), np.zeros(200)])
    assert sequence_statistics(values)[2] == 1.0


def test_objects_missing_from_the_prediction_score_as_empty():
    truth = [np.zeros((20, 30), dtype=np.uint8) for _ in range(4)]
    for frame in truth:
        frame[2:8, 2:8], frame[10:18, 10:20], frame[0, 0] = 1, 2, 255
    scores = evaluate_sequence(truth, [np.where(frame == 1, 1, 0) for frame in truth])
    np.testing.assert_array_equal(scores.j, [[1.0] * 4, [0.0] * 4])


def test_bad_sequences_are_refused_by_name_and_frame():
    truth = np.zeros((3, 8, 9), dtype=np.uint8)
    with pytest.raises(ValueError, match="swan: the annotation of frame 0 has no object"):
        evaluate_sequence(truth, truth, name="swan")
    truth[:, 2:5, 2:5] = 1
    with pytest.raises(ValueError, match="swan: 2 predicted frames for 3"):
        evaluate_sequence(truth, truth[:2], name="swan")
    with pytest.raises(ValueError, match=r"swan, frame 1: the prediction is \(8, 8\)"):
        evaluate_sequence(truth, [truth[0], truth[1][:, :8], truth[2]], name="swan")
    with pytest.raises(ValueError, match="swan, frame 2: the prediction has label 4, but the sequence has 1"):
        evaluate_sequence(truth, [truth[0], truth[1], 4 * truth[2]], name="swan")
    with pytest.raises(ValueError, match="swan, frame 0: the prediction has shape"):
        evaluate_sequence(truth, [np.stack([frame] * 3, axis=-1) for frame in truth], name="swan")
    with pytest.raises(ValueError, match="at least 3"):
        evaluate_sequence(truth[:2], truth[:2]).statistics()
    with pytest.raises(ValueError, match="one size"):
        region_similarity(truth[0] > 0, truth[0, :5] > 0)


@pytest.mark.parametrize(("source", "target"), [((30, 30), (480, 480)), ((480, 480), (333, 500)), ((7, 5), (3, 11))])
def test_nearest_resize_equals_pillow_wherever_the_nearest_pixel_is_unique(source, target):
    labels = np.random.default_rng(0).integers(0, 255, source, dtype=np.uint8)
    expected = np.array(Image.fromarray(labels).resize(target[::-1], Image.Resampling.NEAREST))
    # A target centre exactly on the border of two pixels is left to rounding by Pillow; here it takes the later pixel.
    rows, columns = ((2 * np.arange(out) + 1) * n % (2 * out) != 0 for n, out in zip(source, target, strict=True))
    resized = nearest_resize(torch.from_numpy(labels), target).numpy()
    np.testing.assert_array_equal(resized[rows][:, columns], expected[rows][:, columns])
    assert rows.mean() > 0.9 and columns.mean() > 0.9 and resized.shape == target


def test_filled_holes_and_tight_boxes_equal_scipy_and_the_extremes():
    rng = np.random.default_rng(1)
    for _ in range(20):
        mask = ndimage.gaussian_filter(rng.standard_normal((40, 60)), 1.5) > -0.05
        np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
        mask[:, :10] = mask[:6] = False
        rows, columns = np.nonzero(mask)
        box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        assert tight_box(mask) == box
    assert tight_box(np.zeros((4, 4), dtype=bool)) == (0, 0, 0, 0)
