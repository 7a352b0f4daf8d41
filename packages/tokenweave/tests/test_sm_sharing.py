"""SMs that lanes share, and the prices that follow."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from support.wave_tables import gpu_table, linear_table
from tokenweave.cost import CostModel, Load
from tokenweave.curves import Curve
from tokenweave.errors import TuneError
from tokenweave.plan import Op, plan_forward
from tokenweave.sm_sharing import SmSharing
from tokenweave.split import candidates, choose_split
from tokenweave.wave_table import WaveTable

REDUCE_US, SLOW_DOWN = {2: 3.0, 8: 1.0}, {2: 1.1, 8: 1.5}


def sharing_of(table: WaveTable) -> SmSharing:
    assert table.sharing is not None
    return table.sharing


def test_a_call_takes_the_ctas_of_its_tokens_and_of_its_batch() -> None:
    table = gpu_table(REDUCE_US, SLOW_DOWN).taking(((9000, 8),), ((256, 2), (1024, 8)))
    sharing = sharing_of(table)
    assert [sharing.in_part(tokens).num_ctas for tokens in (1, 256, 257, 1024, 9000)] == [2, 2, 8, 8, 8]
    assert [sharing.in_whole(tokens).num_ctas for tokens in (1, 9000)] == [8, 8]
    assert sharing.reduce(128) == pytest.approx(128 * 3e-6)
    assert sharing.reduce(4096) == pytest.approx(4096 * 1e-6)
    assert table.reduce(128) == pytest.approx(128 * 1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"whole": ()},
        {"woven": ((256, 2), (128, 8))},
        {"woven": ((256, 4),)},
        {"whole": ((256, 4),)},
        {"num_sms": 8},
        {"beside": ()},
    ],
)
def test_sharing_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TuneError, match="got"):
        replace(sharing_of(gpu_table(REDUCE_US, SLOW_DOWN)), **change)


def test_times_of_other_kinds_of_layers_are_refused() -> None:
    table = gpu_table(REDUCE_US, SLOW_DOWN)
    beside = tuple(replace(each, mlps=()) for each in sharing_of(table).beside)
    with pytest.raises(TuneError, match="got MLPs beside CTAs of other kinds"):
        replace(table, sharing=replace(sharing_of(table), beside=beside))


def test_it_survives_its_json() -> None:
    sharing = sharing_of(gpu_table(REDUCE_US, SLOW_DOWN))
    assert SmSharing.from_json(json.loads(json.dumps(asdict(sharing)))) == sharing


def test_stages_of_a_woven_plan_are_priced_beside_the_other_parts_ctas() -> None:
    """The first part has 128 rows and is beside a reduction of 896, which takes 8 CTAs."""
    table = gpu_table(REDUCE_US, SLOW_DOWN).taking(((4096, 8),), ((128, 2), (4096, 8)))
    costs, load = CostModel(table), Load.prefill(1024)
    woven, whole = plan_forward(4, 1024, 128), plan_forward(4, 1024)
    price = {
        step.name: costs.cost_of(woven, load)(step)[0].seconds for step in woven.steps if step.op is Op.MLP
    }
    mlp = table.kinds[0].mlp
    assert price["mlp[0]"] == pytest.approx(1.5 * mlp(128))
    assert price["mlp[0]'"] == pytest.approx(1.1 * mlp(896))
    first = next(step for step in woven.steps if step.op is Op.REDUCE_NORM)
    assert sum(phase.seconds for phase in costs.cost_of(woven, load)(first)) == pytest.approx(128 * 3e-6)
    step = next(step for step in whole.steps if step.op is Op.MLP)
    assert costs.cost_of(whole, load)(step)[0].seconds == mlp(1024)


def test_attention_beside_a_reduction_has_the_sms_that_are_left() -> None:
    table = gpu_table(REDUCE_US, SLOW_DOWN)
    new, pairs = np.array([64.0]), np.array([1000.0])
    alone, beside = (each.kinds[0].attention(new, pairs) for each in (table, table.beside_reduction(512)))
    assert beside == pytest.approx(alone * 132 / (132 - 8))


def test_a_processor_shares_nothing() -> None:
    assert linear_table().beside_reduction(512) == linear_table()


@pytest.mark.parametrize(("slow_down", "is_woven"), [(1.02, True), (1.5, False)])
def test_a_batch_is_woven_only_where_hiding_gains_more_than_the_sms_cost(
    slow_down: float, is_woven: bool
) -> None:
    """A token computes for 20 us a layer and is reduced in 4: hiding all of that saves a sixth."""
    table = gpu_table({8: 2.0}, {8: slow_down})
    assert chosen(table) is is_woven


@pytest.mark.parametrize(("issue_s", "is_woven"), [(1e-6, True), (20e-3, False)])
def test_a_batch_is_left_whole_where_the_host_could_not_issue_twice_the_steps(
    issue_s: float, is_woven: bool
) -> None:
    assert chosen(gpu_table({8: 2.0}, {8: 1.02}, issue_s)) is is_woven


def chosen(table: WaveTable) -> bool:
    """Whether a batch of 2048 tokens is woven."""
    costs, load = CostModel(table), Load.prefill(2048)

    def plan_of(split: int | None):  # type: ignore[no-untyped-def]
        return plan_forward(4, 2048, split)

    choice = choose_split(
        plan_of,
        lambda split: costs.cost_of(plan_of(split), load),
        candidates(2048, 128),
        shared_core=False,
        issue_s=table.host.issue_s,
    )
    return choice.split is not None


def test_a_curve_can_be_slower() -> None:
    assert Curve((1, 4), (1.0, 2.0)).times(3.0) == Curve((1, 4), (3.0, 6.0))
