"""The names of `evaluate.metrics` that other programs rely on take tensors and arrays alike."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from evaluate import metrics

G = np.random.default_rng(0)
X, Y = G.standard_normal((60, 8)).astype(np.float32), G.standard_normal((20, 8)).astype(np.float32)
A, B = G.integers(0, 4, 60), G.integers(0, 4, 20)
SETS_A, SETS_B = (G.random((60, 5)) < 0.3).astype(np.uint8), (G.random((20, 5)) < 0.3).astype(np.uint8)
BITS_A, BITS_B = X > 0, Y > 0
MASK, OTHER = np.zeros((24, 32), bool), np.zeros((24, 32), bool)
MASK[4:14, 6:20], OTHER[5:16, 7:19] = True, True

CALLS = {
    "knn_classify": ((X, A, Y, B), {"ks": [1, 5], "temperature": 0.07}),
    "retrieval_ap": ((Y, X, B, A), {"self_index": None}),
    "ranking_ap": ((Y @ X.T, B[:, None] == A), {"ties": "index"}),
    "hamming_ap": ((BITS_B, BITS_A, B, A), {"ties": "average"}),
    "spectrum": ((X,), {}),
    "explained_variance": ((X,), {}),
    "effective_dimension": ((X,), {}),
    "effective_rank": ((X,), {}),
    "bit_entropy": ((BITS_A,), {}),
    "block_entropy": ((BITS_A,), {"block": 4}),
    "region_similarity": ((MASK, OTHER), {}),
    "contour_accuracy": ((MASK, OTHER), {}),
    "landmark_ap": ((Y @ X.T, G.integers(0, 4, (20, 60)), "medium"), {}),
    "paired_bootstrap": ((G.random(50), G.random(50)), {"samples": 200, "seed": 0}),
}


def leaves(found) -> list[np.ndarray]:
    """The numbers of a result, whatever holds them."""
    if isinstance(found, dict):
        return [leaf for key in sorted(found, key=str) for leaf in leaves(found[key])]
    return [np.asarray(part, np.float64) for part in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("name", CALLS)
def test_a_metric_gives_the_same_for_tensors_and_arrays(name):
    function, (arguments, options) = getattr(metrics, name), CALLS[name]
    tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments]
    given, again = leaves(function(*arguments, **options)), leaves(function(*tensors, **options))
    assert len(given) == len(again) and any(np.isfinite(leaf).all() and leaf.any() for leaf in given)
    for left, right in zip(given, again, strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-6, atol=1e-9)


def test_class_sets_and_integer_codes_are_welcome_as_tensors_too():
    for wrap in (np.asarray, torch.as_tensor):
        one = metrics.retrieval_ap(wrap(Y), wrap(X), wrap(SETS_B), wrap(SETS_A))
        two = metrics.hamming_ap(wrap(BITS_B.astype(int)), wrap(BITS_A.astype(int)), wrap(SETS_B), wrap(SETS_A))
        assert one.shape == two.shape == (20,)


def test_own_rows_are_left_out_by_tensors_of_positions():
    own = torch.arange(20)
    np.testing.assert_array_equal(
        metrics.retrieval_ap(X[:20], X, A[:20], A, self_index=own),
        metrics.retrieval_ap(X[:20], X, A[:20], A, self_index=own.numpy()),
    )


def test_the_arguments_that_others_write_by_name_exist():
    assert list(inspect.signature(metrics.coco_ap).parameters)[:2] == ["truth_json", "detections"]
    wanted = {"coco_ap": ("iou_type", "class_agnostic"), "knn_classify": ("ks", "temperature")}
    wanted |= {"retrieval_ap": ("self_index",), "hamming_ap": ("ties",), "paired_bootstrap": ("samples", "seed")}
    for name, arguments in wanted.items():
        assert set(arguments) <= set(inspect.signature(getattr(metrics, name)).parameters), name
