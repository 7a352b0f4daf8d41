"""When the steps of observed runs ran on a device, told on the host's clock once the device has done them.

A timed event is recorded on a step's own stream before and after its work. Between two runs events that have happened
are read, and are kept as seconds of the device. `collect` tells the observers, when the device's clock has been
compared with the host's at the beginning and at the end: so each time is placed between the two comparisons.

Thread safety: none.

Invariants
1. The host waits for the device before the first observed run, in `collect`, and where the device has fallen more than
   `MAX_PENDING` steps behind; never otherwise, and never inside a run.
2. Events are held for `MAX_PENDING` steps at most, or for one run where it has more. Times are kept for `MAX_STEPS`, or
   for one run; of earlier runs no observer is told.
3. An observer is told of each step that ended, once, in the order in which they were issued.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from tokenweave.execute import Handler, Observer
    from tokenweave.plan import Operation, Step

MAX_PENDING = 8192  # steps: 16,384 events
MAX_STEPS = 1_000_000  # as many as a trace keeps; 24 MB
COMPARISONS = 5  # of the two clocks, of which the closest counts
# CUDA gives the time between two events as float32 milliseconds: to 0.06 us up to a second, to 6 us up to 100.
FAR_S = 1.0

Event = TypeVar("Event")


class EventClock(Protocol[Event]):
    """Events that tell when they happened."""

    def mark(self) -> Event:
        """A timed event that happens when all that is queued now on the stream where work goes is done."""

    def has_happened(self, event: Event) -> bool:
        """Whether the event has; the host does not wait."""

    def wait_until(self, event: Event) -> None:
        """Holds the host until the event has happened."""

    def seconds(self, first: Event, second: Event) -> float:
        """The time between two events that have happened; negative where the second was first."""


@dataclass(frozen=True)
class Alignment:
    """How a device's clock was placed on the host's."""

    within_s: float  # at its two ends a recording is off by so much at most
    drift: float  # what the host's clock gains in a second of the device's, in seconds; 0 where too little to be seen


@dataclass(frozen=True)
class _Comparison(Generic[Event]):
    """An event, and when it happened by the host's clock: at most `within_s` before or after `host_s`."""

    event: Event
    host_s: float
    within_s: float


class _Run(Generic[Event]):
    """An observed run whose events have not been read."""

    def __init__(self, observe: Observer) -> None:
        self.observe = observe
        self.steps: list[Step] = []
        self.events: list[Event] = []  # of each step, when it began and when it ended

    def timed(self, handler: Handler, clock: EventClock[Event]) -> Handler:
        def handle(step: Step) -> None:
            begun = clock.mark()
            handler(step)
            self.events += begun, clock.mark()
            self.steps.append(step)

        return handle


@dataclass(frozen=True)
class _Times:
    """A run that has been read: of each step, when it began and ended in seconds of the device."""

    observe: Observer
    steps: list[Step]
    seconds: array[float]


class StreamTimes(Generic[Event]):
    """The times of the observed runs on the streams of one device."""

    def __init__(self, clock: EventClock[Event]) -> None:
        self._clock = clock
        self._pending: deque[tuple[_Run[Event], Event]] = deque()  # and the event of the run's end
        self._num_pending = 0  # steps
        self._read: deque[_Times] = deque()
        self._num_read = 0  # steps
        self._begin: _Comparison[Event] | None = None
        self._near: tuple[Event, float]  # an event not long ago, and its seconds of the device since `_begin`

    @contextmanager
    def observed(
        self, handlers: Mapping[Operation, Handler], observe: Observer
    ) -> Iterator[Mapping[Operation, Handler]]:
        """Gives handlers for one run, each of which runs with its step's stream as the one where work goes.

        Inside, everything that the run issues is queued. When it ends, the stream where work goes has to be behind all
        of it. Not while a CUDA graph is captured: a graph has no events of its own to be read.
        """
        if self._begin is None:
            self._begin = self._compare()
            self._near = self._begin.event, 0.0
        run: _Run[Event] = _Run(observe)
        try:
            yield {op: run.timed(handler, self._clock) for op, handler in handlers.items()}
        finally:
            self._pending.append((run, self._clock.mark()))
            self._num_pending += len(run.steps)
            self._read_what_is_done()

    def collect(self) -> Alignment:
        """Waits for the observed runs, and tells their observers."""
        if self._begin is None:
            return Alignment(0.0, 0.0)
        begin, end = self._begin, self._compare()
        while self._pending:
            self._read_one()
        told, self._read = self._read, deque()
        self._num_read, self._begin = 0, None
        alignment, zero_s = _aligned(begin, end, self._seconds(end.event))
        rate = 1.0 + alignment.drift
        for run in told:
            for step, began_s, ended_s in zip(run.steps, run.seconds[::2], run.seconds[1::2], strict=True):
                run.observe(step, zero_s + rate * began_s, zero_s + rate * ended_s)
        return alignment

    def _compare(self) -> _Comparison[Event]:
        """Compares the clocks while nothing is queued: an event happens after it is issued, before the host sees it."""
        clock = self._clock
        clock.wait_until(clock.mark())
        found = []
        for _ in range(COMPARISONS):
            issued_s = perf_counter()
            event = clock.mark()
            while not clock.has_happened(event):
                pass  # nothing is ahead of it: some microseconds, and to wake up would take more
            seen_s = perf_counter()
            found.append(_Comparison(event, (issued_s + seen_s) / 2, (seen_s - issued_s) / 2))
        return min(found, key=lambda each: each.within_s)

    def _read_what_is_done(self) -> None:
        while self._pending and self._clock.has_happened(self._pending[0][1]):
            self._read_one()
        while self._num_pending > MAX_PENDING and len(self._pending) > 1:
            self._read_one()

    def _read_one(self) -> None:
        """Turns the events of the earliest run into seconds, once they have happened."""
        run, end = self._pending.popleft()
        self._num_pending -= len(run.steps)
        self._clock.wait_until(end)
        self._read.append(_Times(run.observe, run.steps, array("d", map(self._seconds, run.events))))
        self._num_read += len(run.steps)
        while self._num_read > MAX_STEPS and len(self._read) > 1:
            self._num_read -= len(self._read.popleft().steps)

    def _seconds(self, event: Event) -> float:
        """Of the device, since the clocks were compared; by an event near enough that the answer is exact."""
        near, near_s = self._near
        seconds = near_s + self._clock.seconds(near, event)
        if seconds - near_s > FAR_S:
            self._near = event, seconds
        return seconds


def _aligned(begin: _Comparison[Event], end: _Comparison[Event], device_s: float) -> tuple[Alignment, float]:
    """How the clocks compare, and where zero of the device's lies on the host's.

    Each comparison leaves a range for it. Where they have a part in common, no drift is to be seen.
    """
    within_s = max(begin.within_s, end.within_s)
    ranges = [
        (each.host_s - at_s - each.within_s, each.host_s - at_s + each.within_s)
        for each, at_s in ((begin, 0.0), (end, device_s))
    ]
    first_s, last_s = max(low for low, _ in ranges), min(high for _, high in ranges)
    if first_s <= last_s:
        return Alignment(within_s, 0.0), (first_s + last_s) / 2
    return Alignment(within_s, (end.host_s - begin.host_s) / device_s - 1.0), begin.host_s
