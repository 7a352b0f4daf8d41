"""The simulator: what a plan would take, from what each step costs. Nothing runs, and no clock is read.

A step is a row of phases, each a time on a resource: `CORE`, which does arithmetic and moves bytes, or `LINK`, which
carries them while the core is free. Each lane runs its steps in order, each as soon as what it waits for is done.
Where lanes share one core (a rank of one CPU thread), a transfer's phase goes before a computation's, as a thread that
wakes up goes before one that has been running.

Where lanes are streams, one thread of the host issues all steps, in list order: a step cannot begin before it has been.

Everything it returns is *modelled*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenweave.phases import Phase, Resource
from tokenweave.plan import Lane, Plan, Step

__all__ = ["Cost", "Interval", "Phase", "Resource", "Timeline", "simulate"]


CORE_ORDER = (Lane.TRANSFER, Lane.MEMORY, Lane.COMPUTE)  # who gets a core that lanes share

Cost = Callable[[Step], tuple[Phase, ...]]


@dataclass(frozen=True, slots=True)
class Interval:
    """When a step ran: from its first phase's start to its last one's end, stalls included."""

    position: int
    step: Step
    start_s: float
    end_s: float
    busy_s: float = 0.0  # of its phases, without stalls
    hidden_s: float = 0.0  # of busy_s, while the compute lane worked; 0 for the compute lane's own steps


@dataclass(frozen=True)
class Timeline:
    """A plan's modelled run. Lanes' busy times count phases, not stalls."""

    intervals: tuple[Interval, ...]  # in the order of the plan
    total_s: float
    busy_s: dict[Lane, float]

    @property
    def blocked_s(self) -> float:
        """How long the compute lane stood still, whatever for."""
        return self.total_s - self.busy_s[Lane.COMPUTE]

    def hidden_fraction(self, lane: Lane = Lane.TRANSFER) -> float:
        """The share of a lane's time that ran while the compute lane worked; 1 where the lane has nothing to do.

        Transfers and the memory lane do not hide each other: what of both runs while the compute lane stands still is
        hidden in neither.
        """
        on_lane = [each for each in self.intervals if each.step.lane is lane]
        busy_s = sum(each.busy_s for each in on_lane)
        return 1.0 if busy_s <= 0 else sum(each.hidden_s for each in on_lane) / busy_s


def simulate(plan: Plan, cost: Cost, *, shared_core: bool, issue_s: float = 0.0) -> Timeline:
    """Run `plan` on paper. `shared_core`: the lanes have one core between them; otherwise one each.

    `issue_s`: the host's time to issue a step to a stream, one after the other from the beginning.
    Costs: linear in the number of steps.
    """
    return _Simulation(plan, cost, shared_core, issue_s).run()


class _Worker:
    """A lane on its way through its steps."""

    def __init__(self, plan: Plan, lane: Lane) -> None:
        self.queue = list(reversed(plan.places.get(lane, ())))  # the next one last
        self.phases: list[Phase] = []  # of the step that runs, the next one last
        self.left_s = 0.0  # of the phase that runs
        self.start_s = self.busy_s = self.hidden_s = 0.0  # of the step that runs

    @property
    def resource(self) -> Resource | None:
        return self.phases[-1].resource if self.phases else None


class _Simulation:
    def __init__(self, plan: Plan, cost: Cost, shared_core: bool, issue_s: float) -> None:
        self.plan, self.cost, self.shared_core, self.issue_s = plan, cost, shared_core, issue_s
        self.now_s = 0.0
        self.ends: dict[int, Interval] = {}
        self.busy_s = dict.fromkeys(Lane, 0.0)
        self.workers = {lane: _Worker(plan, lane) for lane in Lane}

    def run(self) -> Timeline:
        while len(self.ends) < len(self.plan.steps):
            while any(self._begin(worker) for worker in self.workers.values()):
                pass  # steps without cost ended, and may let others begin
            running = self._running()
            pauses_s = [*(self.workers[lane].left_s for lane in running), *self._until_issued()]
            if not pauses_s:
                continue
            elapsed_s = min(pauses_s)
            self.now_s += elapsed_s
            is_computing = Lane.COMPUTE in running
            for lane in running:
                self._advance(lane, elapsed_s, is_hidden=is_computing and lane is not Lane.COMPUTE)
        intervals = tuple(self.ends[position] for position in range(len(self.plan.steps)))
        return Timeline(intervals, self.now_s, self.busy_s)

    def _begin(self, worker: _Worker) -> bool:
        """Give an idle lane its next step, if that may begin. Steps without phases end at once: whether any did."""
        ended = False
        while not worker.phases and worker.queue:
            step = self.plan.steps[worker.queue[-1]]
            if any(other not in self.ends for other in step.waits_for) or not self._is_issued(worker):
                break
            worker.start_s, worker.busy_s, worker.hidden_s = self.now_s, 0.0, 0.0
            worker.phases = [phase for phase in reversed(self.cost(step)) if phase.seconds > 0]
            if worker.phases:
                worker.left_s = worker.phases[-1].seconds
            else:
                self._end(worker)
                ended = True
        return ended

    def _issued_s(self, worker: _Worker) -> float:
        """When the lane's next step has been issued."""
        return (worker.queue[-1] + 1) * self.issue_s

    def _is_issued(self, worker: _Worker) -> bool:
        return self.now_s >= self._issued_s(worker)

    def _until_issued(self) -> list[float]:
        """How long the idle lanes will wait for their next step to be issued."""
        idle = [worker for worker in self.workers.values() if worker.queue and not worker.phases]
        return [self._issued_s(worker) - self.now_s for worker in idle if not self._is_issued(worker)]

    def _running(self) -> list[Lane]:
        """The lanes that make progress now."""
        running = [lane for lane, worker in self.workers.items() if worker.phases]
        on_core = [lane for lane in running if self.workers[lane].resource is Resource.CORE]
        if self.shared_core and len(on_core) > 1:
            first = min(on_core, key=CORE_ORDER.index)
            return [lane for lane in running if lane is first or lane not in on_core]
        return running

    def _advance(self, lane: Lane, elapsed_s: float, *, is_hidden: bool) -> None:
        worker = self.workers[lane]
        self.busy_s[lane] += elapsed_s
        worker.busy_s += elapsed_s
        worker.hidden_s += elapsed_s if is_hidden else 0.0
        worker.left_s -= elapsed_s
        if worker.left_s > 1e-15:
            return
        worker.phases.pop()
        if worker.phases:
            worker.left_s = worker.phases[-1].seconds
        else:
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        position = worker.queue.pop()
        step = self.plan.steps[position]
        self.ends[position] = Interval(
            position, step, worker.start_s, self.now_s, worker.busy_s, worker.hidden_s
        )
