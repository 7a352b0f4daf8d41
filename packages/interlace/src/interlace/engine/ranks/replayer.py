"""Replayer: runs one rank's decoding passes by replay, and captures them.

A pass in which every row is a sequence's next token calls the same functions with the same sizes each time, so it is
captured for each number of rows (and for each phase of the communicator's buffers, of which there are a few) when that
comes a second time: capturing takes some milliseconds more than the pass, which a size that never comes again is not
worth. The logits and their gathering run as in every other pass, for what they give outlives it.

Ranks need not agree: a rank that replays meets one that does not in the same collectives.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenweave.errors import KernelError
from tokenweave.execute import run_sequential, run_steps
from tokenweave.kernels import NativeKernels
from tokenweave.ops import Op
from tokenweave.replay.capture import Capture, Refusal, capture
from tokenweave.replay.memory import PassMemory

if TYPE_CHECKING:
    from interlace.models.decoder import Forward
    from tokenweave.communicators import Communicator
    from tokenweave.communicators.activation_ring import BuffersTaken
    from tokenweave.execute import Observer
    from tokenweave.kernels import Kernels
    from tokenweave.replay.records import NativeCaller

CAPTURED_OPS = frozenset({Op.EMBED, Op.ATTENTION, Op.MLP, Op.REDUCE_NORM})
MAX_SEEN = 4096  # sizes that are remembered to have come once
MAX_CAPTURES = 64  # some 50 KB each for 30 layers; the tensors of all lie in one memory

_Key = tuple[int, tuple[int, int]]  # rows, and the phase of the buffers


@dataclass(frozen=True)
class _Captured:
    """A capture, and the pass whose tensors its calls point to."""

    calls: Capture
    forward: Forward
    buffers: BuffersTaken


class Replayer:
    """The captured passes of one rank, the least recently used forgotten first.

    Thread safety: none.
    """

    def __init__(self, kernels: Kernels, communicator: Communicator) -> None:
        self._communicator = communicator
        self._callers = native_callers(kernels, communicator)
        self._memory = PassMemory()
        self._seen: set[_Key] = set()
        self._captures: OrderedDict[_Key, _Captured] = OrderedDict()
        self.refusal = None if self._callers is not None else "the kernels or the communicator run in Python"
        self.num_replayed = 0  # passes

    def run(self, forward: Forward, observe: Observer | None = None) -> None:
        """Runs every step of the pass, in list order: what `run_sequential` does, with the same bits."""
        key = self._key_of(forward)
        if key is None:
            run_sequential(forward.plan, forward.handlers, observe)
            return
        if key in self._captures:
            num_done = self._replay(self._captures[key], forward, observe)
            self._captures.move_to_end(key)
        elif key in self._seen:
            num_done = self._capture(key, forward, observe)
        else:
            run_sequential(forward.plan, forward.handlers, observe)
            self._remember(key)
            return
        run_steps(forward.plan.steps[num_done:], forward.handlers, observe)

    def close(self) -> None:
        """Lets go of the captures, and of the memory that they point to."""
        self._captures.clear()

    def _key_of(self, forward: Forward) -> _Key | None:
        """Returns all that the calls of the pass depend on; None where it runs as it is."""
        num_rows = None if self.refusal is not None else forward.num_decoding
        return None if num_rows is None else (num_rows, self._communicator.buffers_taken.phase)

    def _remember(self, key: _Key) -> None:
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen.add(key)

    def _replay(self, captured: _Captured, forward: Forward, observe: Observer | None) -> int:
        """Makes the calls again; returns how many steps these are of."""
        self._communicator.check()
        captured.forward.read(forward)
        try:
            captured.calls.run(observe)
        except KernelError:
            forward.check_indices()
            raise
        self._communicator.take_buffers(captured.buffers)
        forward.continue_from(captured.forward)
        self.num_replayed += 1
        return len(captured.calls.steps)

    def _capture(self, key: _Key, forward: Forward, observe: Observer | None) -> int:
        """Runs the steps that can be captured; returns how many these are."""
        assert self._callers is not None
        before, source = self._communicator.buffers_taken, forward.to_capture()
        calls = capture(forward.plan, source.handlers, CAPTURED_OPS, self._callers, self._memory, observe)
        forward.continue_from(source)
        if isinstance(calls, Refusal):
            self.refusal = calls.reason
            return sum(step.op in CAPTURED_OPS for step in forward.plan.steps)
        while len(self._captures) >= MAX_CAPTURES:
            self._captures.popitem(last=False)
        taken = self._communicator.buffers_taken.since(before)
        self._captures[key] = _Captured(calls, source, taken)
        return len(calls.steps)


def native_callers(kernels: Kernels, communicator: Communicator) -> list[NativeCaller] | None:
    """All by which a pass calls the native library; None where it also computes or communicates in other ways."""
    own = communicator.native_callers()
    if own is None:
        return None
    pools = [each.pool for each in (kernels, communicator.kernels) if isinstance(each, NativeKernels)]
    return [*own, *pools] if len(pools) == 2 else None
