"""The paired test of a mean IoU: exact where all exchanges can be listed, calibrated where nothing differs."""

from itertools import product

import numpy as np
import pytest
from example_records import record

from evaluate.leaderboard.compare import compare_records
from evaluate.metrics.paired_iou import paired_iou
from evaluate.metrics.segmentation import ClassCounts, confusion, mean_iou
from evaluate.records import Score

CLASSES = 3


def tables(seed: int, n: int, wrong: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Confusion matrices of n images with a share of wrong pixels, and what is kept of them."""
    rng, counts, full = np.random.default_rng(seed), ClassCounts(CLASSES), []
    for _ in range(n):
        truth = rng.integers(0, CLASSES, 60)
        found = np.where(rng.random(60) < wrong * rng.random() * 2, rng.integers(0, CLASSES, 60), truth)
        full.append(confusion(truth, found, CLASSES))
        counts.add(full[-1])
    return full, counts.by_image()


def test_the_p_value_is_that_of_all_exchanges_by_hand():
    (full_a, a), (full_b, b) = tables(0, 7, 0.3), tables(1, 7, 0.5)
    observed = mean_iou(sum(full_a)) - mean_iou(sum(full_b))
    extreme = 0
    for swap in product((False, True), repeat=7):
        pairs = [(y, x) if s else (x, y) for s, x, y in zip(swap, full_a, full_b, strict=True)]
        one, two = (mean_iou(sum(side)) for side in zip(*pairs, strict=True))
        extreme += abs(one - two) >= abs(observed) - 1e-12
    found = paired_iou(a, b)
    assert found.difference == pytest.approx(observed) and found.p_value == extreme / 2**7
    assert found.low < found.difference < found.high
    drawn = paired_iou(a, b, samples=100)  # fewer than there are subsets: random ones
    assert drawn.p_value == pytest.approx(found.p_value, abs=0.15)


def test_equal_segmentations_do_not_differ_and_the_level_is_kept():
    _, a = tables(0, 20, 0.4)
    assert paired_iou(a, a) == (0, 0, 0, 1)
    rejected = sum(
        paired_iou(tables(2 * i, 12, 0.4)[1], tables(2 * i + 1, 12, 0.4)[1], samples=300).p_value <= 0.05
        for i in range(200)
    )
    assert rejected <= 20, "5 % of 200, and what chance adds in all but one of a thousand"


def test_impossible_input_is_named():
    with pytest.raises(ValueError, match="one shape"):
        paired_iou(np.ones((4, 3, 2)), np.ones((4, 3, 3)))
    with pytest.raises(ValueError, match="two or more"):
        paired_iou(np.ones((1, 3, 2)), np.ones((1, 3, 2)))


def segmented(name: str, seed: int, wrong: float, order=slice(None), **changes):
    full, kept = tables(seed, 30, wrong)
    by_image = np.array([mean_iou(each) for each in full])
    outcomes = {"sample_id": np.arange(30)[order], "miou": by_image[order], "class_pixels": kept[order]}
    score = Score(mean_iou(sum(full)), None, None, 30)
    fields = {"task": "segmentation", "main": "miou", "scores": {"miou": score}, "outcomes": outcomes}
    return record(name, **fields | changes)


def test_segmentations_are_compared_by_the_score_itself_in_whatever_order_their_images_lie():
    a, b = segmented("a", 0, 0.3), segmented("b", 1, 0.6)
    found = compare_records(a, b)
    assert found.test == "permutation of images" and found.p_value < 0.01 and found.note == ""
    assert found.mean_difference == pytest.approx(found.difference) and sum(found.counts) == 30
    shuffled = segmented("b", 1, 0.6, np.random.default_rng(3).permutation(30))
    assert compare_records(a, shuffled).mean_difference == pytest.approx(found.difference)
    other = segmented("b", 1, 0.6, scores={"miou": Score(0.1, None, None, 30)})
    assert "not of the score itself" in compare_records(a, other).note, "pixels of something else"
