"""The waits of one rank of a torch group: each ends, with the work done or with an error that names who is to blame.

Thread safety: as the communicator's, one thread at a time.

Invariant: a wait looks at the bulletin every `SLICE_S`, so an abort or a dead peer ends it, also one without bound.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from tokenweave.communicators.bulletin import SLICE_S
from tokenweave.errors import CollectiveMismatch, CommunicatorTimeout, RankError

if TYPE_CHECKING:
    import torch.distributed as dist

    from tokenweave.communicators.bulletin import Bulletin

SLICE_ENDED = "Operation timed out!"  # Work.wait, by the slice it was given
GROUP_GAVE_UP = "Timed out"  # gloo, by the group's own timeout


class Waits:
    """Waits for the work of a group, counts its collectives, and keeps the first failure."""

    def __init__(self, bulletin: Bulletin, rank: int, timeout_s: float) -> None:
        self.bulletin = bulletin
        self.step = 0  # how many collectives this rank has begun
        self.failure: RankError | CollectiveMismatch | None = None
        self._rank = rank
        self._timeout_s = timeout_s
        self._checked_s = -SLICE_S
        self._unfinished: list[dist.Work] = []  # those waited for, and those that a failure left

    def finish(self, work: dist.Work, call: str, idle: bool = False) -> None:
        """Waits for `work` in slices, looking at the bulletin after each."""
        self._unfinished.append(work)
        deadline = time.monotonic() + self._timeout_s
        while True:
            left_s = SLICE_S if idle else max(0.001, deadline - time.monotonic())
            try:
                work.wait(timedelta(seconds=min(SLICE_S, left_s)))
                self._unfinished.remove(work)
                return
            except RuntimeError as error:
                if SLICE_ENDED in str(error):  # the work may have ended since: then the next wait says how
                    gave_up = False
                else:
                    gave_up = GROUP_GAVE_UP in str(error)
                    if not gave_up:
                        self.fail_as_lost(call, error)
            timed_out = not idle and time.monotonic() >= deadline
            self._look_at_bulletin(call, timed_out or gave_up)

    @property
    def name(self) -> str:
        return f"rank {self._rank}"

    def check(self) -> None:
        """Raises `RankError` if the job has ended. It looks every `SLICE_S` at most: the store is another process."""
        if (now_s := time.monotonic()) - self._checked_s < SLICE_S:
            return
        self._checked_s = now_s
        try:
            self.bulletin.raise_if_aborted()
        except RankError as error:
            self.failure = error
            raise
        except RuntimeError as error:
            self.fail_as_lost("a wait for the link", error)

    def look(self, call: str) -> None:
        """Looks at the bulletin once, as a wait does that goes on.

        Raises:
            RankError: the job has ended, or a rank has left that the wait is for.
        """
        self._look_at_bulletin(call, timed_out=False)

    def give_up_on_device(self, waited_s: float) -> NoReturn:
        """Raises what a wait for this rank's device raises that has taken too long; it names who does not answer."""
        try:
            silent = self.bulletin.silent(self.step)
        except RankError as error:
            self.failure = error
            raise
        except RuntimeError as error:
            self.fail_as_lost("a wait for its device", error)
        who = f"{_ranks(silent)} did not answer" if silent else "every other rank answered"
        message = f"{self.name} waited {waited_s:g} s for its device, and {who}"
        self.failure = RankError(message, silent[0] if len(silent) == 1 else None)
        with suppress(RuntimeError):
            self.bulletin.abort(message, self.failure.rank)
        raise CommunicatorTimeout(
            f"{message}; check that they are alive, or raise timeout_s where a pass takes longer"
        )

    def let_go(self) -> list[dist.Work]:
        """Drops the bulletin and returns the work that has not ended; the last call."""
        unfinished = [work for work in self._unfinished if not work.is_completed()]
        del self.bulletin, self._unfinished
        return unfinished

    def _look_at_bulletin(self, call: str, timed_out: bool) -> None:
        try:
            self.bulletin.raise_if_aborted()
            self.bulletin.post_waiting(self.step)
            if gone := self.bulletin.gone(self.step):
                message = f"{_ranks(gone)} left the group; rank {self._rank} was waiting in {call}"
                self.bulletin.abort(message, gone[0])
                self.bulletin.raise_if_aborted()
            if timed_out:
                missing = self.bulletin.missing(self.step)
                message = f"rank {self._rank} waited {self._timeout_s:g} s in {call} for {_ranks(missing)}"
                self.failure = RankError(message)
                self.bulletin.abort(message, None)
                raise CommunicatorTimeout(f"{message}; check that they are alive, or raise timeout_s")
        except RankError as error:
            self.failure = error
            raise
        except RuntimeError as error:
            self.fail_as_lost(call, error)

    def fail_as_lost(self, call: str, cause: RuntimeError) -> NoReturn:
        """Raises `RankError` for a connection that broke, naming the rank that no longer answers."""
        try:
            silent = self.bulletin.roll_call(self.step)
        except RankError as error:
            self.failure = error
            raise
        except RuntimeError:
            silent = [0]  # the store is gone, and rank 0 (or what started it) with it
        rank = silent[0] if len(silent) == 1 else None
        message = f"rank {self._rank} lost its connection to {_ranks(silent)} in {call}: {first_line(cause)}"
        self.failure = RankError(message, rank)
        with suppress(RuntimeError):
            self.bulletin.abort(message, rank)
        raise self.failure from cause


def first_line(error: BaseException) -> str:
    """The message without gloo's source position and advice."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^\[\S+\.cc:\d+\] ", "", line).partition(". This is")[0]


def _ranks(ranks: list[int]) -> str:
    if not ranks:
        return "another rank"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
