"""A device and its host whose time is made up: calls take what they are told to, and every event is written down."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from tokenweave.plan import Lane


class FakeDevice:
    """Events of one stream, for an `EventClock` whose clock is `now`."""

    def __init__(self) -> None:
        self.host_s = self.free_s = 0.0  # what the host's clock says; when the stream will have done its work
        self.log: list[str] = []
        self.holds_s: list[float] = []

    def now(self) -> float:
        return self.host_s

    def issue(self, issue_s: float, work_s: float) -> None:
        """A call: the host takes `issue_s`, then the device `work_s`, as soon as it is free."""
        self.log.append("issue")
        self.host_s += issue_s
        self._queue(work_s)

    def hold(self, seconds: float) -> None:
        self.log.append("hold")
        self.holds_s.append(seconds)
        self._queue(seconds)

    def record(self) -> float:
        self.log.append("record")
        return max(self.free_s, self.host_s)

    def has_happened(self, event: float) -> bool:
        self.log.append("look")
        return event <= self.host_s

    def wait(self, event: float) -> None:
        self.log.append("wait")
        self.host_s = max(self.host_s, event)

    def seconds_between(self, begin: float, end: float) -> float:
        return end - begin

    def _queue(self, work_s: float) -> None:
        self.free_s = max(self.free_s, self.host_s) + work_s


class OneFakeStream:
    """All lanes of a plan on one stream of a `FakeDevice`, which takes `wait_s` for each wait."""

    def __init__(self, device: FakeDevice, wait_s: float) -> None:
        self._device, self._wait_s = device, wait_s
        self.waits = 0

    def stream(self, lane: Lane) -> None: ...

    def on(self, stream: None) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, stream: None) -> None: ...

    def wait(self, stream: None, event: None) -> None:
        self.waits += 1
        self._device.issue(0.0, self._wait_s)
