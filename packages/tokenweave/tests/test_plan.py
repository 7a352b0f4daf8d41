"""The plan: order, lanes and edges of a forward pass."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.errors import PlanError
from tokenweave.plan import WEIGHT_ROOMS, Lane, Moves, Op, Plan, Step, plan_forward


def test_a_one_layer_plan_is_these_steps() -> None:
    assert plan_forward(num_layers=1, num_tokens=4).steps == (
        Step(Op.EMBED),
        Step(Op.REDUCE_NORM, waits_for=(0,), norm=0),
        Step(Op.ATTENTION, waits_for=(1,), layer=0),
        Step(Op.REDUCE_NORM, waits_for=(2,), layer=0, norm=1),
        Step(Op.MLP, waits_for=(3,), layer=0),
        Step(Op.REDUCE_NORM, waits_for=(4,), layer=0, norm=2),
        Step(Op.LOGITS, waits_for=(5,)),
        Step(Op.GATHER, waits_for=(6,), part=None),
    )


@given(num_layers=st.integers(1, 80), num_tokens=st.integers(1, 10_000))
def test_every_reduction_carries_one_norm_and_every_norm_is_carried_once(
    num_layers: int, num_tokens: int
) -> None:
    plan = plan_forward(num_layers, num_tokens)
    norms = [step.norm for step in plan.steps if step.op is Op.REDUCE_NORM]
    assert norms == list(range(2 * num_layers + 1))


@given(num_layers=st.integers(1, 80))
def test_lanes_share_the_steps_out(num_layers: int) -> None:
    plan = plan_forward(num_layers, 1)
    assert len(plan.on(Lane.COMPUTE)) == 2 * num_layers + 2
    assert len(plan.on(Lane.TRANSFER)) == 2 * num_layers + 2
    assert plan.on(Lane.MEMORY) == []


def test_a_woven_one_layer_plan_is_these_steps() -> None:
    assert plan_forward(num_layers=1, num_tokens=5, split=2).steps == (
        Step(Op.EMBED),
        Step(Op.REDUCE_NORM, waits_for=(0,), norm=0),
        Step(Op.EMBED, part=1),
        Step(Op.REDUCE_NORM, waits_for=(2,), norm=0, part=1),
        Step(Op.ATTENTION, waits_for=(1,), layer=0),
        Step(Op.REDUCE_NORM, waits_for=(4,), layer=0, norm=1),
        Step(Op.ATTENTION, waits_for=(3, 4), layer=0, part=1),
        Step(Op.REDUCE_NORM, waits_for=(6,), layer=0, norm=1, part=1),
        Step(Op.MLP, waits_for=(5,), layer=0),
        Step(Op.REDUCE_NORM, waits_for=(8,), layer=0, norm=2),
        Step(Op.MLP, waits_for=(7,), layer=0, part=1),
        Step(Op.REDUCE_NORM, waits_for=(10,), layer=0, norm=2, part=1),
        Step(Op.LOGITS, waits_for=(9,)),
        Step(Op.LOGITS, waits_for=(11,), part=1),
        Step(Op.GATHER, waits_for=(12, 13), part=None),
    )


def test_a_one_layer_plan_that_moves_blocks_is_these_steps() -> None:
    plan = plan_forward(num_layers=1, num_tokens=4, moves=Moves(evicts=True, fetches=True, stores=True))
    assert plan.steps == (
        Step(Op.EMBED),
        Step(Op.REDUCE_NORM, waits_for=(0,), norm=0),
        Step(Op.EVICT, layer=0, part=None),
        Step(Op.FETCH, waits_for=(2,), layer=0, part=None),
        Step(Op.ATTENTION, waits_for=(1, 3), layer=0),
        Step(Op.REDUCE_NORM, waits_for=(4,), layer=0, norm=1),
        Step(Op.MLP, waits_for=(5,), layer=0),
        Step(Op.REDUCE_NORM, waits_for=(6,), layer=0, norm=2),
        Step(Op.LOGITS, waits_for=(7,)),
        Step(Op.STORE, waits_for=(4,), layer=0, part=None),
        Step(Op.GATHER, waits_for=(8,), part=None),
    )


def test_a_woven_plan_that_fetches_weights_waits_for_both_parts_before_it_fills_a_room_again() -> None:
    plan = plan_forward(num_layers=3, num_tokens=4, split=2, moves=Moves(fetches=True, fetches_weights=True))
    moved = [(step.name, [plan.steps[at].name for at in step.waits_for]) for step in plan.on(Lane.MEMORY)]
    assert moved == [
        ("fetch_weights[0]", []),
        ("fetch[0]", []),
        ("fetch_weights[1]", []),
        ("fetch[1]", []),
        ("fetch_weights[2]", ["mlp[0]", "mlp[0]'"]),
        ("fetch[2]", []),
        ("prefetch_weights", ["mlp[2]", "mlp[2]'"]),
    ]
    awaited = {step.name: {plan.steps[at].name for at in step.waits_for} for step in plan.steps}
    for name in ("attention[2]", "attention[2]'"):
        assert awaited[name] > {"fetch_weights[2]", "fetch[2]"}


MOVES = st.builds(
    Moves, evicts=st.booleans(), fetches=st.booleans(), stores=st.booleans(), fetches_weights=st.booleans()
)


def _steps_before(plan: Plan) -> list[set[int]]:
    """For each step, those that are done when it begins, whatever the lanes' pace: awaited ones, and its lane's."""
    before: list[set[int]] = []
    last_on: dict[Lane, int] = {}
    for position, step in enumerate(plan.steps):
        direct = {*step.waits_for, *([last_on[step.lane]] if step.lane in last_on else [])}
        before.append(direct.union(*(before[other] for other in direct)))
        last_on[step.lane] = position
    return before


@given(num_layers=st.integers(1, 40), split=st.none() | st.integers(1, 99), moves=MOVES)
def test_a_room_has_a_layers_weights_from_its_first_step_to_its_last(
    num_layers: int, split: int | None, moves: Moves
) -> None:
    plan = plan_forward(num_layers, 100, split, replace(moves, fetches_weights=True))
    before, steps = _steps_before(plan), plan.steps
    fills = {step.layer: at for at, step in enumerate(steps) if step.op is Op.FETCH_WEIGHTS}
    assert list(fills) == list(range(num_layers))
    (ahead,) = (at for at, step in enumerate(steps) if step.op is Op.PREFETCH_WEIGHTS)
    for at, step in enumerate(steps):
        if step.op not in (Op.ATTENTION, Op.MLP) or step.layer is None:
            continue
        assert fills[step.layer] in before[at]
        later = [fills[layer] for layer in range(step.layer + WEIGHT_ROOMS, num_layers, WEIGHT_ROOMS)]
        assert all(at in before[fill] for fill in later)
        assert at in before[ahead]


@given(num_layers=st.integers(3, 40), split=st.none() | st.integers(1, 99))
def test_a_layer_is_fetched_while_the_one_before_it_is_computed(num_layers: int, split: int | None) -> None:
    plan = plan_forward(num_layers, 100, split, Moves(fetches_weights=True))
    before, steps = _steps_before(plan), plan.steps
    for at, step in enumerate(steps):
        if step.op in (Op.ATTENTION, Op.MLP) and step.layer is not None:
            following = [
                n for n, s in enumerate(steps) if (s.op, s.layer) == (Op.FETCH_WEIGHTS, step.layer + 1)
            ]
            assert not any(at in before[fetch] or fetch in before[at] for fetch in following)


@given(num_layers=st.integers(1, 12), split=st.none() | st.integers(1, 99), moves=MOVES)
def test_moves_add_steps_and_change_none(num_layers: int, split: int | None, moves: Moves) -> None:
    plan, bare = plan_forward(num_layers, 100, split, moves), plan_forward(num_layers, 100, split)
    names = [step.name for step in plan.steps if step.lane is not Lane.MEMORY]
    assert names == [step.name for step in bare.steps]
    wanted = [
        op
        for op, is_wanted in (
            (Op.FETCH_WEIGHTS, moves.fetches_weights),
            (Op.EVICT, moves.evicts),
            (Op.FETCH, moves.fetches),
            (Op.STORE, moves.stores),
        )
        if is_wanted
    ]
    assert len(plan.on(Lane.MEMORY)) == len(wanted) * num_layers + moves.fetches_weights
    for op in wanted:
        assert [step.layer for step in plan.steps if step.op is op] == list(range(num_layers))
    lasts = [step.op for step in plan.on(Lane.MEMORY)][-num_layers:]
    assert not moves.stores or set(lasts) == {Op.STORE}


@given(num_layers=st.integers(1, 12), split=st.none() | st.integers(1, 99), moves=MOVES)
def test_attention_follows_what_makes_its_blocks_ready_and_stores_follow_attention(
    num_layers: int, split: int | None, moves: Moves
) -> None:
    plan = plan_forward(num_layers, 100, split, moves)
    before: list[set[int]] = []
    for step in plan.steps:
        before.append(set(step.waits_for).union(*(before[other] for other in step.waits_for)))
    for position, step in enumerate(plan.steps):
        awaited = [plan.steps[other] for other in before[position]]
        own = {other.op for other in awaited if other.layer == step.layer and other.lane is Lane.MEMORY}
        if step.op is Op.ATTENTION:
            wanted = (
                (Op.FETCH_WEIGHTS, moves.fetches_weights),
                (Op.EVICT, moves.evicts),
                (Op.FETCH, moves.fetches),
            )
            assert own == {op for op, is_wanted in wanted if is_wanted}
        if step.op is Op.STORE:
            attended = [o for o in awaited if o.op is Op.ATTENTION and o.layer == step.layer]
            assert len(attended) == len(plan.parts)


@given(num_layers=st.integers(1, 12), split=st.integers(1, 99))
def test_a_reduction_never_holds_up_the_other_part(num_layers: int, split: int) -> None:
    """A computing step waits, on the transfer lane, for reductions of its own part alone."""
    plan = plan_forward(num_layers, 100, split)
    for step in plan.on(Lane.COMPUTE):
        awaited = [plan.steps[other] for other in step.waits_for]
        assert all(other.part == step.part for other in awaited if other.lane is Lane.TRANSFER)


@pytest.mark.parametrize("split", [1, 3, 7])
def test_the_parts_of_a_woven_plan_share_the_tokens_out(split: int) -> None:
    assert plan_forward(2, 8, split).parts == (range(split), range(split, 8))
    assert plan_forward(2, 8).parts == (range(8),)


@pytest.mark.parametrize("split", [0, 8, 9, -1])
def test_a_split_that_leaves_a_part_empty_is_refused(split: int) -> None:
    with pytest.raises(PlanError, match=f"split={split} of 8 tokens; expected 1 to 7"):
        plan_forward(1, 8, split)


def test_the_second_part_is_primed_in_print() -> None:
    assert "attention[0]'" in str(plan_forward(1, 4, 2))


@pytest.mark.parametrize("waits_for", [(1,), (5,), (-1,)])
def test_a_step_that_waits_for_no_earlier_step_is_refused(waits_for: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match=r"step 1 \(logits\) waits for steps .*only for steps before it"):
        Plan(1, (Step(Op.EMBED), Step(Op.LOGITS, waits_for=waits_for)))


@pytest.mark.parametrize(("num_layers", "num_tokens"), [(0, 1), (1, 0), (-1, 5)])
def test_an_empty_forward_pass_is_refused(num_layers: int, num_tokens: int) -> None:
    with pytest.raises(PlanError, match=f"num_layers={num_layers}, num_tokens={num_tokens}"):
        plan_forward(num_layers, num_tokens)


def test_a_printed_plan_names_lane_operation_and_what_it_waits_for() -> None:
    lines = str(plan_forward(1, 4)).splitlines()
    assert lines[0].split() == ["step", "lane", "operation", "waits", "for"]
    assert lines[1].split() == ["0", "compute", "embed", "-"]
    assert lines[4].split() == ["3", "transfer", "reduce_norm[1]", "2", "attention[0]"]


def test_a_plan_overlaps_where_neighbours_on_two_lanes_do_not_wait() -> None:
    assert not plan_forward(2, 8).overlaps
    assert plan_forward(2, 8, 4).overlaps
    first = Step(Op.EMBED)
    chain = (first, Step(Op.REDUCE_NORM, (0,), norm=0), Step(Op.ATTENTION, (1,), 0), Step(Op.MLP, (), 0))
    assert not Plan(8, chain).overlaps  # the last two are on one lane
    assert Plan(8, (*chain, Step(Op.GATHER, (2,), part=None))).overlaps
