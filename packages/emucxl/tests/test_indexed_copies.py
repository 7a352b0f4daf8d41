"""Copies of pieces whose places are listed."""

from __future__ import annotations

import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import emucxl
from emucxl.copy_engine import Copy, CopyEngine, IndexedCopy
from emucxl.errors import ArgumentError, ArgumentTypeError, OutOfBoundsError, UnavailableError
from emucxl.timing import Timing

MEMORY_BYTES = 256


@given(
    size=st.integers(0, 40),
    places=st.lists(st.tuples(st.integers(0, 216), st.integers(0, 216)), max_size=12),
    are_buffers=st.tuples(st.booleans(), st.booleans()),
    is_one_memory=st.booleans(),
    dtype=st.sampled_from([np.int64, np.uint64, np.int32, np.uint8]),
)
def test_pieces_are_copied_as_numpy_copies_them_one_after_the_other(
    size: int,
    places: list[tuple[int, int]],
    are_buffers: tuple[bool, bool],
    is_one_memory: bool,
    dtype: Any,
) -> None:
    """With the modelled time and the counts of a Copy for each."""
    offsets = np.array(places, dtype).reshape(-1, 2)

    def copied(is_indexed: bool) -> tuple[bytes, int, object]:
        with emucxl.Context("virtual") as context:
            tier = context.add_tier("far", 1 << 20, timing=Timing(1000, 1000, 1, 1))
            to, source = (
                context.alloc(MEMORY_BYTES, "far") if is_buffer else bytearray(MEMORY_BYTES)
                for is_buffer in are_buffers
            )
            source = to if is_one_memory else source
            memoryview(source)[:] = bytes(range(MEMORY_BYTES))
            indexed = IndexedCopy(to, source, size, offsets[:, 0], offsets[:, 1])
            singles = [Copy(to, source, size, int(at), int(begin)) for at, begin in offsets]
            with CopyEngine(context) as engine:
                engine.submit([indexed] if is_indexed else singles).wait()
            return bytes(memoryview(to)), context.now_ns, tier.stats()

    expected = np.arange(MEMORY_BYTES, dtype=np.uint8)
    source = expected if is_one_memory else expected.copy()
    expected[:] = expected if is_one_memory else 0
    for at, begin in places:
        expected[at : at + size] = source[begin : begin + size].copy()
    assert copied(is_indexed=True)[0] == expected.tobytes()
    assert copied(is_indexed=True) == copied(is_indexed=False)


def test_indexed_copies_stand_beside_others_in_a_batch() -> None:
    target = bytearray(12)
    with emucxl.Context("virtual") as context, CopyEngine(context) as engine:
        indexed = IndexedCopy(target, b"abcdef", 2, [8, 2], [0, 4])
        engine.submit([(target, b"------------", 12), indexed, Copy(target, b"Z", 1, 5)]).wait()
    assert target == b"--ef-Z--ab--"


@pytest.mark.parametrize("to_far", [True, False])
def test_many_pieces_take_the_time_of_one_copy_of_their_sum(to_far: bool) -> None:
    """Their own bytes are no load that raises their latency."""
    size, num_pieces = 12_288, 400

    def took_ns(is_indexed: bool) -> int:
        with emucxl.Context("virtual") as context:
            far = context.add_tier("far", 8 << 20, timing="cxl-direct").alloc(size * num_pieces)
            to, source = (
                (far, bytearray(size * num_pieces)) if to_far else (bytearray(size * num_pieces), far)
            )
            offsets = np.random.default_rng(0).permutation(num_pieces) * size
            copy = IndexedCopy(to, source, size, offsets, offsets[::-1])
            with CopyEngine(context) as engine:
                engine.submit([copy if is_indexed else Copy(to, source)]).wait()
            return context.now_ns

    assert abs(took_ns(is_indexed=True) - took_ns(is_indexed=False)) <= 1  # a fraction is rounded at its end


def test_no_pieces_are_an_empty_batch() -> None:
    with emucxl.Context("virtual") as context, CopyEngine(context) as engine:
        engine.submit([IndexedCopy(bytearray(4), b"long", 9, [], [])]).wait()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            {"destination_offsets": [0, 57, 99]},
            OutOfBoundsError,
            r"got piece 1 of 3, of 8 bytes, at offset 57 of the destination's 64 bytes; expected offsets from 0 to 56",
        ),
        ({"source_offsets": [0, 0, -1]}, OutOfBoundsError, r"piece 2 of 3, .* offset -1 of the source's 64"),
        (
            {"source_offsets": np.array([0, 2**64 - 1, 0], np.uint64)},
            OutOfBoundsError,
            "piece 1 of 3, of 8 bytes, at offset 18,446,744,073,709,551,615",
        ),
        ({"size": 65}, OutOfBoundsError, "piece 0 of 3, of 65 bytes"),
        ({"size": -1}, OutOfBoundsError, "expected at least 0"),
        ({"size": 8.0}, ArgumentError, "size"),
        (
            {"destination_offsets": [0, 8]},
            ArgumentError,
            "got 2 offsets of the destination and 3 of the source",
        ),
        ({"source_offsets": [0.0, 8.0, 16.0]}, ArgumentTypeError, "got source_offsets of float64 in 1 dim"),
        ({"source_offsets": 8}, ArgumentTypeError, "in 0 dimensions"),
        ({"destination": bytes(64)}, ArgumentError, "expected writable, contiguous memory"),
    ],
)
def test_pieces_that_cannot_be_are_refused(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with emucxl.Context("virtual") as context, CopyEngine(context) as engine:
        far = context.add_tier("far", 1 << 20).alloc(64)
        given_values = {
            "destination": bytearray(64),
            "source": far,
            "size": 8,
            "destination_offsets": [0, 8, 16],
            "source_offsets": [16, 8, 0],
        }
        with pytest.raises(error, match=message):
            engine.submit([IndexedCopy(**{**given_values, **values})])
        far.free()  # nothing is held in place


def test_without_numpy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with emucxl.Context("virtual") as context, CopyEngine(context) as engine:
        with pytest.raises(UnavailableError, match=r"pip install 'emucxl\[numpy\]'"):
            engine.submit([IndexedCopy(bytearray(4), b"four", 1, [0], [0])])
        engine.submit([(bytearray(4), b"four", 4)]).wait()
