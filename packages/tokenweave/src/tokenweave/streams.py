"""The stream executor: a CUDA stream for each lane, and events between them. The host issues work and waits for none.

The compute lane is the caller's own current stream; the others fork from it when a run begins and join it when the run
ends. So a run can be captured in a CUDA graph, and what is queued after it sees all it did.

Thread safety: one `run` at a time.

Invariants
1. Work of a step begins on the device only after the work of every step that it waits for, and of whatever was queued
   on the caller's stream before the run.
2. A stream waits for an event only where no wait before it, and no order of a stream, implies the same.
3. A run synchronises nothing with the host, and reads nothing of the device; for observed ones see `stream_times`.

A handler that hands on a tensor to another lane must keep it until the run ends, or call its `record_stream`: to
torch's allocator a tensor is free as soon as the host lets go of it, and its memory the next tensor's of its stream.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tokenweave.execute import Handler, Observer, check_handlers, run_sequential
from tokenweave.plan import Lane, Operation, Plan
from tokenweave.sm_carveout import SmCarveout
from tokenweave.stream_times import EventClock, StreamTimes

if TYPE_CHECKING:
    import torch

Stream = TypeVar("Stream")
Event = TypeVar("Event")
START = -1  # the position of what the caller's stream held before the run


class StreamBackend(EventClock[Event], Protocol[Stream, Event]):
    """Streams and events. `CudaStreams`; `HostStreams`; in tests one that writes down what it is told."""

    def stream(self, lane: Lane) -> Stream:
        """The lane's stream, the same for each run; the compute lane's is the caller's current one."""

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """A context in which work that is issued goes to `stream`."""

    def record(self, stream: Stream) -> Event:
        """An event that happens when all that is queued on `stream` now is done."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Holds what is queued on `stream` from now on until `event` has happened."""


@dataclass(frozen=True)
class Sync:
    """Where a plan's streams have to wait for each other. Positions are those of the plan, or `START`."""

    waits: tuple[tuple[int, ...], ...]  # of each step, before it runs: steps of other lanes
    joins: tuple[int, ...]  # of the compute lane, at the end

    @cached_property
    def recorded(self) -> frozenset[int]:
        """The steps that somebody waits for: an event is recorded after each of these and no other."""
        return frozenset(self.joins).union(*self.waits)

    @classmethod
    def of(cls, plan: Plan) -> Sync:
        """The fewest waits that imply every edge of `plan`, a fork at the start and a join at the end.

        A lane's clock says up to which step of each lane everything is done once the lane gets to where it is now.
        """
        fork = {Lane.COMPUTE: START}
        clocks: dict[Lane, dict[Lane, int]] = {lane: {} for lane in Lane}
        clocks[Lane.COMPUTE] = dict(fork)
        after: dict[int, dict[Lane, int]] = {START: fork}  # the clock that a step leaves

        def needed(lane: Lane, positions: set[int]) -> tuple[int, ...]:
            """Of `positions`, those that `lane` has to wait for. The latest first, as it may imply others."""
            clock, waits = clocks[lane], []
            for other in sorted(positions, reverse=True):
                of_lane = Lane.COMPUTE if other == START else plan.steps[other].lane
                if clock.get(of_lane, START - 1) < other:
                    waits.append(other)
                    for each, position in after[other].items():
                        clock[each] = max(clock.get(each, START - 1), position)
            return tuple(waits)

        waits: list[tuple[int, ...]] = []
        for position, step in enumerate(plan.steps):
            waits.append(needed(step.lane, {START, *step.waits_for}))
            clocks[step.lane][step.lane] = position
            after[position] = dict(clocks[step.lane])
        last = {clocks[lane][lane] for lane in Lane if lane in clocks[lane]}
        return cls(tuple(waits), needed(Lane.COMPUTE, last))


