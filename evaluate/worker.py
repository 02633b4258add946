"""A worker of a fan-out: `python -m evaluate.worker REQUEST.json` goes through its units and leaves records and notes.

Workers know nothing of each other; claims on the disk say what somebody is at work on (see `evaluate.claims`). One that
is killed leaves a claim that the others, or the next command, take over.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from evaluate import run
from evaluate.claims import Claims
from evaluate.evaluator import Item
from evaluate.fanout import claims_of
from evaluate.processes import Processes

PATIENCE = 0.5  # seconds between two looks at what others have


def work(request: Mapping[str, Any]) -> None:
    """Evaluate the units of a request that nobody else has; returns when each is recorded or noted."""
    config: Any = OmegaConf.create({**request["config"], "quiet": True, "overwrite": False})
    evaluator = run.make_evaluator(config, Processes(local_world=request["local_world"]))
    evaluator.claims, evaluator.outdated = claims_of(config.output), request["outdated"]
    evaluator.store.claims = Claims(Path(config.cache) / "claims")
    plan: dict[str, list[Item]] = {}
    for unit in request["units"]:
        item = run.as_item(**unit["entry"])
        plan.setdefault(unit["name"], []).append(Item(item.task, item.data, unit["key"]))
    while plan:
        before, evaluator.busy = len(evaluator.written) + len(evaluator.unfit), []
        evaluator.evaluate(plan)
        plan = {}
        for name, item in evaluator.busy:
            plan.setdefault(name, []).append(item)
        while plan and before == len(evaluator.written) + len(evaluator.unfit) and not free(evaluator.claims, plan):
            time.sleep(PATIENCE)


def free(claims: Claims, plan: Mapping[str, list[Item]]) -> bool:
    """Whether nobody is at work on one of the items any more."""
    return any(not claims.owner(item.key) for items in plan.values() for item in items)


class Job:
    """Work that a cluster can run, stop and queue again."""

    def __call__(self, request: Mapping[str, Any]) -> None:
        work(request)

    def checkpoint(self, request: Mapping[str, Any]) -> Any:
        """What submitit queues when the job is pre-empted or out of time: the same, which goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, request)


def main() -> None:
    """Work through the request in the file named on the command line."""
    work(json.loads(Path(sys.argv[1]).read_text()))


if __name__ == "__main__":
    main()
