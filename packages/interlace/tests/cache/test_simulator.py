from __future__ import annotations

from dataclasses import replace

import pytest

from emucxl.errors import ArgumentError
from emucxl.timing import Timing
from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import Lru
from interlace.cache.prefill import SteadyPrefill
from interlace.cache.simulator import Pricing, Simulated, simulate
from support.block_traces import trace_of

ONE = Pricing(prefill=SteadyPrefill(4.0), num_servers=1, block_bytes=10**9, timings=[None])


def run(trace: BlockTrace, pricing: Pricing, *capacities: int | None) -> Simulated:
    return simulate(trace, Lru(trace, capacities), pricing)


def test_a_prompt_is_computed_at_the_rate_that_is_given() -> None:
    """Blocks have 4 tokens, and 4 are computed a second."""
    found = run(trace_of([0, 1, 2]), ONE, None)
    assert found.ttft_s == [3.0]
    assert (found.num_asked, found.hits, found.hit_rate, found.busy_fraction) == (3, [0], 0.0, 1.0)


def test_a_hit_leaves_a_token_to_compute() -> None:
    found = run(replace(trace_of([0, 1], [0, 1]), arrivals_s=[0.0, 10.0]), ONE, None)
    assert found.ttft_s == [0.25, 2.0]
    assert found.hit_rate == 0.5


def test_prompts_wait_for_a_server_in_the_order_of_arrival() -> None:
    trace = trace_of([0, 1, 2], [3], [4, 5])  # at 0, 1 and 2 s
    assert run(trace, ONE, None).ttft_s == [3.0, 3.0, 4.0]
    assert run(trace, replace(ONE, num_servers=2), None).ttft_s == [1.0, 2.0, 3.0]


def test_a_hit_below_is_fetched_at_the_speed_of_its_tier() -> None:
    """Block 1, which left the top for block 0, is 1 GB from a tier of 2 GB/s, half a second away."""
    timing = Timing(read_latency_ns=0.4e9, hop_latency_ns=0.1e9, switch_hops=1, read_bandwidth_gbps=2)
    trace = replace(trace_of([0, 1], [0, 1]), arrivals_s=[0.0, 10.0])
    found = run(trace, replace(ONE, timings=[None, timing]), 1, 1)
    assert found.hits == [1, 1]
    assert found.ttft_s == pytest.approx([0.5 + 0.5 + 0.25, 2.0])


def test_fetches_of_two_servers_share_the_bandwidth_of_a_tier() -> None:
    timing = Timing(read_bandwidth_gbps=1)
    trace = replace(trace_of([0], [0], [0]), arrivals_s=[0.0, 10.0, 10.0])
    found = run(trace, replace(ONE, num_servers=2, timings=[timing]), None)
    assert found.ttft_s == pytest.approx([1.0, 1.25, 2.25])


def test_a_tier_of_unlimited_bandwidth_costs_its_latency() -> None:
    trace = replace(trace_of([0], [0]), arrivals_s=[0.0, 10.0])
    found = run(trace, replace(ONE, timings=[Timing(read_latency_ns=1e9)]), None)
    assert found.ttft_s == pytest.approx([1.0, 1.25])


def test_a_time_too_short_for_the_clock_is_no_error() -> None:
    trace = BlockTrace(4, [1e12], [1], [[]])
    assert run(trace, replace(ONE, prefill=SteadyPrefill(1e12)), 5).busy_fraction == 0


def test_quantiles_are_times_that_a_request_had() -> None:
    found = Simulated(4, [0], [1.0, 2.0, 3.0, 4.0], 1.0)
    assert [found.ttft_quantile_s(each) for each in (0.0, 0.25, 0.5, 0.51, 1.0)] == [1, 1, 2, 3, 4]
    assert found.mean_ttft_s == 2.5


def test_a_trace_of_prompts_without_blocks_has_no_hits() -> None:
    assert run(BlockTrace(4, [0.0], [3], [[]]), ONE, 5).hit_rate == 0.0


@pytest.mark.parametrize("change", [{"num_servers": 0}, {"block_bytes": 0}], ids=str)
def test_figures_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(change))):
        replace(ONE, **change)
