"""Speed of MaskCut, J&F and COCO AP against plain references written here from the published definitions.

Each row is (name, our seconds, reference seconds, ratio): the best of a few alternating runs. Both sides must agree
first, J and F to the last bit, since a faster wrong answer is no result. `python -m evaluate.bench_dense --output
results/bench/dense.md` writes the table with the machine that it holds for.
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.linalg
import torch

from evaluate.bench import machine
from evaluate.dense import dense_features
from evaluate.features import Store
from evaluate.metrics.coco import coco_ap, encode_mask
from evaluate.metrics.graph_cut import maskcut_batch, masks_to_detections
from evaluate.metrics.video import contour_tolerance, evaluate_sequence
from evaluate.storage import write_whole
from evaluate.tasks.objects import maskcut
from pretrain.arguments import Parser
from pretrain.backbones import Backbone

Row = tuple[str, float, float, float]


def bench_maskcut(images: int = 3, grid: int = 30, dim: int = 384, repeats: int = 5) -> list[Row]:
    """Three stages of MaskCut on `images` feature maps (dim, grid, grid) against a dense float64 solver."""
    rows = []
    for seed in range(images):
        features = _object_features(seed, grid, dim)
        rows.append(
            _race(
                f"MaskCut, {grid} x {grid} patches, image {seed}",
                partial(maskcut, features, tau=0.15),
                partial(_dense_maskcut, features.numpy(), 0.15, 3),
                repeats,
            )
        )
    return rows


def bench_jf(frames: int = 10, objects: int = 3, repeats: int = 5) -> list[Row]:
    """J and F of a 480 x 854 sequence against the same formulas on whole frames."""
    truth, prediction = _moving_objects(frames, objects)

    def ours() -> np.ndarray:
        scores = evaluate_sequence(truth, prediction)
        return np.stack([scores.j, scores.f])

    return [
        _race(
            f"J&F, {frames} frames of 480 x 854, {objects} objects",
            ours,
            lambda: _plain_jf(truth, prediction, objects),
            repeats,
            exact=True,
        )
    ]


def bench_coco(images: int = 200, repeats: int = 4) -> list[Row]:
    """The 12 COCO numbers of boxes and masks, class-aware and class-agnostic, against pycocotools, loading included."""
    truth, detections = _coco_scene(images)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        path.write_text(json.dumps(truth))
        for iou_type in ("bbox", "segm"):
            for agnostic in (False, True):
                name = f"COCO {iou_type}, {'class-agnostic' if agnostic else 'class-aware'}, {images} images"
                rows.append(
                    _race(
                        name,
                        partial(coco_ap, path, detections, iou_type=iou_type, class_agnostic=agnostic),
                        partial(_pycocotools, path, detections, iou_type=iou_type, class_agnostic=agnostic),
                        repeats,
                    )
                )
    return rows


def bench_path(batch: int | None = None, rounds: int = 3) -> tuple[str, float, float]:
    """The whole path from pixels to COCO results, ViT-S/16 at 480 px: device, images a second, share of the backbone.

    On a GPU where there is one; the weights are random, which moves no time.
    """
    store = Store(tempfile.gettempdir(), quiet=True)
    on_gpu = store.device.type == "cuda"
    batch = batch or (16 if on_gpu else 2)
    backbone = Backbone(name="vit_small_patch16_224", image_size=480, patch_size=16, init="fan_in").eval()
    pixels = torch.randint(0, 256, (batch, 3, 480, 480), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    forward, whole = np.inf, np.inf
    for _ in range(rounds + 1):  # the first one warms up
        start = time.perf_counter()
        keys = dense_features(store, backbone, pixels, "keys").permute(0, 3, 1, 2)
        if on_gpu:
            torch.cuda.synchronize()
        middle = time.perf_counter()
        for masks in maskcut_batch(keys, tau=0.15):
            masks_to_detections(masks, (480, 640), image_id=1, input_size=(480, 480))
        whole, forward = min(whole, time.perf_counter() - start), min(forward, middle - start)
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    return device, batch / whole, forward / whole


def _race(
    name: str, ours: Callable[[], Any], reference: Callable[[], Any], repeats: int, *, exact: bool = False
) -> Row:
    """Best times of alternating runs, so that a busy machine slows both; RuntimeError when results differ."""
    if not np.allclose(np.asarray(ours()), np.asarray(reference()), rtol=0, atol=0 if exact else 1e-9):
        raise RuntimeError(f"{name}: the fast and the reference result differ")
    best = [np.inf, np.inf]
    for _ in range(repeats):
        for side, run in enumerate((ours, reference)):
            start = time.perf_counter()
            run()
            best[side] = min(best[side], time.perf_counter() - start)
    return name, best[0], best[1], best[1] / best[0]


def _object_features(seed: int, grid: int, dim: int) -> torch.Tensor:
    """Patch features of a background with a gradient and three ellipses: alike inside a region, noisy everywhere."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((grid, grid), np.uint8)
    for k in range(1, 4):
        centre, axes = rng.integers(grid // 5, grid - grid // 5, 2), rng.integers(grid // 10, grid // 4, 2) + 1
        cv2.ellipse(labels, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, k, -1)
    prototypes = rng.standard_normal((4, dim))
    slope = np.linspace(-0.5, 0.5, grid)[:, None, None] * rng.standard_normal(dim)
    features = prototypes[labels] + slope + 0.9 * rng.standard_normal((grid, grid, dim))
    return torch.from_numpy(features.transpose(2, 0, 1).astype(np.float32))


def _dense_maskcut(features: np.ndarray, tau: float, stages: int) -> np.ndarray:
    """MaskCut as published, with a dense generalised eigen-decomposition a stage and the sign fixed."""
    dim, height, width = features.shape
    rows = features.reshape(dim, -1).T.copy()
    masks = np.zeros((stages, height, width), dtype=bool)
    previous = np.zeros((height, width), dtype=bool)
    for stage in range(stages):
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        a = np.where(unit @ unit.T > tau, 1.0, 1e-5)
        degree = np.diag(a.sum(axis=1))
        vector = scipy.linalg.eigh(degree - a, degree, subset_by_index=[1, 2])[1][:, 0].reshape(height, width)
        size = np.abs(vector)
        if vector.flat[np.argmax(size >= size.max() * (1 - 1e-6))] < 0:
            vector = -vector
        side = vector > vector.mean()
        if side[0, 0] + side[0, -1] + side[-1, 0] + side[-1, -1] >= 3:
            side, vector = ~side, -vector
        parts = cv2.connectedComponents(side.astype(np.uint8), connectivity=4)[1]
        mask = parts == parts.flat[np.argmax(vector >= vector.max() - 1e-6 * np.abs(vector).max())]
        if stage and ((mask & previous).sum() > 0.5 * (mask | previous).sum() or mask.mean() <= 0.01):
            mask = np.zeros_like(mask)
        masks[stage] = mask & ~masks.any(axis=0)
        rows[mask.reshape(-1)] = 0
        previous = mask
    return masks


def _moving_objects(frames: int, objects: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Label maps of drifting ellipses, and the same displaced and deformed a little as the prediction."""
    maps: tuple[list, list] = ([], [])
    for t in range(frames):
        for side, label_maps in enumerate(maps):
            canvas = np.zeros((480, 854), np.uint8)
            for k in range(objects):
                centre = (150 + 240 * k + 9 * t + 4 * side, 220 + 30 * (k % 2) - 3 * side)
                cv2.ellipse(canvas, centre, (60 + 8 * side, 110), 12.0 * t + 5 * side, 0, 360, k + 1, -1)
            label_maps.append(canvas)
    return maps


def _plain_jf(truth: list[np.ndarray], prediction: list[np.ndarray], objects: int) -> np.ndarray:
    """J and F by their formulas on whole frames, (2, objects, frames)."""
    scores = np.empty((2, objects, len(truth)))
    radius = contour_tolerance(*truth[0].shape)
    offsets = np.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
    for t, maps in enumerate(zip(truth, prediction, strict=True)):
        for k in range(objects):
            a, b = (labels == k + 1 for labels in maps)
            union = np.sum(a | b)
            scores[0, k, t] = np.sum(a & b) / union if union else 1.0
            edges = [_plain_boundary(mask) for mask in (a, b)]
            near = [cv2.dilate(edge.astype(np.uint8), disk).astype(bool) for edge in edges]
            precision, recall = np.sum(edges[1] & near[0]) / edges[1].sum(), np.sum(edges[0] & near[1]) / edges[0].sum()
            scores[1, k, t] = 2 * precision * recall / (precision + recall)
    return scores


def _plain_boundary(mask: np.ndarray) -> np.ndarray:
    right, below, diagonal = np.zeros((3, *mask.shape), dtype=bool)
    right[:, :-1], below[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    boundary = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    boundary[-1], boundary[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1]
    boundary[-1, -1] = False
    return boundary


def _coco_scene(images: int) -> tuple[dict, list[dict]]:
    """Seven elliptic objects an image of 640 x 480 in 80 classes, and thirty detections near them."""
    rng = np.random.default_rng(0)
    records: tuple[list[dict], list[dict]] = ([], [])
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for image in range(1, images + 1):
        shapes = np.column_stack(
            [rng.uniform(80, 560, 7), rng.uniform(80, 400, 7), rng.uniform(8, 75, (7, 2)), rng.integers(1, 81, 7)]
        )
        for cx, cy, rx, ry, category in shapes:
            outline = np.column_stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)])
            item: dict[str, Any] = {
                "id": len(records[0]) + 1,
                "image_id": image,
                "category_id": int(category),
                "iscrowd": 0,
            }
            box, area = [cx - rx, cy - ry, 2 * rx, 2 * ry], float(np.pi * rx * ry)
            records[0].append(item | {"bbox": box, "area": area, "segmentation": [outline.ravel().tolist()]})
        for shape in shapes[rng.integers(0, 7, 30)]:
            cx, cy, rx, ry = shape[:4] + rng.normal(0, 4, 4)
            canvas = np.zeros((480, 640), np.uint8)
            cv2.ellipse(canvas, (int(cx), int(cy)), (int(max(rx, 3)), int(max(ry, 3))), 0, 0, 360, 1, -1)
            item = {"image_id": image, "category_id": int(shape[4])}
            box = [cx - rx, cy - ry, max(2 * rx, 1), max(2 * ry, 1)]
            item["score"] = round(float(rng.random()), 3)
            records[1].append(item | {"bbox": box, "segmentation": encode_mask(canvas)})
    truth = {
        "images": [{"id": i, "height": 480, "width": 640} for i in range(1, images + 1)],
        "annotations": records[0],
        "categories": [{"id": i, "name": str(i)} for i in range(1, 81)],
    }
    return truth, records[1]


def _pycocotools(path: Path, detections: list[dict], *, iou_type: str, class_agnostic: bool) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    unused = "bbox" if iou_type == "segm" else "segmentation"
    results = [{key: value for key, value in item.items() if key != unused} for item in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluator.params.useCats = int(not class_agnostic)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def table(rows: list[Row], path: tuple[str, float, float], about: dict[str, Any]) -> str:
    """The results as a page in Markdown."""
    head = [
        "# Speed of the dense tasks",
        "",
        "Best of alternating runs in one process; the ratios are what to compare.",
    ]
    facts = [f"- {key}: {value}" for key, value in about.items()]
    lines = [f"| {name} | {ours:.4f} | {reference:.4f} | {ratio:.1f}x |" for name, ours, reference, ratio in rows]
    device, speed, share = path
    end = f"MaskCut from pixels to COCO results, ViT-S/16 at 480 px on {device}: {speed:.2f} images a second, "
    end += f"{100 * (1 - share):.0f} % of the time outside the backbone."
    body = ["| work | ours, s | reference, s | ratio |", "|:--|--:|--:|--:|", *lines]
    return "\n".join([*head, "", *facts, "", *body, "", end, ""])


def main() -> None:
    """Print one line a row; with --output write them as a page in Markdown."""
    parser = Parser(prog="python -m evaluate.bench_dense", description=main.__doc__)
    parser.add_argument("--output", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    rows = []
    for bench in (bench_maskcut, bench_jf, bench_coco):
        for row in bench():
            rows.append(row)
            name, ours, reference, ratio = row
            print(f"{ratio:8.1f}x  {name}  {ours:.4f} s against {reference:.4f} s", flush=True)
    path = bench_path()
    print(f"MaskCut, pixels to results on {path[0]}: {path[1]:.2f} images/s, {100 * path[2]:.0f} % in the backbone")
    command = "python -m evaluate.bench_dense" + (f" --output {arguments.output}" if arguments.output else "")
    if arguments.output:
        write_whole(arguments.output, table(rows, path, machine() | {"command": command}).encode())


if __name__ == "__main__":
    main()
