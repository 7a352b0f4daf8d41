"""The lane executor: order, overlap, failures, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.patience import PATIENCE_S
from tokenweave.errors import PlanError
from tokenweave.execute import Handler
from tokenweave.lanes import LaneExecutor
from tokenweave.plan import Lane, Op, Operation, Step, plan_forward


def handlers(handle: Callable[[Step], None]) -> dict[Operation, Handler]:
    return dict.fromkeys(Op, handle)


@pytest.fixture
def executor() -> Iterator[LaneExecutor]:
    with LaneExecutor() as executor:
        yield executor


@settings(max_examples=25)
@given(layers=st.integers(1, 5), split=st.none() | st.integers(1, 7))
def test_every_step_runs_once_after_what_it_waits_for(layers: int, split: int | None) -> None:
    plan, done, lock = plan_forward(layers, 8, split), [], threading.Lock()
    position = {id(step): at for at, step in enumerate(plan.steps)}

    def handle(step: Step) -> None:
        with lock:
            assert {plan.steps[other].name for other in step.waits_for} <= {
                plan.steps[at].name for at in done
            }
            done.append(position[id(step)])

    with LaneExecutor() as executor:
        for _ in range(3):
            done.clear()
            executor.run(plan, handlers(handle))
            assert sorted(done) == list(range(len(plan.steps)))
            for lane in Lane:
                assert [plan.steps[at] for at in done if plan.steps[at].lane is lane] == plan.on(lane)


def test_a_transfer_runs_while_the_other_part_computes(executor: LaneExecutor) -> None:
    """Each waits for the other to have begun: were they not at the same time, neither would end."""
    plan = plan_forward(1, 4, 2)
    meeting = threading.Barrier(2, timeout=PATIENCE_S)
    meets = {("attention[0]'", Lane.COMPUTE), ("reduce_norm[1]", Lane.TRANSFER)}

    def handle(step: Step) -> None:
        if (step.name, step.lane) in meets:
            meeting.wait()

    executor.run(plan, handlers(handle))


def test_the_compute_lane_runs_on_the_calling_thread(executor: LaneExecutor) -> None:
    threads: dict[Lane, set[str]] = {lane: set() for lane in Lane}
    executor.run(
        plan_forward(2, 4, 2), handlers(lambda step: threads[step.lane].add(threading.current_thread().name))
    )
    assert threads[Lane.COMPUTE] == {threading.current_thread().name}
    assert threads[Lane.TRANSFER] == {"lane-transfer"}


@pytest.mark.parametrize("failing", ["attention[1]", "reduce_norm[2]'", "gather"])
def test_a_failure_ends_the_run_on_every_lane_and_the_next_run_works(
    executor: LaneExecutor, failing: str
) -> None:
    plan = plan_forward(3, 4, 2)

    def handle(step: Step) -> None:
        if step.name == failing:
            raise ZeroDivisionError(failing)

    with pytest.raises(ZeroDivisionError, match=failing.replace("[", r"\[").replace("]", r"\]")):
        executor.run(plan, handlers(handle))
    executor.run(plan, handlers(lambda step: None))


def test_run_returns_only_when_no_lane_is_inside_a_step(executor: LaneExecutor) -> None:
    inside, failing = threading.Event(), threading.Event()

    def handle(step: Step) -> None:
        if step.name == "reduce_norm[0]":
            inside.set()
            assert failing.wait(PATIENCE_S)
            time.sleep(0.05)
            inside.clear()
        if step.name == "embed'":
            assert inside.wait(PATIENCE_S)
            failing.set()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        executor.run(plan_forward(1, 4, 2), handlers(handle))
    assert not inside.is_set()


def test_a_plan_without_handlers_runs_nothing(executor: LaneExecutor) -> None:
    ran: list[Step] = []
    with pytest.raises(PlanError, match="no handler"):
        executor.run(plan_forward(1, 4), {Op.EMBED: ran.append})
    assert not ran


def test_the_observer_is_told_of_every_step(executor: LaneExecutor) -> None:
    seen: list[str] = []
    plan = plan_forward(1, 4, 2)
    executor.run(plan, handlers(lambda step: None), lambda step, start, end: seen.append(step.name))
    assert sorted(seen) == sorted(step.name for step in plan.steps)


def test_lanes_run_inside_the_scope_they_are_given_and_leave_it_when_closed() -> None:
    entered: list[str] = []

    @contextmanager
    def scope() -> Iterator[None]:
        entered.append(threading.current_thread().name)
        yield
        entered.remove(threading.current_thread().name)

    executor = LaneExecutor(scope)
    executor.run(plan_forward(1, 4, 2), handlers(lambda step: None))
    assert "lane-transfer" in entered
    executor.close()
    executor.close()
    assert entered == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]
