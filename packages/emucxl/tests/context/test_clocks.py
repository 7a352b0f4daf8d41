"""Clocks of contexts, and batches of accesses."""

from __future__ import annotations

import pytest

from emucxl.context import Context
from emucxl.errors import (
    ArgumentError,
    ClosedError,
    OutOfBoundsError,
)
from emucxl.tiers import Tier

MIB = 1 << 20


def test_the_virtual_clock_stands_still_until_it_is_moved(context: Context) -> None:
    before = context.now_ns
    assert context.now_ns == before
    context.advance(1500)
    assert context.now_ns == before + 1500
    with pytest.raises(ArgumentError):
        context.advance(-1)


def test_the_real_clock_runs_and_waiting_for_it_waits() -> None:
    with Context() as context:
        before = context.now_ns
        context.advance(2_000_000)
        assert context.now_ns >= before + 2_000_000


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_does_what_its_accesses_would(context: Context, tier: Tier) -> None:
    first, second = tier.alloc(100), context.add_tier("cxl", MIB).alloc(100)
    context.write_batch([(first, 0, b"abc"), (second, 10, bytearray(b"defg"))])
    targets = [bytearray(3), bytearray(2)]
    context.read_batch([(first, 0, targets[0]), (second, 11, targets[1])])
    assert targets == [b"abc", b"ef"]
    context.read_batch([])


def test_a_bad_access_leaves_a_batch_undone(context: Context, tier: Tier) -> None:
    buffer = tier.alloc(100)
    freed = tier.alloc(100)
    freed.free()
    with Context() as other:
        foreign = other.add_tier("local", MIB).alloc(10)
        for bad, error in [
            ((buffer, 99, b"xy"), OutOfBoundsError),
            ((buffer, -1, b"x"), ArgumentError),
            ((buffer, 0, "text"), TypeError),
            ((buffer, 0), TypeError),
            ((b"bytes", 0, b"x"), TypeError),
            ((freed, 0, b"x"), ClosedError),
            ((foreign, 0, b"x"), ArgumentError),
            (None, TypeError),
        ]:
            with pytest.raises(error):
                context.write_batch([(buffer, 0, b"abc"), bad])  # type: ignore[list-item]
            assert buffer.read() == bytes(100)
    with pytest.raises(ArgumentError, match="no contiguous writable bytes"):
        context.read_batch([(buffer, 0, b"read-only")])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        context.read_batch(7)  # type: ignore[arg-type]
    buffer.resize(200)  # nothing is left in use
