"""Where a batch is cut, and whether it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.wave_tables import linear_table, mixed_table, tables
from tokenweave.cost import CostModel, LinkSpeed
from tokenweave.curves import Curve
from tokenweave.errors import PlanError
from tokenweave.geometry import BatchGeometry
from tokenweave.host_costs import HostCosts
from tokenweave.plan import plan_forward
from tokenweave.simulate import simulate
from tokenweave.split import Choice, LayerSample, alignment_of, candidates, choose_split, extrapolate, middle
from tokenweave.wave_table import WaveTable

LAYERS = 3
SLOW = LinkSpeed(2e8, 5e-6)


def choose(table: WaveTable, num_tokens: int, link: LinkSpeed | None, **options: float) -> Choice:
    costs, load = CostModel(table, link), BatchGeometry.prefill(num_tokens)

    def plan_of(split: int | None):  # type: ignore[no-untyped-def]
        return plan_forward(LAYERS, num_tokens, split)

    return choose_split(
        plan_of,
        lambda split: costs.cost_of(plan_of(split), load),
        candidates(num_tokens, 24),
        shared_core=True,
        **options,  # type: ignore[arg-type]
    )


@given(num_tokens=st.integers(1, 20_000), row_tile=st.integers(1, 64), size=st.integers(1, 8))
def test_candidates_are_inside_aligned_ascending_and_have_the_middle(
    num_tokens: int, row_tile: int, size: int
) -> None:
    alignment = alignment_of(row_tile, size)
    found = candidates(num_tokens, alignment)
    assert all(0 < split < num_tokens for split in found)
    assert list(found) == sorted(set(found))
    assert (middle(num_tokens, alignment) in found) == (num_tokens > 1)
    if num_tokens > 2 * alignment:
        assert all(split % row_tile == 0 and split % size == 0 for split in found)
        assert abs((middle(num_tokens, alignment) or 0) - num_tokens / 2) <= alignment / 2


def test_candidates_reach_from_a_quarter_to_three_quarters() -> None:
    found = candidates(2400, 24)
    assert min(found) == 600
    assert max(found) == 1800
    assert len(found) < 16  # each costs a simulation


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_a_few_tokens_are_cut_wherever_they_can_be(num_tokens: int) -> None:
    assert middle(num_tokens, 24) == (num_tokens // 2 or None)


@pytest.mark.parametrize("call", [lambda: middle(0, 1), lambda: candidates(5, 0), lambda: alignment_of(0, 1)])
def test_nonsense_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PlanError, match="expected at least 1"):
        call()


@given(table=tables(), num_tokens=st.integers(1, 3000), guard=st.floats(0, 0.5), with_link=st.booleans())
def test_the_choice_is_never_predicted_to_be_slower_than_no_split(
    table: WaveTable, num_tokens: int, guard: float, with_link: bool
) -> None:
    choice = choose(table, num_tokens, SLOW if with_link else None, guard=guard)
    assert choice.predicted_s <= choice.unsplit_s
    assert choice.gain >= 0
    assert (choice.split is None) == (choice.predicted_s == choice.unsplit_s)
    if choice.split is not None:
        assert choice.gain > guard
        assert 0 < choice.split < num_tokens


@given(table=tables(), num_tokens=st.integers(1, 3000))
@example(  # parts for nothing, and a whole for something
    table=replace(linear_table(token_s=0.0), host=HostCosts(), reduce=Curve((24, 25), (0.0, 1.0))),
    num_tokens=25,
)
@example(  # parts for next to nothing
    table=replace(linear_table(token_s=0.0), host=HostCosts(), reduce=Curve((24, 25), (5e-324, 1.0))),
    num_tokens=25,
)
def test_nothing_is_woven_where_only_the_core_has_work(table: WaveTable, num_tokens: int) -> None:
    """Cutting a stage in two is never predicted to make it cheaper, however noisy the table."""
    assert choose(table, num_tokens, None, guard=1e-9).split is None


@given(table=tables(), num_tokens=st.integers(1, 3000))
def test_the_same_prices_give_the_same_choice(table: WaveTable, num_tokens: int) -> None:
    assert choose(table, num_tokens, SLOW) == choose(table, num_tokens, SLOW)


def test_a_slow_link_is_worth_weaving_for_and_a_fast_one_is_not() -> None:
    table = linear_table()
    slow, fast = choose(table, 1536, SLOW), choose(table, 1536, LinkSpeed(1e12))
    assert slow.split is not None
    assert slow.gain > 0.1
    assert fast.split is None


def test_the_guard_holds_back_what_gains_too_little() -> None:
    table = linear_table()
    gain = choose(table, 1536, SLOW, guard=0.0).gain
    assert choose(table, 1536, SLOW, guard=gain + 0.01).split is None
    assert choose(table, 1536, SLOW, guard=gain - 0.01).split is not None


@given(
    layers=st.lists(st.integers(0, 2), min_size=1, max_size=16),
    tokens=st.integers(100, 3000),
    bandwidth=st.floats(1e8, 1e10),
    woven=st.booleans(),
)
def test_a_plan_of_a_few_layers_tells_what_the_whole_one_takes(
    layers: list[int], tokens: int, bandwidth: float, woven: bool
) -> None:
    """However the kinds of layers follow one another: a layer's predecessor matters little."""
    load, sample = BatchGeometry.prefill(tokens), LayerSample.of(layers)
    split = tokens // 2 if woven else None

    def run(kinds: tuple[int, ...]):  # type: ignore[no-untyped-def]
        plan = plan_forward(len(kinds), tokens, split)
        cost = CostModel(mixed_table(), LinkSpeed(bandwidth), kinds).cost_of(plan, load)
        return simulate(plan, cost, shared_core=True)

    expected_s = run(tuple(layers)).total_s
    assert extrapolate(run(sample.kinds), sample) == pytest.approx(expected_s, rel=0.02)
    if not woven:  # one step after the other: nothing depends on what came before
        assert extrapolate(run(sample.kinds), sample) == pytest.approx(expected_s, rel=1e-9)


def test_a_sample_has_the_ends_and_one_of_each_kind_between_them() -> None:
    assert LayerSample.of((0,) * 30) == LayerSample((0, 0, 0), (1, 28, 1))
    assert LayerSample.of((1, 0, 0, 2, 0, 1)) == LayerSample((1, 0, 2, 1), (1, 3, 1, 1))
    assert LayerSample.of((0, 1)) == LayerSample((0, 1), (1, 1))
    assert LayerSample.of((2,)) == LayerSample((2,), (1,))


@pytest.mark.parametrize("known", [1, 2])
def test_a_plan_of_all_layers_tells_its_own_time_and_one_of_others_is_refused(known: int) -> None:
    timeline = simulate(plan_forward(known, 8), lambda step: (), shared_core=True)
    assert extrapolate(timeline, LayerSample.of((0,) * known)) == timeline.total_s
    with pytest.raises(PlanError, match=f"a plan of {known} layers"):
        extrapolate(timeline, LayerSample.of((0,) * 5))
