"""The sequential executor: list order, and nothing run when something is missing."""

import pytest

from tokenweave.errors import PlanError
from tokenweave.execute import run_sequential
from tokenweave.plan import Op, Operation, Step, plan_forward


def test_steps_run_in_list_order() -> None:
    plan = plan_forward(3, 8)
    ran: list[Step] = []
    run_sequential(plan, dict.fromkeys(Op, ran.append))
    assert tuple(ran) == plan.steps


def test_a_missing_handler_is_named_and_nothing_runs() -> None:
    ran: list[Step] = []
    handlers = {op: ran.append for op in Op if op is not Op.MLP}
    with pytest.raises(PlanError, match=r"no handler for .*mlp"):
        run_sequential(plan_forward(1, 1), handlers)
    assert ran == []


def test_the_observer_sees_every_step_with_its_times_in_order() -> None:
    plan = plan_forward(2, 1)
    seen: list[tuple[Step, float, float]] = []
    run_sequential(plan, dict.fromkeys(Op, lambda step: None), lambda *what: seen.append(what))
    assert tuple(step for step, _, _ in seen) == plan.steps
    times = [moment for _, start, end in seen for moment in (start, end)]
    assert times == sorted(times)


def test_an_error_in_a_step_stops_the_plan_and_comes_through() -> None:
    ran: list[Operation] = []

    def fail(step: Step) -> None:
        raise ValueError("broken")

    handlers = {**dict.fromkeys(Op, lambda step: ran.append(step.op)), Op.MLP: fail}
    with pytest.raises(ValueError, match="broken"):
        run_sequential(plan_forward(2, 1), handlers)
    assert ran == [Op.EMBED, Op.REDUCE_NORM, Op.ATTENTION, Op.REDUCE_NORM]
