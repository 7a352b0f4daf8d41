"""The threads of lanes ask the operating system for cores, and to be woken promptly."""

from __future__ import annotations

import os
import threading

import pytest

from tokenweave.lanes import LaneExecutor
from tokenweave.plan import Op, Operation, Plan, Step
from tokenweave.threads import staying_on, wake_promptly


def test_a_thread_stays_on_its_cores_and_comes_back() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    with staying_on([core]):
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


def test_cores_that_are_not_there_are_not_insisted_on() -> None:
    before = os.sched_getaffinity(0)
    with staying_on([100_000]), staying_on([]):
        assert os.sched_getaffinity(0) == before


def test_it_comes_back_from_a_failure_too() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError), staying_on([min(before)]):
        raise RuntimeError
    assert os.sched_getaffinity(0) == before


def test_asking_to_wake_promptly_harms_nothing() -> None:
    thread = threading.Thread(target=wake_promptly)
    thread.start()
    thread.join()


def test_the_lanes_of_an_executor_stay_on_its_cores() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    seen: dict[Operation, set[int]] = {}

    def look(step: Step) -> None:
        seen[step.op] = os.sched_getaffinity(0)

    plan = Plan(1, (Step(Op.EMBED), Step(Op.REDUCE_NORM, (0,))))
    with LaneExecutor(cores=[core]) as lanes:
        lanes.run(plan, {Op.EMBED: look, Op.REDUCE_NORM: look})
    assert seen == {Op.EMBED: {core}, Op.REDUCE_NORM: {core}}
    assert os.sched_getaffinity(0) == before
