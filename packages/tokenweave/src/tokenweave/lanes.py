"""The lane executor: a thread for each lane, so that a transfer runs while another part of the tokens computes.

The compute lane runs on the calling thread, and so do transfers that could only take turns with it. Every lane runs its
own steps in list order, and a step waits for what it names and for nothing else. A lane that waits sleeps, and is woken
only when it can go on.

Thread safety: one `run` at a time.

Invariants
1. What a step wrote is visible to the steps that wait for it: each sees the mark that was set after it.
2. `run` returns, or raises, only when no lane is inside a step any more.
3. After a step has failed no further step begins, on any lane.
4. No wake-up is lost: a lane says what it waits for before it looks a last time, and whoever ends a step marks it
   before looking who waits. A lane may be woken in vain, and looks again.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import SimpleQueue

from emucxl.closing import WithBlock
from tokenweave.execute import Handler, Observer, check_handlers
from tokenweave.plan import Lane, Operation, Plan
from tokenweave.threads import staying_on, wake_promptly

Bell = SimpleQueue[None]  # what a lane sleeps on: rung by putting something in


class LaneExecutor(WithBlock):
    """Runs plans on a thread per lane. The threads live until `close`."""

    def __init__(
        self,
        scope: Callable[[], AbstractContextManager[object]] = nullcontext,
        cores: Collection[int] = (),
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`scope` makes what each lane's thread runs its steps in: torch.inference_mode, say, which is per thread.

        `cores`, where given, are the cores that the lanes stay on, the calling thread during its runs: where ranks
        share a machine, a transfer that wakes up on another rank's core would hold that rank up. `on_failure` is told
        what a handler raised, at once, by its lane: have it abort the communicator, or the other ranks, and a transfer
        of this one, wait for their whole timeout.
        """
        self._scope = scope
        self._cores = frozenset(cores)
        self._on_failure = on_failure
        self._bells: dict[Lane, Bell] = {lane: SimpleQueue() for lane in Lane}
        self._run: _Run | None = None
        self._closed = False
        self.waited_for_memory_s = 0.0  # by the compute lane, in the last run of a plan
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"lane-{lane}", daemon=True)
            for lane in Lane
            if lane is not Lane.COMPUTE
        ]
        for thread in self._threads:
            thread.start()

    def run(self, plan: Plan, handlers: Mapping[Operation, Handler], observe: Observer | None = None) -> None:
        """Run every step of `plan`; the steps of different lanes at the same time where their edges allow it.

        `observe` is told of each step by the thread that ran it.

        Raises:
            PlanError: the plan has a step whose operation has no handler; nothing has run then.
            Whatever a handler raised first.
        """
        check_handlers(plan, handlers)
        run = _PlanRun(plan, handlers, observe, self._bells, self._on_failure)
        self._follow(run)
        self.waited_for_memory_s = run.waited_for_memory_s

    def run_lanes(
        self, lanes: Collection[Lane], run_lane: Callable[[Lane], None], end_waits: Callable[[], None]
    ) -> None:
        """Calls `run_lane` for each of `lanes` and for the compute lane, each on its thread.

        They wait for each other by means of their own, which `end_waits` is to end: it is called when one has failed.

        Raises:
            Whatever `run_lane` raised first.
        """
        self._follow(_LanesRun(lanes, run_lane, end_waits, self._bells, self._on_failure))

    def _follow(self, run: _Run) -> None:
        self._run = run
        for lane in run.lanes - {Lane.COMPUTE}:
            self._bells[lane].put(None)
        with staying_on(self._cores):
            run.follow(Lane.COMPUTE)
        run.wait_for_other_lanes()
        self._run = None
        if run.failure is not None:
            raise run.failure

    def close(self) -> None:
        """Ends the threads; a second call does nothing."""
        self._closed = True
        for bell in self._bells.values():
            bell.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, lane: Lane) -> None:
        wake_promptly()
        done: _Run | None = None
        with self._scope(), staying_on(self._cores):
            while (run := self._next(lane, done)) is not None:
                run.follow(lane)
                done = run

    def _next(self, lane: Lane, done: _Run | None) -> _Run | None:
        """The run after `done` that has steps on `lane`; None when the executor is closed."""
        while not self._closed:
            run = self._run
            if run is not None and run is not done and lane in run.lanes:
                return run
            self._bells[lane].get()
        return None


