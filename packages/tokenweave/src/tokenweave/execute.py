"""Executors: dumb readers of a plan.

The sequential executor runs the steps in list order on the calling thread. It is the oracle that every other
executor is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from tokenweave.errors import PlanError
from tokenweave.ops import Operation
from tokenweave.plan import Plan, Step

Handler = Callable[[Step], None]
Observer = Callable[[Step, float, float], None]  # step, start and end in seconds of time.perf_counter


def run_sequential(
    plan: Plan, handlers: Mapping[Operation, Handler], observe: Observer | None = None
) -> None:
    """Run every step of `plan` in list order.

    `observe`, where given, is told when each step began and ended.

    Raises:
        PlanError: the plan has a step whose operation has no handler; nothing has run then.
    """
    check_handlers(plan, handlers)
    run_steps(plan.steps, handlers, observe)


def run_steps(
    steps: Iterable[Step], handlers: Mapping[Operation, Handler], observe: Observer | None = None
) -> None:
    """Run some steps of a plan whose handlers have been checked, in order."""
    if observe is None:
        for step in steps:
            handlers[step.op](step)
        return
    for step in steps:
        start = time.perf_counter()
        handlers[step.op](step)
        observe(step, start, time.perf_counter())


def check_handlers(plan: Plan, handlers: Mapping[Operation, Handler]) -> None:
    """Raises PlanError unless every operation of `plan` has a handler."""
    missing = plan.ops - handlers.keys()
    if missing:
        raise PlanError(f"no handler for {_labels(missing)}; got handlers for {_labels(handlers)}")


def handlers_of(owner: object, ops: Iterable[Operation]) -> dict[Operation, Handler]:
    """The method of `owner` that each of `ops` names as its handler.

    Raises:
        PlanError: `owner` has no such method.
    """
    check_methods(owner, ops)
    return {op: getattr(owner, op.handler) for op in ops}


def check_methods(owner: object, ops: Iterable[Operation]) -> None:
    """Raises PlanError unless `owner`, an object or its class, has the method that each of `ops` names."""
    missing = [op for op in ops if not callable(getattr(owner, op.handler, None))]
    if missing:
        name = owner.__qualname__ if isinstance(owner, type) else type(owner).__qualname__
        expected = ", ".join(sorted(f"{name}.{op.handler}(step)" for op in missing))
        raise PlanError(f"no handler for {_labels(missing)}: expected a method {expected}")


def _labels(ops: Iterable[Operation]) -> str:
    return ", ".join(sorted(op.label for op in ops)) or "none"
