"""The lane executor: a thread for each lane, so that a transfer runs while another part of the tokens computes.

The compute lane runs on the calling thread. Every lane runs its own steps in list order, and a step waits for what it
names and for nothing else. A lane that waits sleeps.

Thread safety: one `run` at a time.

Invariants
1. What a step wrote is visible to the steps that wait for it: both go through the executor's lock.
2. `run` returns, or raises, only when no lane is inside a step any more.
3. After a step has failed no further step begins, on any lane.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from tokenweave.execute import Handler, Observer, check_handlers
from tokenweave.plan import Lane, Op, Plan
from tokenweave.threads import staying_on, wake_promptly

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class LaneExecutor:
    """Runs plans on a thread per lane. The threads live until `close`."""

    def __init__(
        self,
        scope: Callable[[], AbstractContextManager[object]] = nullcontext,
        cores: Collection[int] = (),
    ) -> None:
        """`scope` makes what each lane's thread runs its steps in: torch.inference_mode, say, which is per thread.

        `cores`, where given, are the cores that the lanes stay on, the calling thread during its runs: where ranks
        share a machine, a transfer that wakes up on another rank's core would hold that rank up.
        """
        self._scope = scope
        self._cores = frozenset(cores)
        self._lock = threading.Lock()
        self._bells = {
            lane: threading.Condition(self._lock) for lane in Lane
        }  # one each: nobody wakes in vain
        self._run: _Run | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"lane-{lane}", daemon=True)
            for lane in Lane
            if lane is not Lane.COMPUTE
        ]
        for thread in self._threads:
            thread.start()

    def run(self, plan: Plan, handlers: Mapping[Op, Handler], observe: Observer | None = None) -> None:
        """Run every step of `plan`; the steps of different lanes at the same time where their edges allow it.

        `observe` is told of each step by the thread that ran it.

        Raises:
            PlanError: the plan has a step whose operation has no handler; nothing has run then.
            Whatever a handler raised first.
        """
        check_handlers(plan, handlers)
        run = _Run(plan, handlers, observe, self._lock, self._bells)
        with self._lock:
            self._run = run
            for lane in run.lanes:
                self._bells[lane].notify()
        with staying_on(self._cores):
            run.follow(Lane.COMPUTE)
        run.wait_for_other_lanes()
        self._run = None
        if run.failure is not None:
            raise run.failure

    def close(self) -> None:
        """Ends the threads; a second call does nothing."""
        with self._lock:
            self._closed = True
            for bell in self._bells.values():
                bell.notify()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, lane: Lane) -> None:
        wake_promptly()
        done: _Run | None = None
        with self._scope(), staying_on(self._cores):
            while (run := self._next(lane, done)) is not None:
                run.follow(lane)
                done = run

    def _next(self, lane: Lane, done: _Run | None) -> _Run | None:
        """The run after `done` that has steps on `lane`; None when the executor is closed."""

        def is_there() -> bool:
            return self._closed or (self._run not in (None, done) and lane in self._run.lanes)

        with self._lock:
            self._bells[lane].wait_for(is_there)
            return None if self._closed else self._run


class _Run:
    """One run of a plan: which steps are done, and what has failed."""

    def __init__(
        self,
        plan: Plan,
        handlers: Mapping[Op, Handler],
        observe: Observer | None,
        lock: threading.Lock,
        bells: Mapping[Lane, threading.Condition],
    ) -> None:
        self._plan, self._handlers, self._observe = plan, handlers, observe
        self._lock, self._bells = lock, bells
        self._is_done = [False] * len(plan.steps)
        self._awaited: dict[Lane, tuple[int, ...]] = {}  # by the lanes that sleep
        self.lanes = {step.lane for step in plan.steps} | {Lane.COMPUTE}
        self._lanes_left = len(self.lanes)
        self.failure: BaseException | None = None

    def follow(self, lane: Lane) -> None:
        """Run the steps of one lane, each as soon as what it waits for is done."""
        try:
            for position, step in enumerate(self._plan.steps):
                if step.lane is lane and not self._step(position):
                    break
        except BaseException as failure:
            with self._lock:
                self.failure = self.failure or failure
                for bell in self._bells.values():
                    bell.notify()
        with self._lock:
            self._lanes_left -= 1
            if self._lanes_left == 0:
                self._bells[Lane.COMPUTE].notify()

    def wait_for_other_lanes(self) -> None:
        """A transfer's own bound ends it when another rank is gone, so this ends too."""
        with self._lock:
            self._bells[Lane.COMPUTE].wait_for(lambda: self._lanes_left == 0)

    def _step(self, position: int) -> bool:
        """False when another lane has failed."""
        step = self._plan.steps[position]
        with self._lock:
            while self.failure is None and not self._are_done(step.waits_for):
                self._awaited[step.lane] = step.waits_for
                self._bells[step.lane].wait()
            self._awaited.pop(step.lane, None)
            if self.failure is not None:
                return False
        start = time.perf_counter()
        self._handlers[step.op](step)
        if self._observe is not None:
            self._observe(step, start, time.perf_counter())
        with self._lock:
            self._is_done[position] = True
            for lane, awaited in self._awaited.items():
                if position in awaited and self._are_done(awaited):
                    self._bells[lane].notify()
        return True

    def _are_done(self, positions: tuple[int, ...]) -> bool:
        return all(self._is_done[position] for position in positions)
