"""The hit rates of LRU on Mooncake's traces, as published. The traces are not in the repository.

INTERLACE_BLOCK_TRACES   the directory with conversation_trace.jsonl and synthetic_trace.jsonl (kvcache-ai/Mooncake)
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import Belady, Cache, Lru

PERCENT = {
    "conversation": {1000: "4.5", 10_000: "21.2", 30_000: "32.6", 50_000: "35.5", None: "36.64"},
    "synthetic": {1000: "8.4", 10_000: "42.4", 30_000: "62.4", 50_000: "63.96", None: "63.96"},
}


def hits_percent(cache: Cache, trace: BlockTrace) -> float:
    return 100 * sum(sum(cache.serve(blocks)) for blocks in trace.blocks) / len(trace.asked)


@pytest.mark.slow
@pytest.mark.parametrize("name", PERCENT)
def test_lru_gives_the_published_hit_rates_and_belady_bounds_them(name: str) -> None:
    directory = os.environ.get("INTERLACE_BLOCK_TRACES")
    if directory is None:
        pytest.skip("INTERLACE_BLOCK_TRACES names no directory with Mooncake's traces")
    trace = BlockTrace.read(Path(directory) / f"{name}_trace.jsonl")
    for capacity, published in PERCENT[name].items():
        found = hits_percent(Lru(trace, [capacity]), trace)
        digits = len(published.partition(".")[2])
        assert f"{found:.{digits}f}" == published
        assert found <= hits_percent(Belady(trace, [capacity]), trace)
