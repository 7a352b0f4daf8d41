"""Ranks as threads of one process, meeting under a lock: the readable backend, and the one easiest to debug.

Thread safety: all state shared by the ranks lives in `Rendezvous`, under its condition's lock.

Invariants:
  1. The n-th collective of every rank meets in the n-th `_Round`; rounds are never reused, so nothing resets.
  2. A value put in a round is never written again: ranks deposit copies and read each other's without a lock.
  3. On CUDA devices, one or several, ranks meet on the host, and their streams wait for each other's copies
     (`shared_tensors`). So no wait is left on a device that another rank would have to end.
"""

from __future__ import annotations

import threading
import time
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenweave.communicators.base import DEFAULT_TIMEOUT_S, Communicator
from tokenweave.communicators.shared_tensors import give, take
from tokenweave.communicators.sums import sum_in_rank_order
from tokenweave.errors import CollectiveMismatch, CommunicatorError, CommunicatorTimeout, RankError
from tokenweave.replay.records import CallSites

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from tokenweave.kernels import Kernels


@dataclass
class _Round:
    """One collective: what each rank that has arrived called and brought."""

    calls: dict[int, str] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    num_left: int = 0


class Rendezvous:
    """Where the ranks of one group meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._changed = threading.Condition()
        self._rounds: dict[int, _Round] = {}
        self._failure: RankError | CollectiveMismatch | None = None
        self._left: set[int] = set()

    def meet(
        self, index: int, rank: int, call: str, value: Any, wait_for: Iterable[int], timeout_s: float | None
    ) -> dict[int, Any]:
        """Brings `value` to round `index`; returns the values there once the ranks `wait_for` have come.

        Everything that those ranks did before they arrived is visible after it (the lock orders it).
        """
        awaited = set(wait_for)
        with self._changed:
            self._raise_failure()
            meeting = self._rounds.setdefault(index, _Round())
            self._check_same_call(meeting, rank, call)
            meeting.calls[rank], meeting.values[rank] = call, value
            self._changed.notify_all()
            self._wait(meeting, rank, call, awaited, timeout_s)
            meeting.num_left += 1
            if meeting.num_left == self.size:
                del self._rounds[index]
            return meeting.values

    def fail(self, error: RankError | CollectiveMismatch) -> None:
        """Makes every current and later `meet` raise `error`; the first failure is the one that is told."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def leave(self, rank: int) -> None:
        """Has whoever waits for `rank`, now or later, told that it will not come."""
        with self._changed:
            self._left.add(rank)
            self._changed.notify_all()

    def check(self) -> None:
        """Raises the failure, if there is one."""
        with self._changed:
            self._raise_failure()

    def _wait(
        self, meeting: _Round, rank: int, call: str, awaited: set[int], timeout_s: float | None
    ) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while missing := awaited - meeting.calls.keys():
            self._raise_failure()
            if gone := missing & self._left:
                self.fail(
                    RankError(f"{_ranks(gone)} left the group; rank {rank} was waiting in {call}", min(gone))
                )
                continue
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                message = f"rank {rank} waited {timeout_s:g} s in {call} for {_ranks(missing)}"
                self.fail(RankError(message))
                raise CommunicatorTimeout(f"{message}; check that they are alive, or raise timeout_s")
            self._changed.wait(left_s)

    def _check_same_call(self, meeting: _Round, rank: int, call: str) -> None:
        for other, other_call in meeting.calls.items():
            if other_call != call:
                message = f"rank {rank} called {call} where rank {other} called {other_call}"
                self.fail(CollectiveMismatch(f"{message}; every rank must make the same calls in order"))
                self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise copy(self._failure)  # each rank's own: a traceback must not be shared between threads


class ThreadCommunicator(Communicator):
    """One thread's end of a `thread_group`. Channel: this process's memory, that of its devices included.

    Calls on CUDA tensors are queued on the thread's current stream. No CUDA graph can capture them.
    """

    name = "thread"

    def __init__(
        self,
        rendezvous: Rendezvous,
        rank: int,
        *,
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        super().__init__(rank, rendezvous.size, kernels=kernels, timeout_s=timeout_s)
        self._rendezvous = rendezvous
        self._index = 0
        self._closed = False

    def call_sites(self) -> CallSites:
        return CallSites(python=((self, "_all_reduce"),))

    def barrier(self) -> None:
        self._meet("barrier", None, range(self.size), self.timeout_s)

    def check(self) -> None:
        self._rendezvous.check()

    def abort(self, reason: str) -> None:
        self._rendezvous.fail(RankError(f"rank {self.rank} aborted the job: {reason}", self.rank))

    def close(self) -> None:
        self._closed = True
        self._kept.clear()
        self._rendezvous.leave(self.rank)

    def _all_reduce(self, tensor: Tensor) -> None:
        call = _describe("all_reduce", tensor)
        values = self._meet(call, give(tensor), range(self.size), self.timeout_s)
        sum_in_rank_order([take(values[rank], tensor.device) for rank in range(self.size)], out=tensor)

    def _all_gather(self, tensor: Tensor, gathered: Tensor) -> None:
        call = _describe("all_gather", tensor)
        values = self._meet(call, give(tensor), range(self.size), self.timeout_s)
        for rank, part in enumerate(gathered.chunk(self.size) if gathered.numel() else ()):
            part.copy_(take(values[rank], tensor.device))

    def _broadcast(self, tensor: Tensor, root: int) -> None:
        call = _describe(f"broadcast from rank {root}", tensor)
        value = give(tensor) if self.rank == root else None
        values = self._meet(call, value, (root,), self.timeout_s)
        tensor.copy_(take(values[root], tensor.device))

    def _broadcast_bytes(self, data: bytes | None, root: int, idle: bool) -> bytes:
        timeout_s = None if idle else self.timeout_s
        values = self._meet(f"broadcast_bytes from rank {root}", data, (root,), timeout_s)
        received: bytes = values[root]
        return received

    def _meet(
        self, call: str, value: Any, wait_for: Iterable[int], timeout_s: float | None
    ) -> dict[int, Any]:
        if self._closed:
            raise CommunicatorError("the communicator is closed; make a new group")
        self._index += 1
        return self._rendezvous.meet(self._index, self.rank, call, value, wait_for, timeout_s)


def thread_group(
    size: int, *, kernels: Kernels | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[ThreadCommunicator]:
    """The `size` ends of one group, to be handed to as many threads."""
    if size < 1:
        raise CommunicatorError(f"got a group of {size}; expected at least one rank")
    rendezvous = Rendezvous(size)
    return [
        ThreadCommunicator(rendezvous, rank, kernels=kernels, timeout_s=timeout_s) for rank in range(size)
    ]


def _describe(call: str, tensor: Tensor) -> str:
    return f"{call} of {tensor.numel()} x {str(tensor.dtype).removeprefix('torch.')}"


def _ranks(ranks: Iterable[int]) -> str:
    listed = sorted(ranks)
    return f"rank{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"
