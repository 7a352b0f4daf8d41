"""Caches against a reference of a few lines, and threads of two hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucxl.coherence import LINE_BYTES
from emucxl.shared_memory import SharedSegment
from support.c_programs import compile_program, compiler, run_program
from support.cache_hosts import hosts

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
@pytest.mark.parametrize(
    ("sanitize", "rounds"),
    [
        ("address,undefined", 2000),
        ("thread", 1000),
        *(pytest.param(each, 5000, marks=pytest.mark.slow) for each in ("address,undefined", "thread")),
    ],
)
def test_threads_of_two_hosts_lose_no_byte_of_shared_lines(
    tmp_path: Path, sanitize: str, rounds: int
) -> None:
    program = compile_program(Path("stress_coherence.c"), tmp_path, sanitize)
    assert run_program(program, rounds) == "no byte lost\n"
