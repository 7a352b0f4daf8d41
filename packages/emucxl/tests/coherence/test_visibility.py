"""The coherence model: what one host sees of another's bytes, and what it does not see."""

from __future__ import annotations

import pytest

from emucxl.coherence import Cache, Coherence
from emucxl.shared_memory import SharedSegment
from support.cache_hosts import hosts

MODES = list(Coherence)


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
