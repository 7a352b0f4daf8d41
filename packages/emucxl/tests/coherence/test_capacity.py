"""Caches that are full, what a cache counts, and what each access costs."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from emucxl import Context
from emucxl.coherence import LINE_BYTES, Cache, Coherence
from emucxl.errors import (
    ArgumentError,
    InUseError,
)
from emucxl.links import Link
from emucxl.shared_memory import SharedSegment
from emucxl.timing import Timing
from support.cache_hosts import hosts


def test_a_full_cache_evicts_and_writes_back(segment: SharedSegment) -> None:
    with Cache(segment, capacity_bytes=2 * LINE_BYTES) as host:
        for line in range(64):
            host.write(bytes([line + 1]), line * LINE_BYTES)
            assert host.stats().lines == min(line + 1, 2)
        assert host.stats().evictions == 62
        assert sum(byte > 0 for byte in segment.buffer[::LINE_BYTES]) == 62
        host.flush()
        assert bytes(segment.buffer[::LINE_BYTES]) == bytes(range(1, 65))


def test_the_same_seed_evicts_the_same_lines(segment: SharedSegment) -> None:
    def written_back(seed: int) -> bytes:
        segment.buffer[:] = bytes(4096)
        with Cache(segment, capacity_bytes=8 * LINE_BYTES, seed=seed) as host:
            for line in range(64):
                host.write(b"\1", line * LINE_BYTES)
        return bytes(segment.buffer[::LINE_BYTES])

    first = written_back(1)
    assert first == written_back(1)
    assert len({written_back(seed) for seed in range(10)}) > 1


def test_an_access_larger_than_the_cache_is_whole(segment: SharedSegment) -> None:
    data = np.random.default_rng(1).bytes(4000)
    with hosts(segment, capacity_bytes=3 * LINE_BYTES) as (writer, reader):
        writer.write(data, 50)
        assert writer.read(4000, 50) == data
        writer.flush()
        reader.invalidate()
        assert reader.read(4000, 50) == data


def test_statistics_count_lines_and_bytes(segment: SharedSegment) -> None:
    with Cache(segment) as host:
        host.read(128, 32)  # three lines
        host.read(128, 32)
        host.write(bytes(10), 60)
        stats = host.stats()
        assert (stats.reads, stats.writes, stats.misses, stats.hits) == (2, 1, 3, 5)
        assert (stats.fetched_bytes, stats.lines, stats.dirty_bytes) == (192, 3, 10)
        host.flush()
        stats = host.stats()
        assert (stats.written_back_bytes, stats.dirty_bytes, stats.lines) == (10, 0, 3)
        host.invalidate()
        assert host.stats().lines == 0


def test_a_line_that_is_overwritten_whole_is_not_fetched(segment: SharedSegment) -> None:
    with Cache(segment) as host:
        host.write(bytes(64), 64)
        assert host.stats().fetched_bytes == 0
        host.write(bytes(63), 128)
        assert host.stats().fetched_bytes == 64


def test_stale_bytes_are_counted_where_asked_for(segment: SharedSegment) -> None:
    with hosts(segment, detect_stale=True) as (writer, reader):
        reader.read(8)
        writer.write(b"abc")
        writer.flush()
        reader.read(2, 6)
        assert reader.stats().stale_reads == 0  # these bytes did not change
        reader.read(8)
        assert (reader.stats().stale_reads, reader.stats().stale_bytes) == (1, 3)
        reader.invalidate()
        reader.read(8)
        reader.write(b"xyz")
        reader.read(8)  # its own bytes are newer than the memory's, not staler
        assert reader.stats().stale_reads == 1


def test_hardware_coherence_misses_only_what_another_host_changed(segment: SharedSegment) -> None:
    with hosts(segment, mode=Coherence.HARDWARE) as (left, right):
        left.read(8)
        left.read(8)
        assert (left.stats().misses, left.stats().hits) == (1, 1)
        right.write(b"new")
        left.read(8)
        assert (left.stats().misses, left.stats().hits) == (2, 1)


def test_thousands_of_lines_are_found_again(segment: SharedSegment) -> None:
    with SharedSegment.create("large", 1 << 20) as large, Cache(large) as host:
        for line in range(0, 16384, 3):
            host.write(line.to_bytes(4, "little"), line * LINE_BYTES)
        host.invalidate(0, 1 << 19)
        for line in range(0, 16384, 3):
            expected = 0 if line < 8192 else line
            assert int.from_bytes(host.read(4, line * LINE_BYTES), "little") == expected
        host.flush()
        assert host.stats().dirty_bytes == 0


# ---- what it costs ---------------------------------------------------------------------------------------------------

MEMORY = Timing(read_latency_ns=500, write_latency_ns=300, read_bandwidth_gbps=1, write_bandwidth_gbps=2)


def cost_ns(context: Context, access: Callable[[], object]) -> int:
    before_ns = context.now_ns
    access()
    return context.now_ns - before_ns


def test_misses_and_flushes_are_priced_and_hits_cost_the_caches_latency(segment: SharedSegment) -> None:
    with (
        Context("virtual") as context,
        Cache(segment, context=context, timing=MEMORY, hit_latency_ns=3) as host,
    ):
        assert cost_ns(context, lambda: host.read(8)) == 500 + 64
        assert cost_ns(context, lambda: host.read(8)) == 3
        assert cost_ns(context, lambda: host.read(256)) == 500 + 3 * 64  # one access: the latency counts once
        assert cost_ns(context, lambda: host.write(b"x", 1000)) == 500 + 64  # its line is fetched first
        assert cost_ns(context, lambda: host.write(bytes(64), 2048)) == 3  # all of its line: nothing to fetch
        assert cost_ns(context, host.flush) == 300 + 2 * 32
        assert cost_ns(context, host.flush) == cost_ns(context, host.invalidate) == 0
        assert cost_ns(context, lambda: host.load_u64(0)) == 508
        assert host.stats().delayed_ns == context.now_ns


def test_uncached_accesses_are_priced_each_time(segment: SharedSegment) -> None:
    with (
        Context("virtual") as context,
        Cache(segment, Coherence.UNCACHED, context=context, timing=MEMORY) as host,
    ):
        for _ in range(3):
            assert cost_ns(context, lambda: host.read(100)) == 600
            assert cost_ns(context, lambda: host.write(bytes(100))) == 350


def test_hosts_queue_on_the_link_they_share(segment: SharedSegment) -> None:
    with (
        Link.create(read_bandwidth_gbps=1, write_bandwidth_gbps=1) as link,
        Context("virtual") as first,
        Context("virtual") as second,
        Cache(segment, context=first, link=link) as left,
        Cache(segment, context=second, link=link) as right,
    ):
        left.read(4096)
        right.read(4096)
        assert (first.now_ns, second.now_ns) == (4096, 8192)


def test_on_the_real_clock_a_miss_takes_its_time(segment: SharedSegment) -> None:
    timing = Timing(read_latency_ns=200_000, write_latency_ns=200_000)
    with Context() as context, Cache(segment, context=context, timing=timing) as host:
        before_ns = time.monotonic_ns()
        for line in range(50):
            host.read(1, line * LINE_BYTES)
        assert time.monotonic_ns() - before_ns >= 50 * 190_000


def test_a_context_stays_open_while_a_cache_charges_it(segment: SharedSegment) -> None:
    context = Context("virtual")
    with Cache(segment, context=context), pytest.raises(InUseError):
        context.close()
    with pytest.raises(ArgumentError, match="got hit_latency_ns -1"):
        Cache(segment, context=context, hit_latency_ns=-1)
    context.close()
