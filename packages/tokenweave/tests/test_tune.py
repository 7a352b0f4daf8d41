"""Measuring a table, on stages whose times are known."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from support.fake_events import FakeDevice, OneFakeStream
from support.wave_tables import KINDS, key_of
from tokenweave.cost import CostModel
from tokenweave.geometry import BatchGeometry, pairs_seen
from tokenweave.host_costs import HostCosts
from tokenweave.host_timing import measure_lanes, measure_stream_switch_s, measure_switch_s
from tokenweave.plan import Lane, plan_forward
from tokenweave.simulate import simulate
from tokenweave.stage_clock import EventClock
from tokenweave.tune import MIN_ROUNDS, measure_table
from tokenweave.wave_table import TableKey

PASS_TOKEN_S = 3e-6  # a token of a whole pass: more than its stages say


class FakeStages:
    """Two ranks, the second slower. Every third sample is disturbed."""

    ctas: tuple[int, ...] = ()
    num_sms = 0

    def __init__(self, key: TableKey | None = None, layers: tuple[int, ...] = (0, 0, 0)) -> None:
        self.calls = self.passes = 0
        self.key, self.layers = key or key_of(), layers
        self.timed: set[tuple[str, int]] = set()

    def seconds(self, num_tokens: int) -> float:
        return 1e-6 * -(-num_tokens // 12)

    def time(self, stage: str, num_tokens: int, repeats: int, num_ctas: int = 0) -> tuple[float, ...]:
        self.calls += 1
        noise = 1.0 if self.calls % 3 else 5.0
        return self.seconds(num_tokens) * noise, 2 * self.seconds(num_tokens) * noise

    def time_mlp(self, kind: int, num_tokens: int, repeats: int, num_ctas: int = 0) -> tuple[float, ...]:
        self.timed.add(("mlp", kind))
        return tuple((1 + kind) * seconds for seconds in self.time("mlp", num_tokens, repeats, num_ctas))

    def time_attention(
        self, kind: int, num_seqs: int, num_new: int, num_keys: int, repeats: int
    ) -> tuple[float, ...]:
        self.timed.add(("attention", kind))
        seconds = 1e-6 + 1e-9 * self.pairs(num_new, num_keys, self.key.kinds[kind].window)
        return (num_seqs * (1 + kind) * seconds,) * 2

    def time_pass(self, num_tokens: int, num_ctas: int = 0) -> tuple[float, ...]:
        self.passes += 1
        return 0.0, PASS_TOKEN_S * num_tokens * (100.0 if self.passes % 5 == 0 else 1.0)

    def host_costs(self) -> HostCosts:
        return HostCosts(switch_s=1e-6)

    def pairs(self, num_new: int, num_keys: int, window: int = 0) -> float:
        return float(pairs_seen(np.array([float(num_new)]), np.array([float(num_keys)]), window)[0])


def test_a_measured_table_has_the_slowest_ranks_best_times() -> None:
    stages, seen = FakeStages(), []
    table = measure_table(
        stages,
        key_of(),
        max_tokens=400,
        row_tile=12,
        budget_s=0.0,
        progress=lambda done, what: seen.append((done, what)),
    )
    for tokens in table.kinds[0].mlp.tokens:
        assert table.kinds[0].mlp(tokens) == pytest.approx(2 * stages.seconds(tokens))
    assert table.kinds[0].mlp(12) < table.kinds[0].mlp(13)
    new, keys = np.array([64.0]), np.array([700.0])
    assert table.kinds[0].attention(new, pairs_seen(new, keys)) == pytest.approx(
        1e-6 + 1e-9 * stages.pairs(64, 700)
    )
    assert table.is_measured
    assert table.host == HostCosts(switch_s=1e-6)
    assert table.sharing is None
    fractions = [done for done, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("num_tokens", [256, 300, 640])
def test_a_whole_pass_is_predicted_to_take_what_it_took(num_tokens: int) -> None:
    stages = FakeStages()
    table = measure_table(stages, key_of(), max_tokens=1000, row_tile=12, budget_s=0.0)
    plan = plan_forward(len(stages.layers), num_tokens)
    costs = CostModel(table).cost_of(plan, BatchGeometry.prefill(num_tokens))
    predicted_s = simulate(plan, costs, shared_core=True).total_s
    assert predicted_s == pytest.approx(PASS_TOKEN_S * num_tokens, rel=1e-9 if num_tokens != 300 else 0.1)
    assert table.pace(1) == table.pace(256) > 1  # level outside of what was measured
    assert table.pace(5000) == table.pace(640)


def test_each_kind_of_layer_is_measured_once_and_priced_as_itself() -> None:
    """Two kinds have one MLP, and two see all keys: these are timed on the first of them."""
    key = key_of(kinds=KINDS)
    stages = FakeStages(key, layers=(0, 1, 2, 1))
    table = measure_table(stages, key, max_tokens=300, row_tile=12, budget_s=0.0)
    assert stages.timed == {("mlp", 0), ("mlp", 2), ("attention", 0), ("attention", 1)}
    windowed, full, sparse = table.kinds
    assert windowed.mlp == full.mlp
    assert full.attention == sparse.attention
    for tokens in sparse.mlp.tokens:
        assert sparse.mlp(tokens) == pytest.approx(3 * windowed.mlp(tokens))
    new = np.array([64.0])
    for times, kind in ((windowed, 0), (full, 1)):
        pairs = stages.pairs(64, 700, KINDS[kind].window)
        assert times.attention(new, np.array([pairs])) == pytest.approx((1 + kind) * (1e-6 + 1e-9 * pairs))
    plan = plan_forward(4, 256)
    costs = CostModel(table, layers=stages.layers).cost_of(plan, BatchGeometry.prefill(256))
    assert simulate(plan, costs, shared_core=True).total_s == pytest.approx(PASS_TOKEN_S * 256)


class FakeGpu(FakeStages):
    """A GPU of 132 SMs: reductions take half as long with 8 CTAs, and products beside them a tenth longer."""

    ctas = (2, 8)
    num_sms = 132
    slow_down: Mapping[int, float] = MappingProxyType({0: 1.0, 2: 1.02, 8: 1.1})

    def time(self, stage: str, num_tokens: int, repeats: int, num_ctas: int = 0) -> tuple[float, ...]:
        found = super().time(stage, num_tokens, repeats)
        if num_ctas:
            self.timed.add((f"{stage} by CTAs", num_tokens))
        factor = {0: 1.0, 2: 2.0, 8: 1.0} if stage == "reduce" else self.slow_down
        return tuple(factor[num_ctas] * seconds for seconds in found)


def test_a_gpus_table_has_reductions_by_ctas_and_the_products_beside_them() -> None:
    stages = FakeGpu()
    table = measure_table(stages, key_of(), max_tokens=2048, row_tile=128, budget_s=0.0)
    assert table.sharing is not None
    two, eight = table.sharing.beside
    for tokens in (128, 2048):
        assert two.reduce(tokens) == pytest.approx(2 * eight.reduce(tokens))
        assert eight.mlps[0](tokens) == pytest.approx(1.1 * table.kinds[0].mlp(tokens))
        assert two.projections(tokens) == pytest.approx(1.02 * table.projections(tokens))
    assert all(tokens % 128 == 0 for tokens in two.mlps[0].tokens)
    assert two.mlps[0].tokens[-1] == 2048
    assert table.sharing.whole == ((2048, 8),)
    assert table.reduce(2048) == eight.reduce(2048)
    assert table.sharing.woven[-1] == (2048, 8)
    assert table.sharing.reduce(2048) == eight.reduce(2048)


def test_products_that_would_not_leave_sms_are_taken_to_lose_in_proportion() -> None:
    stages = FakeGpu()
    stages.slow_down = {0: 1.0, 2: 1.0, 8: 1.01}
    table = measure_table(stages, key_of(), max_tokens=512, row_tile=128, budget_s=0.0)
    assert table.sharing is not None
    for each in table.sharing.beside:
        lost = 132 / (132 - each.num_ctas)
        assert each.projections(300) == pytest.approx(lost * table.projections(300))
        assert each.mlps[0](512) == pytest.approx(lost * table.kinds[0].mlp(512))


def test_the_budget_ends_the_rounds() -> None:
    stages = FakeStages()
    measure_table(stages, key_of(), max_tokens=12, row_tile=12, budget_s=0.0)
    per_round = stages.calls / MIN_ROUNDS
    assert per_round == int(per_round)


def test_handing_a_step_over_takes_time() -> None:
    assert 0 < measure_switch_s(num_layers=4, rounds=2) < float("inf")
    costs = measure_lanes()
    assert costs.switch_s > 0
    assert costs.issue_s == 0


def test_the_hand_over_between_streams_is_what_they_take_longer_than_one() -> None:
    device = FakeDevice()
    streams = OneFakeStream(device, wait_s=3e-6)
    clock = EventClock(device, device.now)
    found = measure_stream_switch_s(clock, streams, lambda: device.issue(0.0, 1e-6), num_layers=3, rounds=2)
    waits_of_a_run = streams.waits / 6  # two samples of three calls
    num_transfers = len(plan_forward(3, 2).on(Lane.TRANSFER))
    assert found == pytest.approx(waits_of_a_run * 3e-6 / num_transfers)
    assert waits_of_a_run >= 2 * num_transfers - 1  # there and back, for each transfer but the last
