"""The simulator: a block trace through a cache, in virtual time. Hits are exact; times are modelled.

A prompt is looked up when it arrives, and the cache has taken its blocks in at once, as the published hit rates count.
It then waits for the first of `num_servers` alike that is free, in the order of arrival. There it is fetched, and then
computed; the two don't overlap, so what hides behind compute makes it faster than told here:

    fetched at  = latest over its tiers of max(start, the tier's queue is free) + bytes / bandwidth + latency (unloaded)
    first token = fetched at + prefill(max(1, tokens of the prompt that were not hit), behind those that were)

A hit leaves one token to compute. A tier without a timing is memory that the servers compute from: a hit in it costs
nothing. What is written to a tier is written behind, and costs nothing here. Nor does decoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace

from emucxl.timing import Timing, check_number
from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import Cache
from interlace.cache.prefill import Prefill


@dataclass(frozen=True)
class Pricing:
    """The model of time: the servers, the bytes of a block, and the timing of each tier (None: reads cost nothing).

    Raises:
        ArgumentError: a figure is out of its range.
    """

    prefill: Prefill
    num_servers: int
    block_bytes: int
    timings: Sequence[Timing | None]  # (num_tiers,)

    def __post_init__(self) -> None:
        check_number("num_servers", self.num_servers, 1, 1_000_000)
        check_number("block_bytes", self.block_bytes, 1, 1e15)


@dataclass(frozen=True)
class Simulated:
    """A trace through a cache. `hits` are exact; times are modelled, in seconds of virtual time, for each request."""

    num_asked: int  # blocks
    hits: Sequence[int]  # (num_tiers,)
    ttft_s: Sequence[float]  # (num_requests,), ascending
    busy_fraction: float  # of the servers, from the first arrival to the last first token

    @property
    def hit_rate(self) -> float:
        """Of all blocks asked for, those that a tier gave."""
        return sum(self.hits) / self.num_asked if self.num_asked else 0.0

    @property
    def mean_ttft_s(self) -> float:
        return math.fsum(self.ttft_s) / len(self.ttft_s)

    def ttft_quantile_s(self, fraction: float) -> float:
        """The least time to first token that at least this fraction of the requests does not exceed."""
        return self.ttft_s[max(0, math.ceil(fraction * len(self.ttft_s)) - 1)]


def simulate(trace: BlockTrace, cache: Cache, pricing: Pricing) -> Simulated:
    """Returns what `trace` comes to; `cache` is new, of the same trace, and has a tier for each timing."""
    totals = [0] * len(cache.capacities)
    priced = [
        (tier, timing.total_read_latency_ns * 1e-9, _seconds_per_block(timing, pricing.block_bytes))
        for tier, timing in enumerate(pricing.timings)
        if timing is not None
    ]
    queue_free_s = [0.0] * len(totals)
    server_free_s = [trace.arrivals_s[0]] * pricing.num_servers  # a heap
    ttft_s: list[float] = []
    busy_s, prefill = 0.0, pricing.prefill
    for arrival_s, num_tokens, blocks in zip(
        trace.arrivals_s, trace.prompt_tokens, trace.blocks, strict=True
    ):
        hits = cache.serve(blocks)
        start_s = fetched_s = max(arrival_s, server_free_s[0])
        for tier, latency_s, seconds_per_block in priced:
            if hits[tier]:
                queue_free_s[tier] = max(start_s, queue_free_s[tier]) + hits[tier] * seconds_per_block
                fetched_s = max(fetched_s, queue_free_s[tier] + latency_s)
        num_hits = 0
        for tier, count in enumerate(hits):
            totals[tier] += count
            num_hits += count
        left = max(1, num_tokens - num_hits * trace.block_tokens)
        first_token_s = fetched_s + prefill(left, num_tokens - left)
        heapreplace(server_free_s, first_token_s)
        busy_s += first_token_s - start_s
        ttft_s.append(first_token_s - arrival_s)
    span_s = max(server_free_s) - trace.arrivals_s[0]
    ttft_s.sort()
    busy_fraction = (
        busy_s / (pricing.num_servers * span_s) if span_s > 0 else 0.0
    )  # 0: too short for the clock
    return Simulated(len(trace.asked), totals, ttft_s, busy_fraction)


def _seconds_per_block(timing: Timing, block_bytes: int) -> float:
    bandwidth = timing.read_bandwidth_gbps
    return block_bytes / (bandwidth * 1e9) if bandwidth else 0.0
