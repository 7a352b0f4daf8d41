"""Executors: dumb readers of a plan.

The sequential executor runs the steps in list order on the calling thread. It is the oracle that every other
executor is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tokenweave.errors import PlanError
from tokenweave.plan import Op, Plan, Step

Handler = Callable[[Step], None]
Observer = Callable[[Step, float, float], None]  # step, start and end in seconds of time.perf_counter


def run_sequential(plan: Plan, handlers: Mapping[Op, Handler], observe: Observer | None = None) -> None:
    """Run every step of `plan` in list order.

    `observe`, where given, is told when each step began and ended.

    Raises:
        PlanError: the plan has a step whose operation has no handler; nothing has run then.
    """
    check_handlers(plan, handlers)
    if observe is None:
        for step in plan.steps:
            handlers[step.op](step)
        return
    for step in plan.steps:
        start = time.perf_counter()
        handlers[step.op](step)
        observe(step, start, time.perf_counter())


def check_handlers(plan: Plan, handlers: Mapping[Op, Handler]) -> None:
    """Raises PlanError unless every operation of `plan` has a handler."""
    missing = plan.ops - handlers.keys()
    if missing:
        raise PlanError(f"no handler for {sorted(missing)}; got handlers for {sorted(handlers)}")
