"""Speed of the metrics against the usual routines, as ratios measured in one process: `python -m evaluate.bench`.

Each row does the same work by the reference and by ours, first asserts that the results agree, then times the two in
turn and keeps the best of five. Absolute times depend on the machine and its load; the ratios are what to compare. A
row is one function that returns a `Comparison`; add yours to `ROWS`.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F

from evaluate import bench_features, bench_memory
from evaluate.metrics import hamming_ap, knn_classify, retrieval_ap
from evaluate.metrics.ranking import Relevance, sorted_ap
from evaluate.probes import Sweep, Tokens
from evaluate.storage import write_whole
from evaluate.timing import Comparison, measure
from pretrain.arguments import Parser

INPUTS = ((1, False), (1, True), (4, False), (4, True))  # last blocks x with the average of the patches
RATES = tuple(10 ** (-5 + i / 3) for i in range(13))


def clusters(count: int, width: int, classes: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (count, width) float32 around class centres, which are the same for every seed, and labels (count,)."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    return F.normalize(centres[labels] + noise * torch.randn(count, width, generator=g)), labels


def chunked_torch_knn(train, train_labels, test, k: int, temperature: float, classes: int) -> np.ndarray:
    """Predicted classes by the published k-NN protocol in plain torch: chunks of 100 queries, topk, one-hot vote."""
    out = []
    for chunk in test.split(100):
        similarity, index = (chunk @ train.T).topk(k, dim=1)
        one_hot = F.one_hot(train_labels[index], classes).float()
        votes = (one_hot * (similarity / temperature).exp()[..., None]).sum(dim=1)
        out.append(votes.sort(dim=1, descending=True).indices[:, 0])
    return torch.cat(out).numpy()


def knn(quick: bool) -> Comparison:
    """Weighted k-NN, k = 20, 1000 classes, 384 dimensions."""
    train, labels = clusters(20_000 if quick else 50_000, 384, 1000, 3.5, seed=1)
    test, truth = clusters(1_000 if quick else 5_000, 384, 1000, 3.5, seed=2)

    def check(reference: np.ndarray, ours: dict) -> None:
        same = (reference == ours[20]["predictions"]).mean()
        assert same >= 0.998, f"only {same:.4f} of the predictions agree"

    return Comparison(
        f"k-NN, {len(test)} x {len(train)}",
        "torch, chunks of 100, topk",
        lambda: chunked_torch_knn(train, labels, test, 20, 0.07, 1000),
        lambda: knn_classify(train, labels, test, truth, ks=[20], num_classes=1000),
        check,
    )


def argsort_ap(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Average precision by numpy's default sort of every row."""
    out = np.full(len(scores), np.nan)
    for i, row in enumerate(scores):
        rank = np.flatnonzero(relevant[i, np.argsort(-row)]) + 1
        if len(rank):
            out[i] = (np.arange(1, len(rank) + 1) / rank).mean()
    return out


def close(reference: np.ndarray, ours: np.ndarray) -> None:
    """Equal up to the order of equal scores, which numpy's default sort leaves open."""
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)


def retrieval_inputs(quick: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, database and their class indices."""
    database, database_labels = clusters(20_000 if quick else 50_000, 384, 1000, 3.5, seed=1)
    queries, labels = clusters(100 if quick else 400, 384, 1000, 3.5, seed=2)
    return queries, database, labels, database_labels


def class_sets(count: int, seed: int) -> np.ndarray:
    """Class sets (count, 80) of zeros and ones of uneven frequency, so that about a third of all pairs share one."""
    g = np.random.default_rng(seed)
    return (g.random((count, 80)) < 0.14 * np.random.default_rng(0).random(80)).astype(np.uint8)


def mean_ap_single(quick: bool) -> Comparison:
    """mAP@ALL from given scores, one class an image."""
    queries, database, labels, database_labels = retrieval_inputs(quick)
    scores = (queries @ database.T).numpy()
    relevance = Relevance(labels.numpy(), database_labels.numpy())
    relevant = (labels[:, None] == database_labels).numpy()
    return Comparison(
        f"mAP single-label, ranking only, {len(queries)} x {len(database)}",
        "numpy argsort per query",
        lambda: argsort_ap(scores, relevant),
        lambda: relevance.compiled_ap(scores, 0),
        close,
    )


def mean_ap_multi(quick: bool) -> Comparison:
    """mAP@ALL from given scores, class sets."""
    queries, database, _, _ = retrieval_inputs(quick)
    scores = (queries @ database.T).numpy()
    query_sets, database_sets = class_sets(len(queries), 3), class_sets(len(database), 4)
    relevance = Relevance(query_sets, database_sets)
    relevant = (query_sets.astype(np.float32) @ database_sets.T.astype(np.float32)) > 0
    return Comparison(
        f"mAP multi-label, ranking only, {len(queries)} x {len(database)}",
        "numpy argsort per query, relevance given",
        lambda: argsort_ap(scores, relevant),
        lambda: relevance.compiled_ap(scores, 0),
        close,
    )


def mean_ap_whole(quick: bool) -> Comparison:
    """mAP@ALL from features to AP, one class an image."""
    queries, database, labels, database_labels = retrieval_inputs(quick)

    def reference() -> np.ndarray:
        scores = (F.normalize(queries) @ F.normalize(database).T).numpy()
        return argsort_ap(scores, (labels[:, None] == database_labels).numpy())

    return Comparison(
        f"mAP single-label, from features, {len(queries)} x {len(database)}",
        "torch product, numpy argsort per query",
        reference,
        lambda: retrieval_ap(queries, database, labels, database_labels),
        lambda reference, ours: np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-3),
    )


def hamming_inputs(quick: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random query and database codes of 256 bits with class indices."""
    g = np.random.default_rng(0)
    database = g.integers(0, 2, (20_000 if quick else 50_000, 256), dtype=np.uint8)
    queries = g.integers(0, 2, (50 if quick else 250, 256), dtype=np.uint8)
    return queries, database, g.integers(0, 1000, len(queries)), g.integers(0, 1000, len(database))


def hamming_index(quick: bool) -> Comparison:
    """Hamming mAP with ties by index, the rule that a stable sort gives."""
    queries, database, labels, database_labels = hamming_inputs(quick)

    def reference() -> np.ndarray:
        out = np.full(len(queries), np.nan)
        for i, code in enumerate(queries):
            order = np.argsort((code != database).sum(axis=1), kind="stable")
            rank = np.flatnonzero(database_labels[order] == labels[i]) + 1
            out[i] = (np.arange(1, len(rank) + 1) / rank).mean()
        return out

    return Comparison(
        f"Hamming mAP, ties by index, {len(queries)} x {len(database)} x 256 bits",
        "numpy distance and stable argsort",
        reference,
        lambda: hamming_ap(queries, database, labels, database_labels, ties="index"),
        lambda reference, ours: np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-9),
    )


