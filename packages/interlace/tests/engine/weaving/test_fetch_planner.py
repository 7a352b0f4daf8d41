"""How much is fetched: what the simulator says is fastest, and never far from the better of the two pure ways."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.engine.cache.fetching import Question, fetch_all
from interlace.engine.weaving.fetch_planner import FetchPlanner, TierSpeed
from support.wave_tables import linear_table
from tokenweave.cost import CostModel

LAYERS = (0,) * 12
BLOCK_BYTES = 12 * 1000
BUDGET = 2048


def planner(*speeds: TierSpeed) -> FetchPlanner:
    return FetchPlanner(CostModel(linear_table(), None, LAYERS), speeds, 1000, shared_core=False)


def question(num_found: int, rest: int = 64, budget: int = BUDGET, **changes: object) -> Question:
    behind = 16 * num_found
    asked = Question((), 0, 0, (0,) * num_found, behind, behind + rest, budget)
    return asked._replace(**changes)  # type: ignore[arg-type]


def link(bytes_per_s: float) -> TierSpeed:
    return TierSpeed(0.0, 1 / bytes_per_s)


def block_s() -> float:
    """Seconds that the prices say a block takes to compute, where there are a hundred."""
    asked, ways = question(100), planner(link(1e9))
    return (ways.compute_s(asked, 100) - ways.compute_s(asked, 0)) / 100


def test_a_fast_tier_gives_all_and_a_slow_one_nothing() -> None:
    asked = question(100)
    assert planner(link(1e3 * BLOCK_BYTES / block_s()))(asked) == fetch_all(asked)
    assert planner(link(1e-3 * BLOCK_BYTES / block_s()))(asked).num_fetched <= 2


@settings(max_examples=40)
@given(
    num_found=st.integers(1, 120),
    rest=st.integers(1, 300),
    power=st.floats(-2.5, 2.5),
    latency_s=st.sampled_from([0.0, 1e-4]),
    others=st.lists(st.tuples(st.just(1), st.integers(1, 2000)), max_size=8),
)
def test_it_is_no_worse_than_fetching_all_or_computing_all(
    num_found: int, rest: int, power: float, latency_s: float, others: list[tuple[int, int]]
) -> None:
    speed = TierSpeed(0.0, block_s() / BLOCK_BYTES * 10**power, latency_s)
    ways, asked = planner(speed), question(num_found, rest, budget=5000, others=others)
    num_fetched = ways(asked).num_fetched
    assert 0 <= num_fetched <= num_found
    chosen_s = ways._price(asked, num_found - num_fetched)
    assert chosen_s <= 1.001 * min(ways._price(asked, 0), ways.compute_s(asked, num_found))


def test_where_both_ways_are_close_both_at_once_beat_them() -> None:
    """Computing from the front and fetching from the back takes as long as the two rates together allow."""
    ways, asked = planner(link(BLOCK_BYTES / block_s())), question(100, rest=1)
    pure_s = min(ways._price(asked, 0), ways.compute_s(asked, 100))
    num_front = 100 - ways(asked).num_fetched
    assert 30 <= num_front <= 70
    assert ways._price(asked, num_front) < 0.7 * pure_s


@pytest.mark.parametrize("num_found", [300, 1000])
def test_a_prompt_of_several_passes_is_fetched_from_the_back_beside_the_first(num_found: int) -> None:
    ways = planner(link(0.1 * BLOCK_BYTES / block_s()))
    asked = question(num_found, budget=512)
    num_fetched = ways(asked).num_fetched
    assert 0 < num_fetched < num_found - 512 // 16
    assert ways.fetch_s(asked.tiers[:num_fetched]) <= ways._pass_s_of_front(asked)


def test_equal_questions_are_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ways, asked = planner(link(BLOCK_BYTES / block_s())), question(100)
    first = ways(asked)
    monkeypatch.setattr(FetchPlanner, "_choose", None)
    assert ways(asked) == first
