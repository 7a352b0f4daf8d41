from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emucxl.errors import ArgumentError
from interlace.cache.prefill import SteadyPrefill, TablePrefill
from support.wave_tables import linear_table, mixed_table
from tokenweave.cost import CostModel
from tokenweave.curves import Pace
from tokenweave.geometry import BatchGeometry
from tokenweave.host_costs import HostCosts
from tokenweave.plan import plan_forward
from tokenweave.simulate import simulate
from tokenweave.wave_table import WaveTable

LAYERS = (0, 1, 2, 0, 1)  # of a mixed table: windows of 128, all keys, experts


def passes_s(costs: CostModel, num_layers: int, num_new: int, num_cached: int, pass_tokens: int) -> float:
    """The oracle: every pass of the prompt through the simulator of plans."""
    seconds, at, end = 0.0, num_cached, num_cached + num_new
    while at < end:
        size = min(pass_tokens, end - at)
        at += size
        rows = np.array([0, size], dtype=np.int32)
        load = BatchGeometry(rows, np.array([at], dtype=np.int32), rows[1:] - 1 if at == end else rows[:0])
        plan = plan_forward(num_layers, size)
        seconds += simulate(plan, costs.cost_of(plan, load), shared_core=False).total_s
    return seconds


@pytest.mark.parametrize("num_cached", [0, 100, 4096])
@pytest.mark.parametrize("num_new", [1, 2, 64, 65, 1000])
@pytest.mark.parametrize(
    "costs",
    [
        CostModel(linear_table(1)),
        CostModel(replace(mixed_table(), pace=Pace((1, 64), (2.0, 1.25))), layers=LAYERS),
    ],
    ids=["alike", "mixed"],
)
def test_a_prompt_takes_what_the_simulator_gives_its_passes(
    costs: CostModel, num_new: int, num_cached: int
) -> None:
    found = TablePrefill(costs, len(LAYERS), 64)(num_new, num_cached)
    assert found == pytest.approx(passes_s(costs, len(LAYERS), num_new, num_cached, 64), rel=1e-9)


def test_attention_makes_later_tokens_dearer() -> None:
    prefill = TablePrefill(CostModel(linear_table(1)), 3, 512)
    whole, rest = prefill(8192, 0), prefill(4096, 4096)
    assert whole / 2 < rest < whole
    assert prefill(4096, 0) + rest > whole  # the last token's logits are wanted once


def test_a_pass_takes_no_less_than_issuing_its_steps() -> None:
    def of_host(issue_s: float) -> WaveTable:
        return replace(linear_table(1), host=HostCosts(issue_s=issue_s))

    num_steps = len(plan_forward(3, 64).steps)
    assert TablePrefill(CostModel(of_host(1.0)), 3, 64)(65, 0) == 2.0 * num_steps
    assert TablePrefill(CostModel(of_host(1e-9)), 3, 64)(65, 0) == TablePrefill(
        CostModel(linear_table(1)), 3, 64
    )(65, 0)


def test_a_round_figure_takes_as_long_for_every_token() -> None:
    assert SteadyPrefill(4.0)(10, 1000) == 2.5


@pytest.mark.parametrize("rate", [0.0, float("nan")])
def test_a_rate_out_of_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ArgumentError, match="got prefill_tokens_per_s="):
        SteadyPrefill(rate)


def test_passes_of_no_tokens_are_refused() -> None:
    with pytest.raises(ArgumentError, match="got pass_tokens=0"):
        TablePrefill(CostModel(linear_table(1)), 3, 0)
