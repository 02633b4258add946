"""Pure metric functions: arrays or tensors in, numbers out; no model, no file format, no configuration.

arrays      what every metric asks of its input
cosine      unit rows and blocks of similarities
ranking     average precision of full rankings (retrieval_ap, ranking_ap, mean_ap)
hamming     the same for binary codes, by Hamming or asymmetric distance
knn         weighted nearest-neighbour classification
landmark    revisited Oxford / Paris: trapezoid AP and mP@k
geometry    spectrum and effective dimensions of embeddings
codes       entropies and correlations of bits
binarise    codes of real-valued features: sign, ITQ, random projection
domain      distance of two clouds of features (Frechet, MMD)
statistics  bootstrap intervals and paired tests (numpy and scipy only)
video       DAVIS region similarity J and contour accuracy F
coco        COCO average precision
segmentation, masks, eigen, bit_graph, largest, dense_crf, lattice: parts of the dense tasks

Names are imported on first use, so that statistics never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate.metrics.coco import coco_ap
    from evaluate.metrics.codes import bit_correlation, bit_entropy, block_entropy, trailing_entropy
    from evaluate.metrics.geometry import (
        alignment,
        class_alignment,
        effective_dimension,
        effective_rank,
        explained_variance,
        rank_me,
        spectrum,
        uniformity,
    )
    from evaluate.metrics.hamming import asymmetric_hamming_ap, hamming_ap, hamming_prefix_ap
    from evaluate.metrics.knn import knn_classify, knn_search
    from evaluate.metrics.landmark import landmark_ap, mp_at_k
    from evaluate.metrics.ranking import MeanAP, mean_ap, ranking_ap, retrieval_ap
    from evaluate.metrics.statistics import (
        bootstrap_interval,
        holm,
        mcnemar,
        paired_bootstrap,
        permutation_test,
        seed_mean_interval,
        seeds_difference,
        seeds_interval,
        wilson_interval,
    )
    from evaluate.metrics.video import contour_accuracy, region_similarity

_MODULES = {
    "coco": ("coco_ap",),
    "codes": ("bit_correlation", "bit_entropy", "block_entropy", "trailing_entropy"),
    "geometry": (
        "alignment",
        "class_alignment",
        "effective_dimension",
        "effective_rank",
        "explained_variance",
        "rank_me",
        "spectrum",
        "uniformity",
    ),
    "hamming": ("asymmetric_hamming_ap", "hamming_ap", "hamming_prefix_ap"),
    "knn": ("knn_classify", "knn_search"),
    "landmark": ("landmark_ap", "mp_at_k"),
    "ranking": ("MeanAP", "mean_ap", "ranking_ap", "retrieval_ap"),
    "statistics": (
        "bootstrap_interval",
        "holm",
        "mcnemar",
        "paired_bootstrap",
        "permutation_test",
        "seed_mean_interval",
        "seeds_difference",
        "seeds_interval",
        "wilson_interval",
    ),
    "video": ("contour_accuracy", "region_similarity"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "MeanAP",
    "alignment",
    "asymmetric_hamming_ap",
    "bit_correlation",
    "bit_entropy",
    "block_entropy",
    "bootstrap_interval",
    "class_alignment",
    "coco_ap",
    "contour_accuracy",
    "effective_dimension",
    "effective_rank",
    "explained_variance",
    "hamming_ap",
    "hamming_prefix_ap",
    "holm",
    "knn_classify",
    "knn_search",
    "landmark_ap",
    "mcnemar",
    "mean_ap",
    "mp_at_k",
    "paired_bootstrap",
    "permutation_test",
    "rank_me",
    "ranking_ap",
    "region_similarity",
    "retrieval_ap",
    "seed_mean_interval",
    "seeds_difference",
    "seeds_interval",
    "spectrum",
    "trailing_entropy",
    "uniformity",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
