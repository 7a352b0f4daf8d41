"""Messages between the ranks of a torch group beside the collectives: who waits where, and why the job ended.

Thread safety: the store serves one operation at a time; any thread may call.

Invariants:
  1. Nothing is written on the fast path: a rank posts only once it has waited for `SLICE_S`.
  2. The reason of an abort is written once; the first stays.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tokenweave.errors import CommunicatorTimeout, RankError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._C._distributed_c10d import Store

    from tokenweave.environment import TorchrunEnvironment

SLICE_S = 0.25  # how often a waiting rank looks at the board
MEETING_SLICE_S = 0.02
ROLL_CALL_S = 1.0  # how long the survivors of a lost connection have to say that they are there


class Bulletin:
    """A board in the group's store, under a prefix of its own."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size

    def post_waiting(self, step: int) -> None:
        """Says that this rank waits in its `step`-th collective."""
        self._store.set(f"waiting/{self._rank}", str(step))

    def missing(self, step: int) -> list[int]:
        """The ranks that have not said that they wait in `step` or a later one."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        return [rank for rank in others if int(self._read(f"waiting/{rank}") or -1) < step]

    def roll_call(self, step: int) -> list[int]:
        """The ranks that stay silent although a connection is lost: those that are gone.

        Raises:
            RankError: somebody knows why, and has said so.
        """
        until = time.monotonic() + ROLL_CALL_S
        self.post_waiting(step)
        while (silent := self.missing(step)) and time.monotonic() < until:
            self.raise_if_aborted()
            time.sleep(0.02)
        self.raise_if_aborted()
        return silent

    def silent(self, step: int) -> list[int]:
        """The ranks that do not wait, now: those that are gone, or that hang.

        Raises:
            RankError: somebody knows why, and has said so.
        """
        others = [rank for rank in range(self._size) if rank != self._rank]
        for rank in others:  # who waits says so again
            self._store.delete_key(f"waiting/{rank}")
        until = time.monotonic() + ROLL_CALL_S
        while silent := [rank for rank in others if not self._store.check([f"waiting/{rank}"])]:
            self.raise_if_aborted()
            if time.monotonic() >= until:
                break
            self.post_waiting(step)
            time.sleep(0.02)
        return silent

    def gone(self, step: int) -> list[int]:
        """The ranks that left the group before their `step`-th collective, so that nobody need wait for them."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        left = {rank: self._read(f"left/{rank}") for rank in others}
        return [rank for rank, at in left.items() if at is not None and int(at) < step]

    def abort(self, message: str, rank: int | None) -> None:
        """Tells every rank that the job has ended, why, and by whose fault."""
        self._store.compare_set("abort", "", json.dumps({"message": message, "rank": rank}))

    def raise_if_aborted(self) -> None:
        text = self._read("abort")
        if text is not None:
            self._store.set(f"heard/{self._rank}", "1")
            raise RankError(**json.loads(text))

    def wait_until_heard(self, patience_s: float) -> None:
        """Waits until every rank knows of the abort, at most `patience_s`: the store may go with this rank."""
        until = time.monotonic() + patience_s
        names = [f"heard/{rank}" for rank in range(self._size) if rank != self._rank]
        while not self._store.check(names) and time.monotonic() < until:
            time.sleep(0.005)

    def say_goodbye(self, step: int, patience_s: float) -> None:
        """Waits until every rank has called it, at most `patience_s`: messages on the way must not be cut off.

        `step`: how many collectives this rank has made. Whoever waits for it in a later one is told.
        """
        until = time.monotonic() + patience_s
        self._store.set(f"left/{self._rank}", str(step))
        names = [f"left/{rank}" for rank in range(self._size)]
        while not self._store.check(names) and self._read("abort") is None and time.monotonic() < until:
            time.sleep(0.005)

    def _read(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None


def meet(
    store: Store, where: TorchrunEnvironment, timeout_s: float, watch: Callable[[], None] | None = None
) -> None:
    """Returns once every rank has called it on the same store; `watch` is called while one is missing, and may raise.

    Raises:
        CommunicatorTimeout: a rank did not come within `timeout_s`.
        RuntimeError: the store is gone.
    """
    until = time.monotonic() + timeout_s
    store.set(f"here/{where.rank}", "1")
    missing = list(range(where.world_size))
    while missing := [rank for rank in missing if not store.check([f"here/{rank}"])]:
        if watch is not None:
            watch()
        if time.monotonic() >= until:
            raise CommunicatorTimeout(
                f"rank {where.rank} could not meet rank{'s' if len(missing) > 1 else ''} "
                f"{', '.join(map(str, missing))} of {where.world_size} at {where.master_addr}:{where.master_port} "
                f"within {timeout_s:g} s; check that they were started, or raise timeout_s"
            )
        time.sleep(MEETING_SLICE_S)
