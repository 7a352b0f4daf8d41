"""Refusals of a cache: bad ranges, bad configurations, and use after its end."""

from __future__ import annotations

import pytest

from emucxl.coherence import Cache, Coherence
from emucxl.errors import (
    ArgumentError,
    ClosedError,
    OutOfBoundsError,
    SegmentError,
)
from emucxl.shared_memory import SharedSegment

MODES = list(Coherence)


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
