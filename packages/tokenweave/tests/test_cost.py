"""The prices of steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.wave_tables import key_of, linear_table
from tokenweave.cost import CostModel, LinkSpeed, Load, Peaks, analytic_table
from tokenweave.plan import Op, plan_forward
from tokenweave.simulate import Resource, simulate
from tokenweave.wave_table import LayerKind, MlpShape, RankShape

PEAKS = Peaks(40e9, 8e9)


def load_of(chunks: list[tuple[int, int]]) -> Load:
    """A batch of sequences with (new tokens, keys) each, and the logits of their last tokens."""
    ends = np.cumsum([0] + [new for new, _ in chunks]).astype(np.int32)
    return Load(ends, np.array([keys for _, keys in chunks], dtype=np.int32), ends[1:] - 1)


chunks = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 100)), min_size=1, max_size=5).map(
    lambda drawn: [(new, new + before) for new, before in drawn]
)


@given(chunks=chunks, place=st.floats(0.01, 0.99))
def test_the_parts_of_a_load_have_its_tokens_pairs_and_logits(
    chunks: list[tuple[int, int]], place: float
) -> None:
    whole = load_of(chunks)
    split = round(place * whole.num_tokens)
    if not 0 < split < whole.num_tokens:
        return
    parts = [whole.part(range(split)), whole.part(range(split, whole.num_tokens))]
    assert sum(part.num_tokens for part in parts) == whole.num_tokens
    assert sum(len(part.logit_rows) for part in parts) == len(whole.logit_rows)

    def pairs(load: Load) -> float:
        new = load.num_new
        return float((new * load.seq_lens - new * (new - 1) / 2).sum())

    assert pairs(parts[0]) + pairs(parts[1]) == pairs(whole)


def test_a_sequence_that_straddles_the_split_has_fewer_keys_in_the_first_part() -> None:
    whole = load_of([(1, 50), (30, 30), (1, 9)])
    first, second = whole.part(range(11)), whole.part(range(11, 32))
    assert first.seq_lens.tolist() == [50, 10]
    assert second.seq_lens.tolist() == [30, 9]
    assert first.query_start.tolist() == [0, 1, 11]
    assert second.query_start.tolist() == [0, 20, 21]


def test_attention_costs_more_behind_a_longer_context() -> None:
    costs = CostModel(linear_table())
    short, long = load_of([(64, 64)]), load_of([(64, 1000)])
    assert costs.stage_s(Op.ATTENTION, long) > costs.stage_s(Op.ATTENTION, short)
    assert costs.stage_s(Op.MLP, long) == costs.stage_s(Op.MLP, short)


def test_a_reduction_goes_over_the_link_twice_around_the_core() -> None:
    costs = CostModel(linear_table(), LinkSpeed(1e9, 1e-6))
    plan = plan_forward(2, 100, 48)
    cost = costs.cost_of(plan, Load.prefill(100))
    step = next(step for step in plan.steps if step.op is Op.REDUCE_NORM and step.part == 0)
    phases = cost(step)
    assert [phase.resource for phase in phases] == [
        Resource.CORE, Resource.LINK, Resource.CORE, Resource.LINK,
    ]  # fmt: skip
    sent_bytes = 48 * 576 * 2 / 2  # half of the rows go to the other rank
    assert phases[1].seconds == phases[3].seconds == pytest.approx(1e-6 + sent_bytes / 1e9)


def test_without_a_link_there_is_only_the_core() -> None:
    plan = plan_forward(2, 100)
    costs, load = CostModel(linear_table()), Load.prefill(100)
    timeline = simulate(plan, costs.cost_of(plan, load), shared_core=True)
    table = linear_table()
    expected = table.embed(100) + table.logits(1) + 3 * table.reduce(100) + 2 * table.reduce(1)
    for is_last in (False, True):
        expected += sum(costs.stage_s(op, load, is_last=is_last) for op in (Op.ATTENTION, Op.MLP))
    assert timeline.total_s == pytest.approx(expected)


def test_the_last_layer_ends_with_the_wanted_rows() -> None:
    """Of 100 tokens one is wanted: projecting the keys costs what it costs for all, the rest what it costs for one."""
    costs, load, table = CostModel(linear_table()), Load.prefill(100), linear_table()
    assert load.ending.seq_lens.tolist() == [100]
    assert costs.stage_s(Op.MLP, load, is_last=True) == table.kinds[0].mlp(1)
    share = 9 / 14  # 5 heads, 2 KV heads: (5 + 2 * 2) of (5 + 2 * 2 + 5) columns
    projected_s = share * table.projections(100) + (1 - share) * table.projections(1)
    attended_s = table.kinds[0].attention(np.ones(1), np.full(1, 100.0))
    assert costs.stage_s(Op.ATTENTION, load, is_last=True) == pytest.approx(projected_s + attended_s)


def test_a_part_without_wanted_rows_ends_with_its_keys() -> None:
    costs, plan = CostModel(linear_table(), LinkSpeed(1e9)), plan_forward(2, 100, 48)
    cost = costs.cost_of(plan, Load.prefill(100))
    rest = {step.name: sum(phase.seconds for phase in cost(step)) for step in plan.steps}
    assert rest["mlp[1]"] == rest["reduce_norm[3]"] == rest["reduce_norm[4]"] == 0
    assert 0 < rest["mlp[1]'"] < rest["mlp[0]'"]
    assert 0 < rest["reduce_norm[4]'"] < rest["reduce_norm[2]'"]
    # What goes on needs the residual of one row, float32, from the rank that keeps it.
    assert rest["reduce_norm[2]'"] - rest["reduce_norm[0]'"] == pytest.approx(576 * 4 / 1e9)


@given(chunks=chunks)
def test_the_ending_of_a_load_sees_the_keys_of_its_rows(chunks: list[tuple[int, int]]) -> None:
    load = load_of(chunks)
    ending = load.ending
    if 2 * len(chunks) > load.num_tokens:
        assert ending is load
    else:  # the last token of each sequence sees all of its keys
        assert ending.seq_lens.tolist() == load.seq_lens.tolist()
        assert ending.num_new.tolist() == [1.0] * len(chunks)


@given(num_tokens=st.integers(1, 4000), more=st.integers(1, 500), size=st.integers(1, 4))
def test_the_default_grows_with_the_tokens(num_tokens: int, more: int, size: int) -> None:
    table = analytic_table(key_of(size), PEAKS, row_tile=12)
    assert not table.is_measured
    for curve in (table.projections, table.kinds[0].mlp, table.embed, table.logits, table.reduce):
        assert curve(num_tokens) <= curve(num_tokens + more) + 1e-12


def test_the_default_shows_the_waves() -> None:
    mlp = analytic_table(key_of(), PEAKS, row_tile=12).kinds[0].mlp
    assert mlp(37) == mlp(48) > mlp(36) == mlp(25)


def test_the_slowest_rank_counts() -> None:
    even = key_of()
    uneven = replace(even, ranks=(even.ranks[0], RankShape(heads=7, kv_heads=3, vocab_rows=24576)))
    few, more = (analytic_table(key, PEAKS) for key in (even, uneven))
    assert more.projections(100) > few.projections(100)
    assert more.kinds[0].mlp(100) == few.kinds[0].mlp(100)
    wider = analytic_table(key_of(kinds=(LayerKind(MlpShape((768, 1024))),)), PEAKS)
    assert wider.kinds[0].mlp(100) > few.kinds[0].mlp(100)


def test_experts_share_the_tokens() -> None:
    dense, sparse = (
        analytic_table(key_of(kinds=(LayerKind(MlpShape((768, 768), *experts)),)), PEAKS).kinds[0].mlp(3072)
        for experts in ((), (8, 2))
    )
    assert 1.5 < sparse / dense < 2.5
