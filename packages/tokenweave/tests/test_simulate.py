"""The simulator against closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.plan import Lane, Moves, Op, Plan, Step, plan_forward
from tokenweave.simulate import Cost, Phase, Resource, simulate

TIMES = st.floats(0, 10)


def costs(compute_s: float, core_s: float, link_s: float) -> Cost:
    """The same for every step of a lane; a transfer first uses the core, then the link."""

    def cost(step: Step) -> tuple[Phase, ...]:
        if step.lane is Lane.COMPUTE:
            return (Phase(Resource.CORE, compute_s),)
        return (Phase(Resource.CORE, core_s), Phase(Resource.LINK, link_s))

    return cost


@given(layers=st.integers(1, 6), compute_s=TIMES, core_s=TIMES, link_s=TIMES, shared_core=st.booleans())
def test_an_unsplit_plan_takes_the_sum_of_its_steps(
    layers: int, compute_s: float, core_s: float, link_s: float, shared_core: bool
) -> None:
    timeline = simulate(plan_forward(layers, 8), costs(compute_s, core_s, link_s), shared_core=shared_core)
    stages = 2 * layers + 2
    assert timeline.total_s == pytest.approx(stages * (compute_s + core_s + link_s))
    assert timeline.blocked_s == pytest.approx(stages * (core_s + link_s))


@given(layers=st.integers(1, 6), compute_s=st.floats(1, 10), share=st.floats(0.01, 1))
def test_a_woven_plan_hides_all_but_the_ends_where_links_are_faster_than_computation(
    layers: int, compute_s: float, share: float
) -> None:
    """Between the first part's first computation and the last reduction, the compute lane never stops."""
    link_s = share * compute_s
    timeline = simulate(plan_forward(layers, 8, 4), costs(compute_s, 0, link_s), shared_core=False)
    computing = 2 * (2 * layers + 2) * compute_s
    assert timeline.total_s == pytest.approx(computing + link_s)  # the gather is what is left
    assert timeline.hidden_fraction() == pytest.approx(1 - 1 / (2 * (2 * layers + 1) + 1))


@given(layers=st.integers(1, 6), compute_s=st.floats(1, 10), share=st.floats(0.01, 1))
def test_all_but_the_first_layers_fetch_is_hidden_where_fetching_is_faster_than_computing(
    layers: int, compute_s: float, share: float
) -> None:
    """The first one hides behind the embedding."""
    fetch_s = share * compute_s
    plan = plan_forward(layers, 8, None, Moves(fetches=True))
    timeline = simulate(plan, on_lanes(compute_s, 0, fetch_s), shared_core=False)
    assert timeline.total_s == pytest.approx((2 * layers + 2) * compute_s)
    assert timeline.hidden_fraction(Lane.MEMORY) == pytest.approx(1)


def on_lanes(compute_s: float, transfer_s: float, memory_s: float) -> Cost:
    each = {Lane.COMPUTE: compute_s, Lane.TRANSFER: transfer_s, Lane.MEMORY: memory_s}
    return lambda step: (Phase(Resource.CORE, each[step.lane]),)


def test_a_transfer_and_a_fetch_do_not_hide_each_other() -> None:
    """Computing from 0 to 2, a transfer from 2 to 6, a fetch from 0 to 5: from 2 to 5 the two run beside nothing."""
    plan = Plan(
        1,
        (
            Step(Op.EMBED),
            Step(Op.REDUCE_NORM, (0,), None, 0),
            Step(Op.FETCH, (), 0, part=None),
            Step(Op.ATTENTION, (1, 2), 0),
        ),
    )
    timeline = simulate(plan, on_lanes(2, 4, 5), shared_core=False)
    assert (timeline.total_s, timeline.blocked_s) == (8, 4)
    assert timeline.hidden_fraction(Lane.TRANSFER) == 0
    assert timeline.hidden_fraction(Lane.MEMORY) == 2 / 5


