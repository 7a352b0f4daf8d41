"""Recorders: each rank keeps when its steps ran, and gives it to the rank that joins them.

time.perf_counter is CLOCK_MONOTONIC on Linux, one clock for all processes of a host. Hosts are aligned by a barrier
that every rank left when recording began: to within the time that the barrier's end takes to reach them.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import time
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tokenweave.errors import TraceError
from tokenweave.execute import Observer
from tokenweave.plan import Plan
from tokenweave.stream_times import Alignment
from tokenweave.trace.recording import Pass, Recording

MAX_STEPS = 1_000_000  # that a recorder keeps: 16 MB
_HEAD = struct.Struct(
    "<16sdqqdd"
)  # clock, mark, first pass, passes, and the alignment: NaN where there is none
_NONE = Alignment(math.nan, math.nan)


class Recorder:
    """The recording of one rank: the last runs of plans, up to `max_steps` steps in all.

    Thread safety: `observe` by one thread at a time; the observers it gives by any.
    """

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self.passes: deque[Pass] = deque()
        self.num_dropped = 0
        self._max_steps = max_steps
        self._num_steps = 0
        self.mark_s = time.perf_counter()
        self.alignment: Alignment | None = None  # of a device's clock, where its events gave the times

    def mark(self) -> None:
        """To be called on every rank when it leaves one and the same barrier."""
        self.mark_s = time.perf_counter()

    def observe(self, plan: Plan) -> Observer:
        """The observer for a run of `plan`, which follows those before it."""
        number = self.num_dropped + len(self.passes)
        self.passes.append(Pass(number, plan))
        self._num_steps += len(plan.steps)
        while self._num_steps > self._max_steps and len(self.passes) > 1:
            self._num_steps -= len(self.passes.popleft().plan.steps)
            self.num_dropped += 1
        return self.passes[-1].observer()

    def to_bytes(self) -> bytes:
        """The times alone: every rank runs the same plans in the same order."""
        device = self.alignment or _NONE
        told = self.mark_s, self.num_dropped, len(self.passes), device.within_s, device.drift
        head = _HEAD.pack(clock_id(), *told)
        return b"".join([head, *(each.times.tobytes() for each in self.passes)])


def join_messages(own: Recorder, messages: Sequence[bytes]) -> tuple[tuple[Recording, ...], bool]:
    """The recordings of all ranks on the clock of rank 0, and whether they all read that clock themselves.

    A device's times were placed on its host's clock before.

    `messages`: what `Recorder.to_bytes` gave on every rank, in rank order; `own` is one of theirs.

    Raises:
        TraceError: the ranks recorded different passes.
    """
    clock, mark_s, *_ = _HEAD.unpack_from(messages[0])
    recordings, is_one_clock = [], True
    sizes = [16 * len(each.plan.steps) for each in own.passes]
    for rank, message in enumerate(messages):
        other_clock, other_mark_s, first, count, *_ = _HEAD.unpack_from(message)
        if (first, count) != (own.num_dropped, len(sizes)) or len(message) != _HEAD.size + sum(sizes):
            raise TraceError(
                f"rank {rank} recorded {count} passes from pass {first}; this rank recorded {len(sizes)} from "
                f"{own.num_dropped}: start and end the recording on all ranks between the same two passes"
            )
        is_same = other_clock == clock
        is_one_clock = is_one_clock and is_same
        recordings.append(_read(rank, own, message, 0.0 if is_same else mark_s - other_mark_s))
    return tuple(recordings), is_one_clock


def widest(messages: Sequence[bytes]) -> Alignment | None:
    """The worst of the ranks' alignments: the widest, and the largest drift of any; None where no rank has one."""
    found = [Alignment(*_HEAD.unpack_from(message)[-2:]) for message in messages]
    aligned = [each for each in found if not math.isnan(each.within_s)]
    if not aligned:
        return None
    return Alignment(max(each.within_s for each in aligned), max((each.drift for each in aligned), key=abs))


def _read(rank: int, own: Recorder, message: bytes, offset_s: float) -> Recording:
    passes, at = [], _HEAD.size
    for done in own.passes:
        times: array[float] = array("d")
        times.frombytes(message[at : at + 16 * len(done.plan.steps)])
        at += 16 * len(done.plan.steps)
        if offset_s:
            times = array("d", [each + offset_s for each in times])
        passes.append(Pass(done.number, done.plan, times))
    return Recording(rank, tuple(passes))


def clock_id() -> bytes:
    """The same on two ranks if and only if they read one clock: 16 bytes of the boot and the time namespace."""
    clock = Path("/proc/sys/kernel/random/boot_id").read_text()
    with suppress(OSError):  # an old kernel has no such namespaces
        clock += os.readlink("/proc/self/ns/time")
    return hashlib.blake2b(clock.encode(), digest_size=16).digest()
