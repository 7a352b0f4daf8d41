"""Captures: the first steps of a plan, bound once and replayed by native code in one call.

A reader of a plan beside the others: it runs the steps in list order on the calling thread, as `run_sequential` does,
and leaves the same bits. What it does not do again is Python: which tensors, which sizes, which addresses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from ctypes import byref, c_double, c_int64
from dataclasses import dataclass
from itertools import takewhile

from tokenweave.execute import Handler, Observer, check_handlers, run_steps
from tokenweave.native import load
from tokenweave.ops import Operation
from tokenweave.plan import Plan, Step
from tokenweave.replay.memory import PassMemory
from tokenweave.replay.recorder import Recorder
from tokenweave.replay.records import NativeCaller, array_of


@dataclass(frozen=True)
class Refusal:
    """Why a plan's steps cannot be captured."""

    reason: str


class Capture:
    """Steps of a plan whose calls are known.

    Thread safety: that of the kernels and of the communicator that the calls belong to.

    Invariants
    1. What the calls point to lives as long as the capture, which keeps the handlers, and so the pass that they are of.
    2. No two captures of one `PassMemory` run at once.
    """

    def __init__(
        self, steps: Sequence[Step], ends: Sequence[int], recorder: Recorder, kept: tuple[object, ...]
    ) -> None:
        """The calls of `steps[i]` end before `ends[i]`; `kept` is what they point to."""
        self.steps = tuple(steps)
        self._starts, self._ends = (0, *ends[:-1]), tuple(ends)
        self._kept = kept
        self._calls = tuple(recorder.calls)
        self._records = array_of(self._calls)
        self._times = (c_double * (len(self._calls) + 1))()

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    def run(self, observe: Observer | None = None) -> None:
        """Makes the calls again. `observe` is told of each step once all are made, with times taken in between.

        Raises:
            What the call that failed raises in an ordinary pass. Nothing was called behind it.
        """
        done = c_int64()
        times = None if observe is None else self._times
        status = load().tw_replay(self._records, len(self._calls), times, byref(done))
        if status:
            failed = self._calls[done.value]
            failed.caller.raise_status(status, failed.name.removeprefix("tw_"))
        if observe is not None:
            for step, start, end in zip(self.steps, self._starts, self._ends, strict=True):
                observe(step, self._times[start], self._times[end])


def capture(
    plan: Plan,
    handlers: Mapping[Operation, Handler],
    ops: Collection[Operation],
    callers: Collection[NativeCaller],
    memory: PassMemory,
    observe: Observer | None = None,
) -> Capture | Refusal:
    """Runs the first steps of `plan`, as long as they are of `ops`, and captures them.

    They have run, whatever is returned. `callers`: all that their handlers call the native library by.

    Raises:
        PlanError: the plan has a step whose operation has no handler; nothing has run then.
        Whatever a handler raised.
    """
    check_handlers(plan, handlers)
    recorder, ends = Recorder(memory), []
    steps = list(takewhile(lambda step: step.op in ops, plan.steps))
    with recorder.recording(callers):
        for step in steps:
            run_steps([step], handlers, observe)
            ends.append(len(recorder.calls))
    if recorder.refusal is not None:
        return Refusal(f"{recorder.refusal} cannot be replayed")
    return Capture(steps, ends, recorder, (memory, dict(handlers)))
