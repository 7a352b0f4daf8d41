"""Clocks for stages: how long a call takes that a wave table is made of, on a processor and on a GPU.

Thread safety: one thread, that of the rank whose stages are timed.

A GPU's work is timed between two events of its stream. The host is to have no part in that time: the stream is held
until all calls have been issued, so that they follow each other without a gap, and nothing waits between the events.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

Event = TypeVar("Event")
Call = Callable[[], object]

LEAST_HOLD_S = 200e-6
MOST_HOLD_S = 0.25  # what issues for longer was compiled meanwhile, and is timed again in the next round
HOLD = 1.5  # of the time in which the host has issued as many calls before
CALIBRATED_CYCLES = 10_000_000


class StageClock(Protocol):
    """Times calls that follow each other."""

    def seconds(self, call: Call, repeats: int) -> float:
        """Seconds of one call, on average over `repeats`. Ranks that meet in a call make all of them alike."""


class HostClock:
    """The clock of a processor: the calling thread's own time, or the wall's where a call computes on several."""

    def __init__(self, threads: int) -> None:
        """A single thread's own time leaves out what other programs took."""
        self._now = time.thread_time if threads == 1 else time.perf_counter

    def seconds(self, call: Call, repeats: int) -> float:
        start = self._now()
        for _ in range(repeats):
            call()
        return (self._now() - start) / repeats


class Events(Protocol[Event]):
    """Events of a device's stream. `CudaEvents`; in tests one that writes down what it is told."""

    def hold(self, seconds: float) -> None:
        """Has the stream do nothing for about so long, from when it gets there."""

    def record(self) -> Event:
        """An event that happens when all that is queued on the stream now is done."""

    def has_happened(self, event: Event) -> bool:
        """Whether it has, without waiting."""

    def wait(self, event: Event) -> None:
        """Returns when it has happened."""

    def seconds_between(self, begin: Event, end: Event) -> float:
        """Of two that have happened."""


class EventClock(Generic[Event]):
    """The clock of a GPU's stream.

    Each sample makes `repeats` + 2 calls, whatever it finds, so that ranks which meet in them stay together: one to
    learn how long the host takes to issue it, and one behind the hold, where ranks that began at different times meet.
    """

    def __init__(self, events: Events[Event], now: Callable[[], float] = time.perf_counter) -> None:
        """`now`: the host's clock."""
        self._events, self._now = events, now
        self._margin = HOLD

    def seconds(self, call: Call, repeats: int) -> float:
        """As for every clock. Where the host did not keep ahead, the time is too long, and later holds are longer."""
        events = self._events
        issued_s = self.issue_s(call)
        events.hold(min(MOST_HOLD_S, max(LEAST_HOLD_S, self._margin * (repeats + 1) * issued_s)))
        call()
        begin = events.record()
        for _ in range(repeats):
            call()
        end = events.record()
        if events.has_happened(begin):
            self._margin *= 2
        events.wait(end)
        return events.seconds_between(begin, end) / repeats

    def issue_s(self, call: Call) -> float:
        """Seconds of the host to issue one call, with nothing else queued. Returns when the device has done it."""
        start = self._now()
        call()
        issued_s = self._now() - start
        self._events.wait(self._events.record())
        return issued_s


class CudaEvents:
    """Events of the current stream of the current device of torch.cuda. No GPU has run it yet."""

    def __init__(self, wait: Callable[[torch.cuda.Event], None] | None = None) -> None:
        """Finds out how fast the device counts; takes some milliseconds.

        `wait` holds the host until an event has happened, `Communicator.wait_for` say; unless given, the event does.
        """
        import torch

        self._cuda, self._wait = torch.cuda, wait
        self._sleep(1)  # loads the kernel, while nothing is timed
        begin = self.record()
        self._sleep(CALIBRATED_CYCLES)
        end = self.record()
        self.wait(end)
        self._cycles_per_s = CALIBRATED_CYCLES / self.seconds_between(begin, end)

    def hold(self, seconds: float) -> None:
        self._sleep(int(seconds * self._cycles_per_s))

    def record(self) -> torch.cuda.Event:
        event = self._cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def has_happened(self, event: torch.cuda.Event) -> bool:
        happened: bool = event.query()  # type: ignore[no-untyped-call]
        return happened

    def wait(self, event: torch.cuda.Event) -> None:
        if self._wait is not None:
            self._wait(event)
        else:
            event.synchronize()

    def seconds_between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        elapsed_ms: float = begin.elapsed_time(end)
        return 1e-3 * elapsed_ms

    def _sleep(self, cycles: int) -> None:
        # torch has no public call that keeps a stream busy without touching memory.
        self._cuda._sleep(cycles)  # type: ignore[no-untyped-call]
