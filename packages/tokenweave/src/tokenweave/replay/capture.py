"""Captures: the first steps of a plan, bound once and replayed by native code.

Two readers of a plan beside the others. `Capture` runs the steps in list order on the calling thread, as
`run_sequential` does; `WovenCapture` runs each lane's on the lane's thread, as `LaneExecutor` does. Both leave the same
bits. What they do not do again is Python: which tensors, which sizes, which addresses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, takewhile

from tokenweave.execute import Handler, Observer, check_handlers, run_steps
from tokenweave.lanes import LaneExecutor
from tokenweave.ops import Operation
from tokenweave.plan import Lane, Plan, Step
from tokenweave.replay.calls import AnyCall, CallList, PythonCall, Span, StepCall
from tokenweave.replay.memory import PassMemory
from tokenweave.replay.progress import Progress
from tokenweave.replay.recorder import Recorder
from tokenweave.replay.records import Call, CallSites

NO_HANDLERS: Mapping[Operation, Handler] = {}


@dataclass(frozen=True)
class Refusal:
    """Why a plan's steps cannot be captured."""

    reason: str


@dataclass(frozen=True)
class Recorded:
    """The calls of a plan's first steps, and what these point to."""

    plan: Plan
    calls: tuple[tuple[Call | PythonCall, ...], ...]  # of each step
    kept: tuple[object, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.plan.steps[: len(self.calls)]

    @property
    def rest(self) -> tuple[Step, ...]:
        return self.plan.steps[len(self.calls) :]


class Replayable(ABC):
    """Steps of a plan whose calls are known.

    Thread safety: that of the kernels and of the communicator that the calls belong to.

    Invariants
    1. What the calls point to lives as long as the capture, which keeps the handlers, and so the pass that they are of.
    2. No two captures of one `PassMemory` run at once.
    """

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    @property
    def steps(self) -> tuple[Step, ...]:
        """The captured steps."""
        return self._recorded.steps

    @property
    def num_calls(self) -> int:
        return sum(map(len, self._recorded.calls))

    @abstractmethod
    def run(self, observe: Observer | None = None, rest: Mapping[Operation, Handler] = NO_HANDLERS) -> None:
        """Makes the calls again. `rest`: the handlers of the steps behind the captured ones, which then run too.

        `observe` is told of each captured step once all of them have run, with times taken in between.

        Raises:
            What the call that failed raises in an ordinary pass. Nothing was called behind it.
        """


class Capture(Replayable):
    """Steps in list order, on the calling thread."""

    def __init__(self, recorded: Recorded) -> None:
        super().__init__(recorded)
        calls: list[AnyCall] = []
        spans = []
        for step, own in zip(recorded.steps, recorded.calls, strict=True):
            spans.append(Span(step, len(calls), len(calls) + len(own)))
            calls += own
        self._list = CallList(calls, spans)

    def run(self, observe: Observer | None = None, rest: Mapping[Operation, Handler] = NO_HANDLERS) -> None:
        self._list.run(NO_HANDLERS, observe is not None)
        if observe is not None:
            self._list.tell(observe, NO_HANDLERS)
        if rest:
            run_steps(self._recorded.rest, rest, observe)


class WovenCapture(Replayable):
    """A list of calls for each lane, with the waits between them, run by the threads of `executor`."""

    def __init__(self, recorded: Recorded, executor: LaneExecutor, progress: Progress) -> None:
        super().__init__(recorded)
        self._executor, self._progress = executor, progress
        self._lists = {lane: _list_of(lane, recorded, progress) for lane in recorded.plan.places}

    def run(self, observe: Observer | None = None, rest: Mapping[Operation, Handler] = NO_HANDLERS) -> None:
        self._progress.begin()

        def run_lane(lane: Lane) -> None:
            self._lists[lane].run(rest, observe is not None)

        self._executor.run_lanes(self._lists.keys(), run_lane, self._progress.fail)
        if observe is not None:
            for calls in self._lists.values():
                calls.tell(observe, rest)


def capture(
    plan: Plan,
    handlers: Mapping[Operation, Handler],
    ops: Collection[Operation],
    sites: CallSites,
    memory: PassMemory,
    observe: Observer | None = None,
) -> Recorded | Refusal:
    """Runs the first steps of `plan`, as long as they are of `ops`, and writes down their calls.

    They run in list order on this thread, and have run, whatever is returned. `sites`: all by which their handlers call
    what is not torch.

    Raises:
        PlanError: the plan has a step whose operation has no handler; nothing has run then.
        Whatever a handler raised.
    """
    check_handlers(plan, handlers)
    recorder, ends = Recorder(memory), [0]
    with recorder.recording(sites):
        for step in takewhile(lambda step: step.op in ops, plan.steps):
            memory.go_on_with(step.part or 0)
            run_steps([step], handlers, observe)
            ends.append(len(recorder.calls))
    if recorder.refusal is not None:
        return Refusal(f"{recorder.refusal} cannot be replayed")
    calls = tuple(tuple(recorder.calls[start:stop]) for start, stop in pairwise(ends))
    return Recorded(plan, calls, (memory, dict(handlers)))


def _list_of(lane: Lane, recorded: Recorded, progress: Progress) -> CallList:
    """The calls of one lane: before each step its waits, behind it the count."""
    plan = recorded.plan
    calls: list[AnyCall] = []
    spans = []
    waited: dict[Lane, int] = {}  # how many steps of other lanes have been waited for
    for place in plan.places[lane]:
        step = plan.steps[place]
        for awaited, count in _counts(plan, step):
            if awaited.lane is not lane and waited.get(awaited.lane, 0) < count:
                waited[awaited.lane] = count
                calls.append(progress.wait_call(lane, step, awaited, count))
        own = recorded.calls[place] if place < len(recorded.calls) else (StepCall(step),)
        spans.append(Span(step, len(calls), len(calls) + len(own)))
        calls += [*own, progress.done_call(lane)]
    return CallList(calls, spans)


def _counts(plan: Plan, step: Step) -> Iterator[tuple[Step, int]]:
    """The steps that `step` waits for, each with how many its lane has done with it."""
    for place in step.waits_for:
        awaited = plan.steps[place]
        yield awaited, plan.places[awaited.lane].index(place) + 1
