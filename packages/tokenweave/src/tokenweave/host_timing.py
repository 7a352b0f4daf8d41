"""Measures host costs: what the executors of this machine add to the steps of a plan."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from tokenweave.execute import Handler, run_sequential
from tokenweave.host_costs import HostCosts
from tokenweave.lanes import LaneExecutor
from tokenweave.plan import Lane, Operation, plan_forward
from tokenweave.streams import StreamExecutor

if TYPE_CHECKING:
    from tokenweave.stage_clock import Call, StageClock
    from tokenweave.streams import StreamBackend

NAP_S = 5e-4  # about what one waits for a link


def measure_lanes() -> HostCosts:
    """Of lanes that are threads."""
    return HostCosts(switch_s=measure_switch_s(), wake_s=measure_wake_s())


def measure_switch_s(num_layers: int = 20, rounds: int = 5) -> float:
    """Seconds that the lane executor adds to each transfer of a woven plan: a plan whose steps do nothing."""
    plan = plan_forward(num_layers, 2, 1)
    nothing: dict[Operation, Handler] = {op: lambda step: None for op in plan.ops}
    best_s = float("inf")
    with LaneExecutor() as executor:
        for _ in range(rounds):
            start = time.perf_counter()
            executor.run(plan, nothing)
            best_s = min(best_s, time.perf_counter() - start)
    return best_s / len(plan.on(Lane.TRANSFER))


def measure_wake_s(rounds: int = 50) -> float:
    """Seconds by which a short sleep ends late: the median, as here the late ones are the rule."""
    late_s = []
    for _ in range(rounds):
        start = time.perf_counter()
        time.sleep(NAP_S)
        late_s.append(time.perf_counter() - start - NAP_S)
    return max(0.0, statistics.median(late_s))


def measure_stream_switch_s(
    clock: StageClock, backend: StreamBackend[Any, Any], kernel: Call, num_layers: int = 20, rounds: int = 5
) -> float:
    """Seconds that streams add to each transfer of a plan, whose steps are one tiny `kernel` each.

    The plan is not woven: each step waits for the one before it, on the other stream. Beside it the same kernels follow
    each other on one stream.
    """
    plan = plan_forward(num_layers, 2)
    tiny: dict[Operation, Handler] = {op: lambda step: _ignore(kernel()) for op in plan.ops}
    executor = StreamExecutor(backend)
    apart_s, together_s = (
        min(clock.seconds(run, 1) for _ in range(rounds))
        for run in (lambda: executor.run(plan, tiny), lambda: run_sequential(plan, tiny))
    )
    return max(0.0, apart_s - together_s) / len(plan.on(Lane.TRANSFER))


def _ignore(result: object) -> None:
    """A handler returns nothing."""