class StreamExecutor(Generic[Stream, Event]):
    """Issues plans to streams, in list order."""

    def __init__(self, backend: StreamBackend[Stream, Event]) -> None:
        self._backend = backend
        self.times: StreamTimes[Event] = StreamTimes(backend)
        # By identity: to compare plans, or to hash one, costs about as much as to find out where its streams wait.
        self._syncs: dict[int, tuple[weakref.ref[Plan], Sync]] = {}

    def run(self, plan: Plan, handlers: Mapping[Operation, Handler], observe: Observer | None = None) -> None:
        """Issue every step of `plan` to its lane's stream. Returns when all is queued, not when it is done.

        `observe`, where given, is told when each step ran on its stream: by `times.collect`, not before.

        Raises:
            PlanError: the plan has a step whose operation has no handler; nothing has been issued then.
            Whatever a handler raised. The caller's stream waits for what was issued before.
        """
        check_handlers(plan, handlers)
        if observe is None:
            self._issue(plan, handlers)
        else:
            with self.times.observed(handlers, observe) as timed:
                self._issue(plan, timed)

    def run_in_order(
        self, plan: Plan, handlers: Mapping[Operation, Handler], observe: Observer | None = None
    ) -> None:
        """`run` on the caller's stream alone, one step after the other: `run_sequential`, with times of the device."""
        if observe is None:
            run_sequential(plan, handlers)
        else:
            check_handlers(plan, handlers)
            with self.times.observed(handlers, observe) as timed:
                run_sequential(plan, timed)

    def _issue(self, plan: Plan, handlers: Mapping[Operation, Handler]) -> None:
        sync, backend = self._sync_of(plan), self._backend
        streams = {lane: backend.stream(lane) for lane in Lane}
        events: dict[int, Event] = {}
        issued: dict[Lane, Stream] = {}
        if START in sync.recorded:
            events[START] = backend.record(streams[Lane.COMPUTE])
        try:
            for position, step in enumerate(plan.steps):
                stream = streams[step.lane]
                for other in sync.waits[position]:
                    backend.wait(stream, events[other])
                issued[step.lane] = stream
                with backend.on(stream):
                    handlers[step.op](step)
                if position in sync.recorded:
                    events[position] = backend.record(stream)
        except BaseException:
            for lane in issued.keys() - {Lane.COMPUTE}:
                backend.wait(streams[Lane.COMPUTE], backend.record(issued[lane]))
            raise
        for other in sync.joins:
            backend.wait(streams[Lane.COMPUTE], events[other])

    def _sync_of(self, plan: Plan) -> Sync:
        """`Sync.of`, once for each plan that is alive: it takes milliseconds for one of 80 layers."""
        key = id(plan)
        if key not in self._syncs:
            syncs = self._syncs
            alive = weakref.ref(plan, lambda _: syncs.pop(key, None))  # before another plan can have its id
            syncs[key] = (alive, Sync.of(plan))
        return self._syncs[key][1]


class CudaStreams:
    """torch.cuda's streams on one device. Transfers go before computations where both could run.

    The device is current inside `on`, whatever the calling thread's is: torch sets it with the stream.
    """

    def __init__(
        self,
        device: torch.device | int | None = None,
        sm_carveout: int = 0,
        wait: Callable[[torch.cuda.Event], None] | None = None,
    ) -> None:
        """`device`: the current one unless given. `sm_carveout`: SMs that the compute lane's products leave to others.

        `wait` holds the host until an event has happened, `Communicator.wait_for` say; unless given, the event does,
        for ever where a collective before it waits for a rank that is gone.

        Raises:
            RuntimeError: this torch, or this machine, has no CUDA.
        """
        import torch

        self._cuda = torch.cuda
        self._carveout = SmCarveout(sm_carveout) if sm_carveout else None
        self._wait = wait
        self._device = torch.cuda.current_device() if device is None else device
        self._streams = {
            lane: torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
            for lane in Lane
            if lane is not Lane.COMPUTE
        }

    def stream(self, lane: Lane) -> torch.cuda.Stream:
        if lane is Lane.COMPUTE:
            return self._cuda.current_stream(self._device)
        return self._streams[lane]

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager[object]:
        if self._carveout is None or stream in self._streams.values():
            return self._cuda.stream(stream)
        return self._on_with(stream, self._carveout)

    def record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event: torch.cuda.Event = stream.record_event()
        return event

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        stream.wait_event(event)

    def mark(self) -> torch.cuda.Event:
        event = self._cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._cuda.current_stream(self._device))
        return event

    def has_happened(self, event: torch.cuda.Event) -> bool:
        return bool(event.query())  # type: ignore[no-untyped-call]

    def wait_until(self, event: torch.cuda.Event) -> None:
        if self._wait is None:
            event.synchronize()
        else:
            self._wait(event)

    def seconds(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        return 1e-3 * float(first.elapsed_time(second))

    @contextmanager
    def _on_with(self, stream: torch.cuda.Stream, carveout: SmCarveout) -> Iterator[None]:
        with self._cuda.stream(stream), carveout:
            yield


class HostStreams:
    """Streams of a processor: all are the calling thread, and what was issued is done. Events are its clock's times."""

    def stream(self, lane: Lane) -> Lane:
        return lane

    def on(self, stream: Lane) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, stream: Lane) -> float:
        return self.mark()

    def wait(self, stream: Lane, event: float) -> None:
        """Returns at once: the event has happened."""

    def mark(self) -> float:
        return perf_counter()

    def has_happened(self, event: float) -> bool:
        return True

    def wait_until(self, event: float) -> None:
        """Returns at once: the event has happened."""

    def seconds(self, first: float, second: float) -> float:
        return second - first
