"""Dense CRF against the published implementation, and the lattice and the inference against direct formulas."""

from pathlib import Path

import numpy as np
import pytest

from evaluate.metrics.dense_crf import ALIKE, ALIKE_COLOUR, NEAR, SURE, DenseCRF, mean_field, normalised
from evaluate.metrics.lattice import Lattice

#: foreground probabilities after 1 and 10 iterations by pydensecrf2 1.1, which wraps the authors' code
GOLDEN = Path(__file__).parent / "golden" / "dense_crf.npz"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


def points_of(image: np.ndarray) -> list[np.ndarray]:
    place = np.stack(np.indices(image.shape[:2])[::-1], axis=-1).reshape(-1, 2).astype(float)
    return [place / NEAR, np.concatenate([place / ALIKE, image.reshape(-1, 3) / ALIKE_COLOUR], axis=1)]


def gaussian(points: np.ndarray) -> np.ndarray:
    """All pairs, by the formula."""
    return np.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / 2)


def belief_of(mask: np.ndarray) -> np.ndarray:
    return np.where(mask.reshape(-1), SURE, 1 - SURE)


@pytest.mark.parametrize("iterations", [1, 10])
def test_probabilities_equal_those_of_the_authors_code(golden, iterations):
    field = DenseCRF(golden["image"])
    found = mean_field(belief_of(golden["mask"]), field.kernels, iterations)
    np.testing.assert_allclose(found.reshape(golden["mask"].shape), golden[f"foreground_{iterations}"], atol=2e-5)


def test_inference_equals_the_update_written_out_for_both_labels(golden):
    image, mask = golden["image"][::3, ::3], golden["mask"][::3, ::3]
    weights, matrices = (7.0, 10.0), [gaussian(points) for points in points_of(image)]
    rows = [1 / np.sqrt(m.sum(axis=1)) for m in matrices]
    matrices = [m * r[:, None] * r for m, r in zip(matrices, rows, strict=True)]
    belief = np.stack([1 - belief_of(mask), belief_of(mask)])
    both = belief
    for _ in range(10):
        energy = -np.log(belief) - sum(w * both @ m for w, m in zip(weights, matrices, strict=True))
        both = np.exp(-energy) / np.exp(-energy).sum(axis=0)
    kernels = [
        (w, normalised(lambda v, p=p: gaussian(p) @ v, mask.size))
        for w, p in zip(weights, points_of(image), strict=True)
    ]
    np.testing.assert_allclose(mean_field(belief[1], kernels), both[1], atol=1e-12)


def test_the_lattice_gives_the_masks_of_the_sum_over_all_pairs(golden):
    image, mask = golden["image"][::2, ::2], golden["mask"][::2, ::2]
    pairs = zip((7, 10), points_of(image), strict=True)
    kernels = [(w, normalised(gaussian(p).__matmul__, mask.size)) for w, p in pairs]
    exact = mean_field(belief_of(mask), kernels)
    found = mean_field(belief_of(mask), DenseCRF(image).kernels)
    assert ((exact > 0.5) != mask.reshape(-1)).mean() > 0.05, "the mask was right before"
    np.testing.assert_array_equal(found > 0.5, exact > 0.5)


@pytest.mark.parametrize("d, spread", [(1, 0.03), (2, 0.03), (3, 0.04), (5, 0.2)])
def test_filtered_values_are_the_gaussian_sums_up_to_one_factor(d, spread):
    rng = np.random.default_rng(d)
    points, values = rng.uniform(0, 4, (400, d)), rng.random(400)
    ratio = Lattice(points).filter(values) / (gaussian(points) @ values)
    assert np.std(ratio) < spread * np.mean(ratio)


def test_far_points_do_not_hear_of_each_other_and_a_filter_is_linear():
    points = np.array([[0.0, 0.0], [30.0, 0.0]])
    assert Lattice(points).filter(np.array([1.0, 0.0]))[1] == 0
    rng = np.random.default_rng(0)
    lattice, a, b = Lattice(rng.normal(size=(50, 3))), *rng.random((2, 50))
    np.testing.assert_allclose(lattice.filter(a + 2 * b), lattice.filter(a) + 2 * lattice.filter(b))


def test_a_refined_mask_follows_the_object_and_has_no_hole(golden):
    field, mask = DenseCRF(golden["image"]), golden["mask"].copy()
    refined = field.refine(mask)
    y, x = np.indices(mask.shape)
    assert (refined == (((y - 19) / 13) ** 2 + ((x - 30) / 17) ** 2 < 1)).mean() > 0.99
    mask[19:21, 30:32] = False
    np.testing.assert_array_equal(field.refine(mask), refined)


def test_a_mask_of_which_less_than_half_stays_is_dropped(golden):
    mask = np.zeros_like(golden["mask"])
    mask[19, 30] = True
    assert not DenseCRF(golden["image"]).refine(mask).any()
    assert not DenseCRF(golden["image"]).refine(np.zeros_like(mask)).any()


def test_bad_input_is_refused_with_the_value(golden):
    with pytest.raises(ValueError, match=r"mask has \(3, 3\) pixels, the image \(40, 56\)"):
        DenseCRF(golden["image"]).refine(np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8, got \(4, 4\) float64"):
        DenseCRF(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="larger standard deviation"):
        Lattice(np.array([[0.0] * 5, [1e6] * 5]))
