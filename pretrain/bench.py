"""Speed of pre-training as ratios: `python -m pretrain.bench [--peers] [--quick] [objective=... data=... ...]`.

--data measures the data pipeline by number of images instead (see `bench_data`); --peers also runs the same objective
as another library trains it (see `bench_peers`); --quick takes fewer and shorter rounds.

Compares, interleaved in one run and best of several rounds, the whole loop (decode, crop, colours, teacher, student,
loss, clipping, optimiser, teacher update) with the bare forward and backward of the same networks on ready views, by
timm's own forward pass in all threads. A ratio of 1 means that the rest costs no more than the loop saves in the last
block and by its threads. Also says how much of a step waits for the next batch, and what the bare networks reach in
floating-point operations a second (a product and a sum are two), to be held against the device's peak.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from pretrain import cli
from pretrain.bench_data import bench_data
from pretrain.bench_peers import PEERS, Peer
from pretrain.prepare import Run, own_threads, prepare
from pretrain.teacher import Network
from pretrain.train import start_epoch, train_step
from pretrain.views import finished_views

#: rounds, and steps of each
FULL, QUICK = (5, 12), (3, 4)


def batches_for_ever(run: Run) -> Iterator[dict[str, Any]]:
    """Batches of successive epochs from the run's loader."""
    epoch = 0
    while True:
        run.batches.epoch, run.batches.start = epoch, 0
        yield from run.loader
        epoch += 1


def synchronise(run: Run) -> None:
    """Wait for the device."""
    if run.fabric.device.type == "cuda":
        torch.cuda.synchronize()


def time_loop(run: Run, source: Iterator[dict[str, Any]], waits: list[float], steps: int) -> float:
    """Seconds a step of the whole loop; adds to `waits` the share of it that passes until the next batch is there."""
    began, waited = time.perf_counter(), 0.0
    with own_threads(run.trainer["threads"]):
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            train_step(run, batch, 0)
        synchronise(run)
    whole = time.perf_counter() - began
    waits.append(waited / whole)
    return whole / steps


def whole_network(network: Network, views: list[torch.Tensor]) -> torch.Tensor:
    """The head's rows by timm's own forward pass, in which all tokens go through the last block: (V N, B)."""
    by_size = [torch.cat(list(group)) for _, group in groupby(views, key=lambda view: view.shape)]
    return network.head(torch.cat([network.backbone.vit(images) for images in by_size]))


def bare_step(run: Run, views: list[torch.Tensor]) -> None:
    """One forward and backward of the student and one forward of the teacher on ready views."""
    with run.fabric.autocast():
        if run.teacher is not None:
            with torch.no_grad():
                whole_network(run.teacher, views[:2])
        run.depth.begin(0, 0, len(views[0]), len(views[0]))
        loss = whole_network(run.network, views).float().square().mean()
    run.fabric.backward(loss)
    run.student.zero_grad()


def time_bare(run: Run, views: list[torch.Tensor], steps: int) -> float:
    """Seconds of a `bare_step`."""
    began = time.perf_counter()
    for _ in range(steps):
        bare_step(run, views)
    synchronise(run)
    return (time.perf_counter() - began) / steps


def time_peer(run: Run, peer: Peer, steps: int) -> float:
    """Seconds a step of another library's loop."""
    began = time.perf_counter()
    for _ in range(steps):
        peer.step()
    synchronise(run)
    return (time.perf_counter() - began) / steps


def bench(cfg: DictConfig, peers: bool = False, quick: bool = False, command: Sequence[str] = ()) -> None:
    """Measure and print one table."""
    run = prepare(cfg, Path(cfg.runs) / "bench")
    start_epoch(run, 0)
    source = batches_for_ever(run)
    backbone, batch = run.network.backbone, next(source)
    views = finished_views(batch, backbone.mean, backbone.std, run.fabric.device)
    waits: list[float] = []
    measures = [partial(time_loop, run, source, waits), partial(time_bare, run, views)]
    measures += [partial(time_peer, run, Peer(run))] if peers else []
    rounds, steps = QUICK if quick else FULL
    for measure in measures:
        measure(2)  # warm-up
    times = [[measure(steps) for measure in measures] for _ in range(rounds)]
    with FlopCounterMode(display=False) as counter:
        bare_step(run, views)
    loop, bare, *others = (min(column) for column in zip(*times, strict=True))
    size = run.batches.batch_size
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if run.fabric.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    threads, device = torch.get_num_threads(), run.fabric.device
    print(f"{date.today()}  {platform.machine()}, {threads} threads, {device}, torch {torch.__version__}")
    print(f"python -m pretrain.bench {' '.join(command)}")
    print(
        f"{run.info['objective']}, {backbone.spec['name']}, {len(views)} views of {views[0].shape[-1]} px, batch {size}"
    )
    print(f"{'whole loop':<28}{size / loop:10.1f} images/s")
    print(f"{'bare forward and backward':<28}{size / bare:10.1f} images/s")
    print(f"{'bare networks reach':<28}{counter.get_total_flops() / bare / 1e9:10.1f} GFLOP/s")
    print(f"{'waiting for data':<28}{100 * min(waits):10.1f} % of a step")
    print(f"{'ratio':<28}{bare / loop:10.2f}   (best of {rounds} rounds of {steps} steps)")
    for other in others:
        name = f"{PEERS[run.info['objective']]}, whole loop"
        print(f"{name:<28}{size / other:10.1f} images/s")
        print(f"{'ours to theirs':<28}{other / loop:10.2f}")
    print(f"{'peak memory':<28}{memory:10.0f} MiB")


def main() -> None:
    """Entry point of `python -m pretrain.bench`."""
    peers, quick, command = "--peers" in sys.argv, "--quick" in sys.argv, sys.argv[1:]
    if "--data" in sys.argv:
        return bench_data(quick)
    sys.argv = [word for word in sys.argv if word not in ("--peers", "--quick")]
    cli.run(partial(bench, peers=peers, quick=quick, command=command), "pretrain")


if __name__ == "__main__":
    main()