class _Run(ABC):
    """Something that the lanes do together, and what has failed of it."""

    def __init__(
        self,
        lanes: Collection[Lane],
        bells: Mapping[Lane, Bell],
        on_failure: Callable[[BaseException], None] | None,
    ) -> None:
        self.lanes = {*lanes, Lane.COMPUTE}
        self._bells, self._on_failure = bells, on_failure
        self._ended: set[Lane] = set()
        self.failure: BaseException | None = None

    def follow(self, lane: Lane) -> None:
        """Do what is the lane's to do; end the other lanes if that fails."""
        try:
            self._do(lane)
        except BaseException as failure:
            is_first = self.failure is None
            self.failure = self.failure or failure
            if is_first and self._on_failure is not None:
                with suppress(Exception):  # the failure itself is what is told
                    self._on_failure(failure)
            self._end_waits()
        self._ended.add(lane)
        self._bells[Lane.COMPUTE].put(None)

    def wait_for_other_lanes(self) -> None:
        """A transfer's own bound ends it when another rank is gone, so this ends too."""
        while len(self._ended) < len(self.lanes):
            self._bells[Lane.COMPUTE].get()

    @abstractmethod
    def _do(self, lane: Lane) -> None: ...

    @abstractmethod
    def _end_waits(self) -> None:
        """Ends the waits of all lanes, once `failure` says why."""


class _LanesRun(_Run):
    """Lanes that wait for each other by means of their own."""

    def __init__(
        self,
        lanes: Collection[Lane],
        run_lane: Callable[[Lane], None],
        end_waits: Callable[[], None],
        bells: Mapping[Lane, Bell],
        on_failure: Callable[[BaseException], None] | None,
    ) -> None:
        super().__init__(lanes, bells, on_failure)
        self._run_lane, self._end = run_lane, end_waits

    def _do(self, lane: Lane) -> None:
        self._run_lane(lane)

    def _end_waits(self) -> None:
        self._end()


class _PlanRun(_Run):
    """One run of a plan: which steps are done."""

    def __init__(
        self,
        plan: Plan,
        handlers: Mapping[Operation, Handler],
        observe: Observer | None,
        bells: Mapping[Lane, Bell],
        on_failure: Callable[[BaseException], None] | None,
    ) -> None:
        super().__init__(plan.threads.keys(), bells, on_failure)
        self._plan, self._handlers, self._observe = plan, handlers, observe
        self._is_done = [False] * len(plan.steps)
        self._awaited: dict[Lane, tuple[int, ...]] = {}  # by the lanes that sleep, or are about to
        self.waited_for_memory_s = 0.0  # by the compute lane

    def _do(self, lane: Lane) -> None:
        """Run the steps of one lane, each as soon as what it waits for is done."""
        steps, handlers, observe = self._plan.steps, self._handlers, self._observe
        for position in self._plan.threads.get(lane, ()):
            step = steps[position]
            if not self._await(lane, step.waits_for):
                break
            if observe is None:
                handlers[step.op](step)
            else:
                start = time.perf_counter()
                handlers[step.op](step)
                observe(step, start, time.perf_counter())
            self._mark(position)

    def _end_waits(self) -> None:
        for bell in self._bells.values():
            bell.put(None)

    def _await(self, lane: Lane, positions: tuple[int, ...]) -> bool:
        """Returns when the steps at `positions` are done; False when a lane has failed."""
        while self.failure is None:
            if self._are_done(positions):
                return True
            self._awaited[lane] = positions
            if self.failure is None and not self._are_done(positions):
                self._sleep(lane, positions)
            self._awaited.pop(lane, None)
        return False

    def _sleep(self, lane: Lane, positions: tuple[int, ...]) -> None:
        """Until the bell rings. The compute lane's wait for memory is counted."""
        is_for_memory = lane is Lane.COMPUTE and any(
            self._plan.steps[at].lane is Lane.MEMORY and not self._is_done[at] for at in positions
        )
        start = time.perf_counter()
        self._bells[lane].get()
        if is_for_memory:
            self.waited_for_memory_s += time.perf_counter() - start

    def _mark(self, position: int) -> None:
        self._is_done[position] = True
        for lane, awaited in list(self._awaited.items()):
            if position in awaited and self._are_done(awaited):
                self._bells[lane].put(None)

    def _are_done(self, positions: tuple[int, ...]) -> bool:
        is_done = self._is_done
        for position in positions:  # noqa: SIM110 - a generator costs more, and this is asked for every step
            if not is_done[position]:
                return False
        return True
