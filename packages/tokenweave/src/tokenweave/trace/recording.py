"""Recordings: when the steps of one rank's passes ran."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from tokenweave.execute import Observer
from tokenweave.plan import Plan, Step


@dataclass(frozen=True, slots=True)
class Span:
    """When a step ran, in seconds of a clock."""

    step: Step
    position: int  # in its plan
    start_s: float
    end_s: float


class Pass:
    """One run of a plan on one rank; a step that did not run has no times."""

    def __init__(self, number: int, plan: Plan, times: array[float] | None = None) -> None:
        """`times`: start and end of each step, in the order of the plan; NaN where unknown."""
        self.number, self.plan = number, plan
        self.times = array("d", [math.nan]) * (2 * len(plan.steps)) if times is None else times

    def observer(self) -> Observer:
        """Writes down each step's times. Each has its own place, so any lane's thread may call at any time."""
        place = {id(step): 2 * position for position, step in enumerate(self.plan.steps)}
        times = self.times

        def observe(step: Step, start: float, end: float) -> None:
            at = place[id(step)]
            times[at], times[at + 1] = start, end

        return observe

    def spans(self) -> Iterator[Span]:
        for position, step in enumerate(self.plan.steps):
            start_s, end_s = self.times[2 * position : 2 * position + 2]
            if not math.isnan(end_s):
                yield Span(step, position, start_s, end_s)


@dataclass(frozen=True)
class Recording:
    """One rank's passes, in seconds of the trace's clock."""

    rank: int
    passes: tuple[Pass, ...]
