"""The coherence model: what one host sees of another's bytes, and what it does not see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucxl import Context
from emucxl.coherence import LINE_BYTES, Cache, Coherence
from emucxl.errors import (
    AccessDeniedError,
    ArgumentError,
    ClosedError,
    FencedError,
    InUseError,
    OutOfBoundsError,
    PoisonedError,
    SegmentError,
)
from emucxl.links import Link
from emucxl.pool import Pool
from emucxl.shared_memory import SharedSegment
from emucxl.timing import Timing
from support.c_programs import compile_program, compiler, run_program

MODES = list(Coherence)


@pytest.fixture
def segment() -> Iterator[SharedSegment]:
    with SharedSegment.create("coherence", 4096) as segment:
        yield segment


@contextmanager
def hosts(segment: SharedSegment, count: int = 2, **options: object) -> Iterator[list[Cache]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Cache(segment, **options)) for _ in range(count)]  # type: ignore[arg-type]


# ---- what software coherence demands -------------------------------------------------------------------------------


def test_a_write_is_seen_by_others_after_flush_and_invalidate(segment: SharedSegment) -> None:
    with hosts(segment) as (writer, reader):
        assert reader.read(5) == bytes(5)
        writer.write(b"hello")
        writer.flush(0, 5)
        reader.invalidate(0, 5)
        assert reader.read(5) == b"hello"


def test_without_its_flush_a_write_stays_with_its_writer(segment: SharedSegment) -> None:
    with hosts(segment) as (writer, reader):
        writer.write(b"hello")
        assert writer.read(5) == b"hello"
        assert reader.read(5) == segment.buffer[:5] == bytes(5)


def test_without_an_invalidate_what_was_read_is_read_again(segment: SharedSegment) -> None:
    with hosts(segment) as (writer, reader):
        reader.read(1)
        writer.write(b"hello")
        writer.flush()
        assert reader.read(5) == bytes(5)
        assert segment.buffer[:5] == b"hello"


def test_what_was_not_read_before_needs_no_invalidate(segment: SharedSegment) -> None:
    with hosts(segment) as (writer, reader):
        writer.write(b"hello")
        writer.flush()
        assert reader.read(5) == b"hello"


@pytest.mark.parametrize("mode", [Coherence.HARDWARE, Coherence.UNCACHED])
def test_the_other_modes_need_neither(segment: SharedSegment, mode: Coherence) -> None:
    with hosts(segment, mode=mode) as (left, right):
        for number in range(100):
            data = bytes([number]) * 100
            left.write(data, 30)
            assert right.read(100, 30) == data
            right.write(data[:7], 500)
            assert left.read(7, 500) == data[:7]
            left.invalidate()  # and lose nothing by one
        assert left.stats().dirty_bytes == left.stats().dropped_bytes == 0


def test_a_flush_keeps_the_lines_and_flush_invalidate_forgets_them(segment: SharedSegment) -> None:
    with hosts(segment) as (host, other):
        host.write(b"mine", 0)
        host.flush(0, 4)
        other.write(b"late", 0)
        other.flush(0, 4)
        assert host.read(4) == b"mine"
        host.flush_invalidate(0, 4)
        assert host.read(4) == b"late"  # nothing was dirty, so nothing was written over it


def test_an_invalidate_loses_what_was_written_to_its_range_alone(segment: SharedSegment) -> None:
    with Cache(segment) as host:
        host.write(b"abcdefgh", 60)  # over the end of line 0
        host.invalidate(62, 4)
        assert host.read(8, 60) == b"ab\0\0\0\0gh"
        assert host.stats().dropped_bytes == 4
        host.flush()
        assert segment.buffer[60:68] == b"ab\0\0\0\0gh"


def test_a_whole_line_is_written_back_at_once_for_its_neighbours_sake(segment: SharedSegment) -> None:
    """A flush of one byte flushes its line, as in a processor: two variables of one line are flushed together."""
    with Cache(segment) as host:
        host.write(b"x", 0)
        host.write(b"y", 63)
        host.write(b"z", 64)
        host.flush(0, 1)
        assert (segment.buffer[63], segment.buffer[64]) == (ord("y"), 0)


def test_two_hosts_that_write_to_one_line_lose_no_byte(segment: SharedSegment) -> None:
    with hosts(segment) as (even, odd):
        for offset in range(0, 64, 2):
            even.write(b"e", offset)
            odd.write(b"o", offset + 1)
        even.flush()
        odd.flush()
        assert segment.buffer[:64] == b"eo" * 32


def test_two_hosts_that_write_whole_lines_overwrite_each_other(segment: SharedSegment) -> None:
    with hosts(segment, whole_line_writes=True) as (even, odd):
        even.write(b"e", 0)
        odd.write(b"o", 1)
        even.flush()
        odd.flush()
        assert segment.buffer[:2] == b"\0o"


def test_what_was_not_flushed_dies_with_the_host(segment: SharedSegment) -> None:
    with Cache(segment) as host:
        host.write(b"gone")
        assert host.stats().dirty_bytes == 4
    assert segment.buffer[:4] == bytes(4)


# ---- bypassing the cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_uncached_words_are_never_stale(segment: SharedSegment, mode: Coherence) -> None:
    with hosts(segment, mode=mode) as (left, right):
        for value in (1, 2**64 - 1, 0, 1 << 40):
            left.store_u64(128, value)
            assert right.load_u64(128) == value
            assert left.read(8, 128) == value.to_bytes(8, "little")


def test_an_uncached_store_drops_the_cached_bytes(segment: SharedSegment) -> None:
    with Cache(segment) as host:
        host.write(bytes(range(16)), 0)
        host.store_u64(8, 7)
        assert host.read(16) == bytes([*range(8), 7, *bytes(7)])
        host.flush()
        assert segment.buffer[:16] == host.read(16)


def test_an_uncached_load_does_not_see_what_the_host_has_not_flushed(segment: SharedSegment) -> None:
    with Cache(segment) as host:
        host.write(b"\1", 0)
        assert host.load_u64(0) == 0
        host.flush()
        host.fence()
        assert host.load_u64(0) == 1


# ---- capacity and statistics ----------------------------------------------------------------------------------------


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


# ---- before a region of a pool -------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", 16 << 20) as pool:
        yield pool


def test_hosts_of_a_pool_share_a_region_through_caches(pool: Pool) -> None:
    with (
        pool.join("a") as a,
        pool.join("b") as b,
        a.carve("shared", 4096) as mine,
        b.open("shared", writable=True) as theirs,
        Cache(mine) as writer,
        Cache(theirs) as reader,
    ):
        assert reader.size_bytes == mine.size_bytes
        reader.read(5)
        writer.write(b"hello")
        writer.flush()
        assert (reader.read(5), theirs.read(5)) == (bytes(5), b"hello")
        reader.invalidate()
        assert reader.read(5) == b"hello"
        with pytest.raises(InUseError):
            mine.close()


def test_a_region_that_is_read_only_here_is_not_written_to(pool: Pool) -> None:
    with (
        pool.join("a") as a,
        pool.join("b") as b,
        a.carve("shared", 4096),
        b.open("shared") as theirs,
        Cache(theirs) as reader,
    ):
        assert reader.read(5) == bytes(5)
        reader.invalidate()
        with pytest.raises(AccessDeniedError):
            reader.write(b"x")
        with pytest.raises(AccessDeniedError):
            reader.store_u64(0, 1)


def test_poison_is_met_even_where_the_line_is_cached(pool: Pool) -> None:
    with pool.join("a") as a, a.carve("x", 4096) as region, Cache(region) as host:
        assert host.read(256) == bytes(256)
        region.poison(64, 64)
        with pytest.raises(PoisonedError):
            host.read(1, 64)
        assert host.read(64) == bytes(64)
        host.invalidate()


def test_a_fenced_host_writes_nothing_back(pool: Pool) -> None:
    with pool.join("a", lease_s=0.05, heartbeat=False) as a:
        region = a.carve("x", 4096)
        host = Cache(region)
        host.write(b"late")
        time.sleep(0.1)
        pool.reclaim()
        for use in (
            host.flush,
            host.invalidate,
            host.read,
            lambda: host.write(b"x"),
            lambda: host.store_u64(0, 1),
        ):
            with pytest.raises(FencedError):
                use()
        host.close()


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_ranges_are_checked_against_the_end(segment: SharedSegment, mode: Coherence) -> None:
    with Cache(segment, mode) as host:
        assert host.read(0, 4096) == b""
        for use in (host.flush, host.invalidate, host.flush_invalidate):
            use(4096, 0)
            with pytest.raises(
                OutOfBoundsError, match="got 2 bytes at offset 4095; expected them within the 4096"
            ):
                use(4095, 2)
        with pytest.raises(OutOfBoundsError):
            host.read(2, 4095)
        with pytest.raises(OutOfBoundsError):
            host.write(b"ab", 4095)
        with pytest.raises(OutOfBoundsError):
            host.read(1, 2**63)
        with pytest.raises(OutOfBoundsError):
            host.load_u64(4096)
        with pytest.raises(ArgumentError, match="got offset 4; expected a multiple of 8"):
            host.store_u64(4, 0)
        with pytest.raises(ArgumentError, match="got offset=-1"):
            host.read(1, -1)
        with pytest.raises(ArgumentError, match="got size=-1"):
            host.flush(0, -1)


def test_bad_configurations_are_refused(segment: SharedSegment) -> None:
    with pytest.raises(ArgumentError, match=r"expected whole lines of 64"):
        Cache(segment, capacity_bytes=100)
    with pytest.raises(ArgumentError, match=r"got mode=3; expected Coherence\.HARDWARE, "):
        Cache(segment, 3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="expected a multiple of 64, where a line begins"):
        Cache(segment.buffer[8:])
    with pytest.raises(ArgumentError, match="got read-only memory"):
        Cache(bytes(64))
    with pytest.raises(ArgumentError, match="without a context"):
        Cache(segment, hit_latency_ns=1)


def test_a_closed_cache_refuses_and_an_open_one_keeps_its_memory(segment: SharedSegment) -> None:
    host = Cache(segment)
    assert repr(host) == "<Cache, software, before 4,096 bytes>"
    with pytest.raises(SegmentError, match="cannot be closed while a view of it is in use"):
        segment.close()
    host.close()
    host.close()
    assert repr(host) == "<Cache, software, closed>"
    for use in (host.read, host.flush, host.invalidate, host.fence, host.stats, lambda: host.write(b"")):
        with pytest.raises(ClosedError, match="the cache is closed"):
            use()
    segment.close()


def test_a_range_may_end_within_a_line() -> None:
    with SharedSegment.create("odd", 100) as odd, Cache(odd) as host:
        host.write(b"end", 97)
        host.flush()
        host.invalidate()
        assert host.read()[96:] == b"\0end"


# ---- against a reference --------------------------------------------------------------------------------------------

SIZE_BYTES = 200  # three lines and a part of one: everything collides


class Reference:
    """A cache of unlimited capacity, in a few lines: a dict of bytes per line, and the set of dirty lines."""

    def __init__(self, memory: bytearray) -> None:
        self.memory = memory
        self.lines: dict[int, dict[int, int]] = {}
        self.dirty: set[int] = set()

    def fill(self, line: int) -> None:
        held = self.lines.setdefault(line, {})
        for offset in range(line * LINE_BYTES, min((line + 1) * LINE_BYTES, SIZE_BYTES)):
            held.setdefault(offset, self.memory[offset])

    def touched(self, offset: int, size: int) -> Iterator[tuple[int, range]]:
        for line in range(offset // LINE_BYTES, -(-(offset + size) // LINE_BYTES) if size else 0):
            begin = line * LINE_BYTES
            yield line, range(max(offset, begin), min(offset + size, begin + LINE_BYTES))

    def read(self, offset: int, size: int) -> bytes:
        data = bytearray()
        for line, part in self.touched(offset, size):
            if not set(part) <= self.lines.get(line, {}).keys():
                self.fill(line)
            data += bytes(self.lines[line][at] for at in part)
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        for line, part in self.touched(offset, len(data)):
            if len(part) < min(LINE_BYTES, SIZE_BYTES - line * LINE_BYTES):
                self.fill(line)
            for at in part:
                self.lines.setdefault(line, {})[at] = data[at - offset]
                self.dirty.add(at)

    def flush(self, offset: int, size: int) -> None:
        for line, _ in self.touched(offset, size):
            for at, value in self.lines.get(line, {}).items():
                if at in self.dirty:
                    self.memory[at] = value
            self.dirty -= self.lines.get(line, {}).keys()

    def invalidate(self, offset: int, size: int) -> None:
        for line, part in self.touched(offset, size):
            self.dirty -= set(part)
            held = self.lines.pop(line, {})
            kept = {at: value for at, value in held.items() if at in self.dirty}
            if kept:
                self.lines[line] = kept

    def flush_invalidate(self, offset: int, size: int) -> None:
        self.flush(offset, size)
        self.invalidate(offset, size)


ranges = st.integers(0, SIZE_BYTES).flatmap(
    lambda offset: st.tuples(st.just(offset), st.integers(0, SIZE_BYTES - offset))
)
operations = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["read", "write", "flush", "invalidate", "flush_invalidate"]),
        ranges,
    ),
    max_size=60,
)


@given(operations)
def test_hosts_see_what_the_reference_says(sequence: list[tuple[int, str, tuple[int, int]]]) -> None:
    memory = bytearray(SIZE_BYTES)
    with (
        SharedSegment.create("reference", SIZE_BYTES) as segment,
        hosts(segment, 3, detect_stale=True) as caches,
    ):
        references = [Reference(memory) for _ in caches]
        for number, (host, operation, (offset, size)) in enumerate(sequence):
            cache, reference = caches[host], references[host]
            if operation == "read":
                assert cache.read(size, offset) == reference.read(offset, size)
            elif operation == "write":
                data = bytes((number * 7 + at) % 255 + 1 for at in range(size))
                cache.write(data, offset)
                reference.write(offset, data)
            else:
                getattr(cache, operation)(offset, size)
                getattr(reference, operation)(offset, size)
            assert segment.buffer == memory
            assert cache.stats().dirty_bytes == len(reference.dirty)


@given(operations, st.integers(1, 3), st.integers(0, 2**64 - 1), st.booleans())
def test_no_byte_comes_from_nowhere(
    sequence: list[tuple[int, str, tuple[int, int]]], capacity: int, seed: int, whole_line_writes: bool
) -> None:
    """Each byte that is read was once written there, or is the first zero, in whatever order lines are evicted."""
    once = [{0} for _ in range(SIZE_BYTES)]
    with (
        SharedSegment.create("reference", SIZE_BYTES) as segment,
        hosts(
            segment,
            3,
            capacity_bytes=capacity * LINE_BYTES,
            seed=seed,
            whole_line_writes=whole_line_writes,
        ) as caches,
    ):
        for number, (host, operation, (offset, size)) in enumerate(sequence):
            if operation == "read":
                seen = caches[host].read(size, offset)
                assert all(byte in once[offset + at] for at, byte in enumerate(seen))
            elif operation == "write":
                data = bytes((number * 7 + at) % 255 + 1 for at in range(size))
                caches[host].write(data, offset)
                for at, byte in enumerate(data):
                    once[offset + at].add(byte)
            else:
                getattr(caches[host], operation)(offset, size)
            assert caches[host].stats().lines <= capacity
        for cache in caches:
            cache.flush()
        assert all(byte in once[at] for at, byte in enumerate(segment.buffer))


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["write", "flush", "flush_invalidate"]), ranges),
        max_size=60,
    ),
    st.integers(0, 3),
)
def test_hosts_that_share_lines_but_no_bytes_lose_nothing(
    sequence: list[tuple[int, str, tuple[int, int]]], capacity: int
) -> None:
    """Byte i is host i % 3's: false sharing at its worst, with any evictions in between."""
    expected = bytearray(SIZE_BYTES)
    with (
        SharedSegment.create("reference", SIZE_BYTES) as segment,
        hosts(segment, 3, capacity_bytes=capacity * LINE_BYTES) as caches,
    ):
        for number, (host, operation, (offset, size)) in enumerate(sequence):
            if operation != "write":
                getattr(caches[host], operation)(offset, size)
                continue
            for at in range(offset, offset + size):
                if at % 3 == host:
                    caches[host].write(bytes([number + 1]), at)
                    expected[at] = number + 1
            assert caches[host].read()[host::3] == expected[host::3]
        for cache in caches:
            cache.flush()
        assert segment.buffer == expected


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_threads_of_two_hosts_lose_no_byte_of_shared_lines(tmp_path: Path, sanitize: str) -> None:
    program = compile_program(Path("stress_coherence.c"), tmp_path, sanitize)
    assert run_program(program, 5000) == "no byte lost\n"
