"""Progress: how far the lanes of a captured pass have come, which native code counts and waits for.

Thread safety: a lane's steps are counted by its own thread; `fail` may be called by any.
"""

from __future__ import annotations

from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any

from tokenweave.errors import CommunicatorTimeout, TokenweaveError
from tokenweave.native import check_status, load
from tokenweave.plan import Lane, Step
from tokenweave.replay.records import Call, call_of

SPIN_NS = 2_000  # more would be lost to the other lane where both have one core between them
_LANES = tuple(Lane)
_TIMEOUT, _ABORTED = -4, -5  # of tw_status


class LaneFailed(TokenweaveError):
    """Ends a lane because of another's failure, which is the one that is told."""


class Progress:
    """The counts of all lanes. `timeout_s` bounds each wait."""

    def __init__(self, timeout_s: float) -> None:
        self.library: Any = load()
        self.timeout_s = timeout_s
        self._handle = c_void_p()
        status = self.library.tw_lanes_create(len(_LANES), int(timeout_s * 1e9), SPIN_NS, self._handle)
        check_status(status, f"tw_lanes_create({len(_LANES)})")

    def begin(self) -> None:
        """Before each run: no lane has done a step, and none has failed."""
        self.raise_status(self.library.tw_lanes_begin(self._handle), "lanes_begin")

    def fail(self) -> None:
        """Ends the waits of all lanes: one of them has failed."""
        self.library.tw_lanes_fail(self._handle)

    def wait_call(self, own: Lane, step: Step, awaited: Step, count: int) -> Call:
        """The call by which the lane `own`, before `step`, waits for `awaited`, the last of `count` steps."""
        waiter = _Waiter(
            self.library, f"the {own} lane waited {self.timeout_s:g} s in {step.name} for {awaited.name}"
        )
        return _known(call_of(waiter, "tw_lane_wait", (self._handle, _LANES.index(awaited.lane), count)))

    def done_call(self, own: Lane) -> Call:
        """The call by which a lane counts a step that it has done."""
        return _known(call_of(self, "tw_lane_done", (self._handle, _LANES.index(own))))

    def raise_status(self, status: int, call: str) -> None:
        """Raises what a call that returned `status` raises."""
        _raise_status(status, call, "")

    def close(self) -> None:
        """Frees the counts; no call that counts or waits may be made any more."""
        handle, self._handle = self._handle, c_void_p()
        self.library.tw_lanes_destroy(handle)

    def __del__(self) -> None:
        self.close()


@dataclass(slots=True)
class _Waiter:
    """A NativeCaller that knows what its call waits for."""

    library: Any
    message: str

    def raise_status(self, status: int, call: str) -> None:
        _raise_status(status, call, self.message)


def _raise_status(status: int, call: str, waited: str) -> None:
    if status == _ABORTED:
        raise LaneFailed("another lane of this pass has failed")
    if status == _TIMEOUT:
        raise CommunicatorTimeout(f"{waited}; check that the ranks are alive, or raise timeout_s")
    check_status(status, call)


def _known(call: Call | None) -> Call:
    assert call is not None, "the library replays its own waits"
    return call