def hamming_average(quick: bool) -> Comparison:
    """Hamming mAP with the expectation over ties, the default rule."""
    queries, database, labels, database_labels = hamming_inputs(quick)
    signs, database_signs = (torch.from_numpy(x).float() * 2 - 1 for x in (queries, database))
    relevant = torch.from_numpy(labels[:, None] == database_labels)

    def reference() -> np.ndarray:
        parts = [sorted_ap(s @ database_signs.T, r, "average", None, "retrieved")
                 for s, r in zip(signs.split(50), relevant.split(50), strict=True)]  # fmt: skip
        return torch.cat(parts).numpy()

    return Comparison(
        f"Hamming mAP, ties averaged, {len(queries)} x {len(database)} x 256 bits",
        "torch product of signs and stable sort",
        reference,
        lambda: hamming_ap(queries, database, labels, database_labels),
        lambda reference, ours: np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-9),
    )


def sweep(quick: bool) -> Comparison:
    """A step of the 52 heads of the linear probe, batch 128, 384 dimensions, against its matrix products alone."""
    classes = 100 if quick else 1000
    g = torch.Generator().manual_seed(0)
    tokens = Tokens(torch.randn(4, 128, 384, generator=g), torch.randn(128, 384, generator=g))
    labels = torch.randint(0, classes, (128,), generator=g)
    inputs = [tokens.input(kind) for kind in INPUTS]
    heads = Sweep({kind: tokens.width(kind) for kind in INPUTS}, RATES, classes, 10**6)
    weights = [torch.randn(len(RATES) * classes, x.shape[1], generator=g) for x in inputs]
    logits = torch.randn(128, len(RATES) * classes, generator=g)
    gradients = [torch.empty_like(weight) for weight in weights]

    def products() -> None:
        for x, weight, gradient in zip(inputs, weights, gradients, strict=True):
            torch.mm(x, weight.T, out=logits)
            torch.mm(logits.T, x, out=gradient)

    def check(reference: None, ours: None) -> None:
        assert not heads.diverged and all(bool(group.values[0].any()) for group in heads.groups)

    def step() -> None:
        heads.step(tokens, labels)

    name = f"step of {len(heads.heads)} linear heads, {classes} classes"
    return Comparison(name, "its matrix products alone", products, step, check)


ROWS: tuple[Callable[[bool], Comparison], ...] = (
    knn,
    mean_ap_single,
    mean_ap_multi,
    mean_ap_whole,
    hamming_index,
    hamming_average,
    sweep,
    *bench_features.ROWS,
)


def machine() -> dict[str, Any]:
    """What the times depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "torch_threads": torch.get_num_threads(),
        "numba_threads": numba.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (torch, np, numba)},
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "command": "python -m evaluate.bench " + " ".join(sys.argv[1:]),
    }


def main() -> None:
    """Print one line a row; write JSON only where --output says."""
    parser = Parser(prog="python -m evaluate.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller inputs, under a minute")
    parser.add_argument("--only", default="", help="run the rows whose function name contains this")
    parser.add_argument("--memory", action="store_true", help="peak memory by size of the database instead")
    parser.add_argument("--output", type=Path, help="also write the result to this JSON file")
    arguments = parser.parse_args()
    if arguments.memory:
        bench_memory.main(arguments.quick)
        return
    rows = [row for row in ROWS if arguments.only in row.__name__]
    if not rows:
        parser.error(f"--only {arguments.only!r} matches none of {', '.join(row.__name__ for row in ROWS)}")
    about = machine()
    for key, value in about.items():
        print(f"{key}: {value}")
    timings = []
    for row in rows:
        timing = measure(row(arguments.quick))
        timings.append(timing._asdict())
        print(f"{timing.ratio:8.1f}x  {timing.name}  {timing.ours_s:.4f} s against {timing.reference_s:.4f} s "
              f"({timing.reference_name})", flush=True)  # fmt: skip
    if arguments.output:
        write_whole(arguments.output, (json.dumps({"machine": about, "timings": timings}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
