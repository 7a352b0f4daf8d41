"""Replayer: runs one rank's decoding passes by replay, and captures them.

A pass in which every row is a sequence's next token calls the same functions with the same sizes each time, so it is
captured for each number of rows and each split (and for each phase of the communicator's buffers, of which there are a
few) when that comes a second time: capturing takes some milliseconds more than the pass, which a size that never comes
again is not worth. The logits and their gathering run as in every other pass, for what they give outlives it.

Ranks need not agree: a rank that replays meets one that does not in the same collectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlace.engine.ranks.captures import Captures
from tokenweave.errors import KernelError
from tokenweave.execute import run_sequential, run_steps
from tokenweave.kernels import NativeKernels
from tokenweave.ops import Op
from tokenweave.replay.capture import Capture, Recorded, Refusal, Replayable, WovenCapture, capture
from tokenweave.replay.memory import PassMemory
from tokenweave.replay.progress import Progress
from tokenweave.replay.records import CallSites

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlace.models.decoder import Forward
    from tokenweave.communicators import Communicator
    from tokenweave.communicators.activation_ring import BuffersTaken
    from tokenweave.execute import Handler, Observer
    from tokenweave.kernels import Kernels
    from tokenweave.lanes import LaneExecutor
    from tokenweave.ops import Operation
    from tokenweave.plan import Plan

CAPTURED_OPS = frozenset({Op.EMBED, Op.ATTENTION, Op.MLP, Op.REDUCE_NORM})
MAX_CAPTURES = 64  # some 50 KB each for 30 layers; the tensors of all lie in one memory
WAITS_PER_STEP = (
    3  # bounded ones that the longest step of a lane consists of: two synchronisations and a link
)

_Key = tuple[int, int | None, tuple[int, int]]  # rows, the split, and the phase of the buffers


@dataclass(frozen=True)
class _Captured:
    """A capture, and the pass whose tensors its calls point to."""

    calls: Replayable
    forward: Forward
    buffers: BuffersTaken


class Replayer:
    """The captured passes of one rank, the least recently used forgotten first.

    Thread safety: none.
    """

    def __init__(
        self, kernels: Kernels, communicator: Communicator, lanes: LaneExecutor | None = None
    ) -> None:
        """`lanes` runs the woven passes, replayed or not; without it they run in list order like all others."""
        self._communicator, self._lanes = communicator, lanes
        self._sites = call_sites(kernels, communicator)
        self._memory = PassMemory()
        self._progress = Progress(WAITS_PER_STEP * communicator.timeout_s)
        self._captures: Captures[_Captured] = Captures(MAX_CAPTURES)
        self.refusal = None if self._sites is not None else "the kernels or the communicator run in Python"
        self.num_replayed = 0  # passes

    def run(self, forward: Forward, observe: Observer | None = None) -> None:
        """Runs every step of the pass: what `run_plan` does, with the same bits."""
        key = self._key_of(forward)
        captured = None if key is None else self._captures.find(key)
        plan = forward.plan
        stores = [step for step in plan.steps if step.op is Op.STORE] if Op.STORE in plan.ops else ()
        if captured is not None:
            self._replay(captured, forward, observe)
            run_steps(stores, forward.handlers, observe)  # nobody waits for them
        elif key is not None and not stores and self._captures.comes_again(key):
            num_done = self._capture(key, forward, observe)
            run_steps(forward.plan.steps[num_done:], forward.handlers, observe)
        else:
            run_plan(forward.plan, forward.handlers, observe, self._lanes)

    def close(self) -> None:
        """Lets go of the captures, and of the memory that they point to."""
        self._captures.clear()

    def _key_of(self, forward: Forward) -> _Key | None:
        """Returns all that the calls of the pass depend on; None where it runs as it is."""
        num_rows = None if self.refusal is not None else forward.num_decoding
        if num_rows is None:
            return None
        return num_rows, forward.plan.split, self._communicator.buffers_taken.phase

    def _replay(self, captured: _Captured, forward: Forward, observe: Observer | None) -> None:
        """Makes the calls again, and runs the steps behind them."""
        self._communicator.check()
        captured.forward.read(forward)
        forward.continue_from(captured.forward)
        try:
            captured.calls.run(_told_of(forward.plan, captured.forward.plan, observe), forward.handlers)
        except KernelError:
            forward.check_indices()
            raise
        self._communicator.take_buffers(captured.buffers)
        self.num_replayed += 1

    def _capture(self, key: _Key, forward: Forward, observe: Observer | None) -> int:
        """Runs the steps that can be captured, in list order; returns how many these are."""
        assert self._sites is not None
        before, source = self._communicator.buffers_taken, forward.to_capture()
        recorded = capture(forward.plan, source.handlers, CAPTURED_OPS, self._sites, self._memory, observe)
        forward.continue_from(source)
        if isinstance(recorded, Refusal):
            self.refusal = recorded.reason
            return sum(step.op in CAPTURED_OPS for step in forward.plan.steps)
        taken = self._communicator.buffers_taken.since(before)
        self._captures.add(key, _Captured(self._bind(recorded), source, taken))
        return len(recorded.steps)

    def _bind(self, recorded: Recorded) -> Replayable:
        if self._lanes is None or not recorded.plan.overlaps:
            return Capture(recorded)
        return WovenCapture(recorded, self._lanes, self._progress)


def _told_of(plan: Plan, captured: Plan, observe: Observer | None) -> Observer | None:
    """Returns `observe`, told of the steps of `plan` where those of `captured` have run, equal but for stores."""
    if observe is None or plan is captured:
        return observe
    steps = [step for step in plan.steps if step.op is not Op.STORE]
    own, tell = dict(zip(map(id, captured.steps), steps, strict=True)), observe
    return lambda step, start, end: tell(own[id(step)], start, end)


def run_plan(
    plan: Plan,
    handlers: Mapping[Operation, Handler],
    observe: Observer | None,
    lanes: LaneExecutor | None,
) -> None:
    """Runs a plan call by call: by `lanes`, if there are any and they can shorten it, and otherwise in list order."""
    if lanes is not None and plan.overlaps:
        lanes.run(plan, handlers, observe)
    else:
        run_sequential(plan, handlers, observe)


def call_sites(kernels: Kernels, communicator: Communicator) -> CallSites | None:
    """All by which a pass calls what is not torch; None where that is not known, or where torch computes."""
    own = communicator.call_sites()
    pools = [each.pool for each in (kernels, communicator.kernels) if isinstance(each, NativeKernels)]
    return None if own is None or len(pools) < 2 else own + CallSites(native=tuple(pools))
