"""Several seeds of one recipe as one record: the mean score, and the outcomes of every seed for a two-level test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evaluate.leaderboard.recipes import recipe
from evaluate.leaderboard.samples import Pairs
from evaluate.records import Record, Score, checkpoint_key

BY_SEED = "by_seed"  # outcomes (seeds, n) of a merged record


def of_recipe(records: Sequence[Record], name: str) -> list[Record]:
    """One record for each place that all seeds of the recipe called `name` share; empty unless it has several seeds.

    Raises ValueError when several recipes have this name.
    """
    recipes: dict[tuple, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        shared = recipe(record.checkpoint)
        if shared[0] == name and record.checkpoint.get("seed") is not None:
            recipes[shared][checkpoint_key(record.checkpoint)].append(record)
    several = [seeds for seeds in recipes.values() if len(seeds) > 1]
    if len(several) > 1:
        about = [next(iter(seeds.values()))[0].checkpoint for seeds in several]
        each = ", ".join(f"{c.get('backbone')} (epoch {c.get('epoch')})" for c in about)
        raise ValueError(f"{name!r} names {len(several)} recipes ({each}): name a checkpoint of one of them")
    return merged(name, list(several[0].values())) if several else []


def merged(name: str, seeds: Sequence[Sequence[Record]]) -> list[Record]:
    """The records that all seeds have, each as one; seeds: records of each checkpoint."""
    by_protocol: dict[tuple, list[Record]] = defaultdict(list)
    for record in (record for records in seeds for record in records):
        by_protocol[record.task, record.dataset, record.fingerprint].append(record)
    return [_merge(name, group) for group in by_protocol.values() if len(group) == len(seeds)]


def _merge(name: str, group: Sequence[Record]) -> Record:
    first = group[0]
    digest = "seeds:" + "+".join(sorted(record.checkpoint["weights_digest"] for record in group))
    about = first.checkpoint | {"name": f"{name}, {len(group)} seeds", "weights_digest": digest, "seed": None}
    value = float(np.mean([record.score.value for record in group]))
    score = Score(value, None, None, first.score.n, first.score.unit, first.score.scale)
    return replace(first, checkpoint=about, scores={first.main: score}, outcomes=_stacked(group), path=None)


def _stacked(group: Sequence[Record]) -> dict[str, np.ndarray]:
    """Mean outcomes and those of each seed, in the order of sample ids; nothing where the seeds do not match."""
    rows = []
    for record in group:
        values, ids = record.main_outcomes(), record.outcomes.get("sample_id")
        if values is None or ids is None or values.shape != ids.shape:
            return {}
        order = np.argsort(ids, kind="stable")
        rows.append((ids[order], values[order].astype(np.float64), order))
    ids, _, order = rows[0]
    if not all(np.array_equal(ids, other) for other, *_ in rows):
        return {}
    table = np.stack([values for _, values, _ in rows])
    kept = {"sample_id": ids, group[0].main: table.mean(axis=0), BY_SEED: table}
    return kept | ({"group": group[0].outcomes["group"][order]} if "group" in group[0].outcomes else {})


def tables(a: Record, b: Record, pairs: Pairs) -> tuple[np.ndarray, np.ndarray] | None:
    """Outcomes (seeds, n) of both, in the order of `pairs`; None where neither is a recipe of several seeds."""
    if BY_SEED not in a.outcomes and BY_SEED not in b.outcomes:
        return None
    return _table(a, pairs.ids, pairs.a), _table(b, pairs.ids, pairs.b)


def _table(record: Record, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Outcomes (seeds, n) for `ids`; of a single checkpoint those of `values`, brought into line already."""
    if BY_SEED not in record.outcomes:
        return values[None]
    known = record.outcomes["sample_id"]  # sorted when the seeds were merged
    return record.outcomes[BY_SEED][:, np.searchsorted(known, ids)]