@given(fetch_s=st.floats(0.1, 10))
def test_what_takes_the_core_from_a_computation_is_not_hidden_behind_it(fetch_s: float) -> None:
    plan = Plan(1, (Step(Op.FETCH, (), 0, part=None), Step(Op.EMBED)))
    timeline = simulate(plan, on_lanes(3, 0, fetch_s), shared_core=True)
    assert timeline.hidden_fraction(Lane.MEMORY) == 0
    embed = timeline.intervals[1]
    assert (embed.busy_s, embed.hidden_s) == (pytest.approx(3), 0)
    assert embed.end_s - embed.start_s == pytest.approx(3 + fetch_s), "stalls are in it"


@given(layers=st.integers(1, 4), compute_s=st.floats(1, 5), core_s=st.floats(0.1, 5), link_s=TIMES)
def test_on_one_core_nothing_that_needs_the_core_is_hidden(
    layers: int, compute_s: float, core_s: float, link_s: float
) -> None:
    plan = plan_forward(layers, 8, 4)
    cost = costs(compute_s, core_s, link_s)
    shared, own = (simulate(plan, cost, shared_core=shared).total_s for shared in (True, False))
    on_core = sum(
        phase.seconds for step in plan.steps for phase in cost(step) if phase.resource is Resource.CORE
    )
    assert shared >= on_core - 1e-9
    assert shared >= own - 1e-9


@given(layers=st.integers(1, 4), split=st.integers(1, 7), data=st.data())
def test_no_step_begins_before_what_it_waits_for_and_lanes_keep_their_order(
    layers: int, split: int, data: st.DataObject
) -> None:
    plan = plan_forward(layers, 8, split)
    times = {at: data.draw(TIMES) for at in range(len(plan.steps))}
    cost_of = dict(zip(map(id, plan.steps), times.values(), strict=True))
    timeline = simulate(plan, lambda step: (Phase(Resource.CORE, cost_of[id(step)]),), shared_core=True)
    for interval in timeline.intervals:
        for other in interval.step.waits_for:
            assert timeline.intervals[other].end_s <= interval.start_s
    for lane in Lane:
        on_lane = [interval for interval in timeline.intervals if interval.step.lane is lane]
        for before, after in pairwise(on_lane):
            assert before.end_s <= after.start_s


@given(layers=st.integers(1, 6), compute_s=st.floats(1, 10), share=st.floats(0, 1), woven=st.booleans())
def test_a_host_that_issues_faster_than_steps_end_costs_the_first_steps_issue(
    layers: int, compute_s: float, share: float, woven: bool
) -> None:
    """All steps are on the compute lane's way: transfers take nothing."""
    plan, issue_s = plan_forward(layers, 8, 4 if woven else None), share * compute_s / 2
    timeline = simulate(plan, costs(compute_s, 0, 0), shared_core=False, issue_s=issue_s)
    computing = len(plan.on(Lane.COMPUTE)) * compute_s
    assert timeline.total_s == pytest.approx(issue_s + computing)


@given(layers=st.integers(1, 6), issue_s=st.floats(1e-6, 10), share=st.floats(0, 1), woven=st.booleans())
def test_steps_that_end_sooner_than_they_are_issued_wait_for_the_host(
    layers: int, issue_s: float, share: float, woven: bool
) -> None:
    plan, step_s = plan_forward(layers, 8, 4 if woven else None), share * issue_s
    timeline = simulate(plan, costs(step_s, step_s, 0), shared_core=False, issue_s=issue_s)
    assert timeline.total_s == pytest.approx(len(plan.steps) * issue_s + step_s)
    for interval in timeline.intervals:
        assert interval.start_s == pytest.approx((interval.position + 1) * issue_s)


def test_steps_without_costs_are_issued_too() -> None:
    plan = plan_forward(2, 8, 4)
    timeline = simulate(plan, lambda step: (), shared_core=False, issue_s=0.5)
    assert timeline.total_s == pytest.approx(0.5 * len(plan.steps))


def test_a_plan_without_costs_takes_no_time() -> None:
    timeline = simulate(plan_forward(2, 8, 4), lambda step: (), shared_core=True)
    assert timeline.total_s == 0
    assert timeline.hidden_fraction() == 1


def test_an_empty_plan_is_simulated() -> None:
    assert simulate(Plan(1, ()), lambda step: (), shared_core=False).total_s == 0
