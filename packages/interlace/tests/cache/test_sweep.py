from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from emucxl.presets import preset
from emucxl.timing import Timing
from interlace.cache.prefill import SteadyPrefill
from interlace.cache.simulator import Pricing
from interlace.cache.sweep import Sweep, default_sizes
from interlace.cache.tier_spec import Size, TierSpec
from interlace.errors import BlockTraceError
from support.block_traces import random_trace

BLOCK_BYTES = 1_000_000


def sweep(*tiers: str, sizes: tuple[str, ...] = (), policies: tuple[str, ...] = ("lru", "belady")) -> Sweep:
    specs = [TierSpec.parse(text) for text in tiers]
    pricing = Pricing(SteadyPrefill(1e4), 2, BLOCK_BYTES, [spec.timing for spec in specs])
    return Sweep(random_trace(1), policies, specs, [Size.parse(text) for text in sizes], pricing)


def test_the_tier_without_a_size_has_each_in_turn() -> None:
    found = sweep("local:4MB", "cxl@cxl-direct", "far:unlimited", sizes=("3", "7.5MB", "unlimited"))
    assert found.capacities() == [[4, 3, None], [4, 7, None], [4, None, None]]
    points = list(found.run())
    assert [point.policy for point in points] == ["lru", "belady"] * 3
    assert [point.capacities for point in points[::2]] == found.capacities()


def test_tiers_with_sizes_are_one_point() -> None:
    assert sweep("local:4", "cxl:1GB").capacities() == [[4, 1000]]


def test_a_larger_cache_has_more_hits_and_all_beat_none() -> None:
    points = list(sweep("local", sizes=("2", "8", "unlimited"), policies=("lru",)).run())
    rates = [point.found.hit_rate for point in points]
    assert rates == sorted(rates)
    without = sweep("local").without_cache()
    assert without.hit_rate == 0
    assert without.mean_ttft_s > points[-1].found.mean_ttft_s


@pytest.mark.parametrize(
    ("num_distinct", "sizes"),
    [
        (43_924, [500, 1000, 2000, 5000, 10_000, 20_000, None]),
        (30, [1, 2, 5, 10, 20, None]),
        (1, [None]),
        (0, [None]),
    ],
)
def test_default_sizes_are_round_and_end_without_a_limit(num_distinct: int, sizes: list[int | None]) -> None:
    assert default_sizes(num_distinct) == sizes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tiers": ("local",), "policies": ("fifo",)}, "got the policy 'fifo'; expected one of lru, tinylfu"),
        ({"tiers": ("local", "cxl")}, "got no size for the tiers local, cxl"),
        ({"tiers": ("local:4",), "sizes": ("5",)}, "got sizes to try, and a size for every tier"),
        ({"tiers": ()}, "expected one or more"),
        ({"tiers": ("cxl:4", "cxl")}, "each with a name of its own"),
        ({"tiers": ("local:999KB",)}, "got a size of 999,000 bytes; expected at least a block, 1,000,000"),
    ],
    ids=str,
)
def test_a_sweep_that_makes_no_sense_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BlockTraceError, match=says):
        sweep(*arguments.pop("tiers"), **arguments)


def test_a_tier_is_a_name_a_size_and_a_timing() -> None:
    assert TierSpec.parse("local") == TierSpec("local")
    assert TierSpec.parse("a-b:2GiB") == TierSpec("a-b", Size(bytes=2 << 30))
    assert TierSpec.parse("cxl@cxl-direct").timing == preset("cxl-direct").timing
    far = TierSpec.parse("far:unlimited@12GB/s,5us")
    assert far == TierSpec("far", Size(), Timing(read_latency_ns=5000, read_bandwidth_gbps=12), "12GB/s,5us")


NO_TIERS = ["", ":4", "cxl:", "cxl:4@", "cxl:-4", "cxl:4PB", "cxl:1e3", "c xl", "cxl:4:5", "cxl:٣"]
NO_TIERS += ["cxl@nonesuch", "cxl@12GB/s", "cxl@0GB/s,5us", f"cxl:{'9' * 400}GB", f"cxl:{'9' * 5000}"]


@pytest.mark.parametrize("text", NO_TIERS, ids=lambda text: text[:12])
def test_a_tier_that_is_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(BlockTraceError, match="expected"):
        TierSpec.parse(text)


def test_the_simulator_loads_no_torch() -> None:
    code = "import sys, interlace.cache.sweep, interlace.cli.kv_chart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
