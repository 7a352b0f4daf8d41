"""Reads, writes and copies through the C interface: what they check, move, count and cost."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucxl import abi, errors, native
from support.native_context import MIB, NativeContext, fill, status_of, three_tiers

SIZE_MAX = 2**64 - 1


@pytest.fixture
def context() -> Iterator[NativeContext]:
    yield from three_tiers()


# ---- accesses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 101), (100, 1), (101, 0), (SIZE_MAX, 1), (50, SIZE_MAX), (SIZE_MAX, SIZE_MAX), (99, 2)],
)
def test_a_range_that_leaves_the_allocation_is_refused(
    context: NativeContext, offset: int, size: int
) -> None:
    pointer = context.alloc(0, 100)
    buffer = ctypes.create_string_buffer(256)
    library, handle = context.library, context.handle
    for status in (
        library.emx_read(handle, pointer, offset, buffer, size),
        library.emx_write(handle, pointer, offset, buffer, size),
        library.emx_memset(handle, pointer, offset, 1, size),
        library.emx_copy(handle, pointer, offset, pointer, 0, size),
        library.emx_copy(handle, pointer, 0, pointer, offset, size),
    ):
        assert type(native.error_of(status)) is errors.OutOfBoundsError
    assert context.read(pointer, 0, 100) == bytes(100)


def test_bounds_count_from_an_interior_pointer(context: NativeContext) -> None:
    pointer = context.alloc(0, 100)
    context.write(pointer + 90, 2, b"8 bytes.")
    assert context.read(pointer, 92, 8) == b"8 bytes."
    with pytest.raises(
        errors.OutOfBoundsError, match=r"got 9 bytes at offset 2 of 0x\w+; expected .* at or before offset 10"
    ):
        context.write(pointer + 90, 2, b"9 bytes..")


def test_an_empty_access_is_checked_and_does_nothing(context: NativeContext) -> None:
    pointer = context.alloc(0, 100)
    library, handle = context.library, context.handle
    assert library.emx_read(handle, pointer, 100, None, 0) == 0
    assert library.emx_write(handle, pointer, 0, None, 0) == 0
    assert library.emx_memset(handle, pointer, 50, 1, 0) == 0
    assert library.emx_copy(handle, pointer, 0, pointer, 100, 0) == 0
    assert library.emx_read_batch(handle, None, 0) == 0
    assert status_of(library.emx_read, handle, 8, 0, None, 0) is errors.BadPointerError
    stats = context.stats(0)
    assert (stats.read_accesses, stats.write_accesses) == (0, 0)


def test_a_null_buffer_is_an_error(context: NativeContext) -> None:
    pointer = context.alloc(0, 100)
    library, handle = context.library, context.handle
    assert status_of(library.emx_read, handle, pointer, 0, None, 4) is errors.ArgumentError
    assert status_of(library.emx_write, handle, pointer, 0, None, 4) is errors.ArgumentError
    assert status_of(library.emx_write_batch, handle, None, 1) is errors.ArgumentError


def test_null_results_are_an_error(context: NativeContext) -> None:
    pointer = context.alloc(0, 100)
    library, handle = context.library, context.handle
    assert status_of(library.emx_resize, handle, pointer, 4, None) is errors.ArgumentError
    assert status_of(library.emx_migrate, handle, pointer, 1, None) is errors.ArgumentError
    assert status_of(library.emx_query, handle, pointer, None) is errors.ArgumentError
    assert status_of(library.emx_tier_get_info, handle, 0, None) is errors.ArgumentError
    assert status_of(library.emx_tier_get_stats, handle, 0, None) is errors.ArgumentError
    assert context.query(pointer).size_bytes == 100


def test_a_batch_is_checked_before_anything_moves(context: NativeContext) -> None:
    pointer = context.alloc(0, 100)
    with pytest.raises(errors.OutOfBoundsError):
        context.write_batch([(pointer, 0, b"first"), (pointer, 98, b"last")])
    assert context.read(pointer, 0, 100) == bytes(100)


@pytest.mark.parametrize("count", [1, 16, 17, 1000])
def test_a_batch_moves_every_access(context: NativeContext, count: int) -> None:
    pointers = [context.alloc(number % 2, 8) for number in range(count)]
    context.write_batch([(pointer, 0, struct.pack("q", pointer)) for pointer in pointers])
    found = context.read_batch([(pointer, 0, 8) for pointer in pointers])
    assert [struct.unpack("q", data)[0] for data in found] == pointers
    assert context.stats(0).write_accesses == (count + 1) // 2


def test_statistics_count_what_the_calls_move(context: NativeContext) -> None:
    pointer = context.alloc(0, 1000)
    context.write(pointer, 0, bytes(300))
    context.memset(pointer, 0, 1, 50)
    context.read(pointer, 0, 7)
    pointer = context.migrate(pointer, 1)
    near, far = context.stats(0), context.stats(1)
    assert (near.write_bytes, near.write_accesses, near.read_bytes, near.read_accesses) == (350, 2, 1007, 2)
    assert (far.write_bytes, far.write_accesses, far.read_bytes) == (1000, 1, 0)
    assert (near.num_allocations, near.total_allocations, far.allocated_bytes) == (0, 1, 1000)
    assert near.delayed_ns == far.delayed_ns == 0


def test_memory_that_is_not_there_reads_as_zero_and_forgets(context: NativeContext) -> None:
    nowhere, here = context.alloc(2, 100), context.alloc(0, 100)
    context.write(nowhere, 0, b"forgotten")
    assert context.read(nowhere, 0, 100) == bytes(100)
    context.memset(here, 0, 0xFF, 100)
    context.copy(here, 10, nowhere, 0, 80)
    assert context.read(here, 0, 100) == b"\xff" * 10 + bytes(80) + b"\xff" * 10
    context.copy(nowhere, 0, here, 0, 100)
    assert context.read(context.migrate(nowhere, 0), 0, 100) == bytes(100)


# ---- prices ------------------------------------------------------------------------------------------------------

READ_NS, WRITE_NS = 1000, 400


@pytest.fixture
def priced() -> Iterator[NativeContext]:
    """On the virtual clock: tier 0, "far", with latencies and no bound of bandwidth; tier 1, "local", unmodelled."""
    with NativeContext(clock=abi.CLOCK_VIRTUAL) as opened:
        opened.add_tier("far", timing=abi.RawTiming(read_latency_ns=READ_NS, write_latency_ns=WRITE_NS))
        opened.add_tier("local")
        yield opened
        opened.check()


def cost_ns(context: NativeContext, call: Callable[[], object]) -> int:
    before = context.now_ns
    call()
    return context.now_ns - before


def test_each_access_costs_its_latency(priced: NativeContext) -> None:
    far, local = priced.alloc(0, 1000), priced.alloc(1, 1000)
    assert cost_ns(priced, lambda: priced.read(far, 0, 64)) == READ_NS
    assert cost_ns(priced, lambda: priced.write(far, 0, b"x" * 64)) == WRITE_NS
    assert cost_ns(priced, lambda: priced.memset(far, 0, 1, 1000)) == WRITE_NS
    assert cost_ns(priced, lambda: priced.copy(local, 0, far, 0, 100)) == READ_NS
    assert cost_ns(priced, lambda: priced.copy(far, 0, local, 0, 100)) == WRITE_NS
    assert cost_ns(priced, lambda: priced.copy(far, 0, far, 500, 100)) == max(READ_NS, WRITE_NS)
    assert cost_ns(priced, lambda: priced.read(local, 0, 1000)) == 0
    assert priced.stats(0).delayed_ns == 2 * READ_NS + 3 * WRITE_NS + 2 * max(READ_NS, WRITE_NS)
    assert priced.stats(1).delayed_ns == 0


def test_a_move_is_a_read_and_a_write(priced: NativeContext) -> None:
    pointer = priced.alloc(0, 100)
    assert cost_ns(priced, lambda: priced.resize(pointer, 100)) == 0, "in place"
    moved = []
    assert cost_ns(priced, lambda: moved.append(priced.migrate(pointer, 1))) == READ_NS
    assert cost_ns(priced, lambda: priced.migrate(moved[0], 0)) == WRITE_NS


def test_a_batch_pays_each_tiers_latency_once(priced: NativeContext) -> None:
    pointers = [priced.alloc(number % 2, 64) for number in range(40)]
    assert cost_ns(priced, lambda: priced.read_batch([(pointer, 0, 64) for pointer in pointers])) == READ_NS
    assert priced.stats(0).delayed_ns == READ_NS
    assert (priced.stats(0).read_accesses, priced.stats(1).read_accesses) == (20, 20)


def test_what_is_refused_or_empty_costs_nothing(priced: NativeContext) -> None:
    pointer = priced.alloc(0, 100)

    def refused() -> None:
        for call in (lambda: priced.read(pointer, 90, 20), lambda: priced.write(8, 0, b"x")):
            with pytest.raises(errors.MemoryAccessError):
                call()

    assert cost_ns(priced, refused) == 0
    assert cost_ns(priced, lambda: priced.read(pointer, 100, 0)) == 0
    assert cost_ns(priced, lambda: priced.write_batch([(pointer, 0, b"")])) == 0
    assert priced.stats(0).delayed_ns == 0


def test_memory_that_is_not_there_is_priced_all_the_same() -> None:
    with NativeContext(clock=abi.CLOCK_VIRTUAL) as context:
        timing = abi.RawTiming(read_latency_ns=READ_NS, write_latency_ns=WRITE_NS)
        tier = context.add_tier("nowhere", 1 << 40, provider=abi.PROVIDER_NULL, timing=timing)
        pointer = context.alloc(tier, 1 << 35)
        assert cost_ns(context, lambda: context.memset(pointer, 0, 0, 1 << 35)) == WRITE_NS
        assert cost_ns(context, lambda: context.read(pointer, 1 << 34, 4096)) == READ_NS


# ---- poison ------------------------------------------------------------------------------------------------------


def test_poison_is_met_by_the_accesses_that_touch_it(context: NativeContext) -> None:
    pointer = context.alloc(0, 1024, 64)
    context.poison(0, pointer + 200, 1)  # the line from 192 to 256
    with pytest.raises(errors.PoisonedError, match=r"tier 'local': .*meets poison 92 bytes in"):
        context.read(pointer, 100, 200)
    for call in (
        lambda: context.write(pointer, 192, b"x"),
        lambda: context.memset(pointer, 255, 0, 1),
        lambda: context.copy(pointer, 512, pointer, 128, 128),
        lambda: context.copy(pointer, 128, pointer, 512, 128),
        lambda: context.read_batch([(pointer, 0, 64), (pointer, 192, 64)]),
        lambda: context.migrate(pointer, 1),
    ):
        with pytest.raises(errors.PoisonedError):
            call()
    assert context.read(pointer, 0, 192) + context.read(pointer, 256, 768) == bytes(960)
    assert context.query(pointer).tier == 0


def test_a_poisoned_page_is_never_handed_out_again(context: NativeContext) -> None:
    pointer = context.alloc(0, 4096, 4096)
    context.poison(0, pointer, 64)
    context.free(pointer)
    stats = context.stats(0)
    assert stats.poisoned_bytes > 0
    pages = fill(context, 0, 4096)
    assert pointer not in pages
    assert len(pages) > 3000


def test_poison_outside_of_the_tier_is_refused(context: NativeContext) -> None:
    info = context.info(0)
    for address, size in ((info.base - 1, 1), (info.base + 16 * MIB, 1), (info.base, 16 * MIB + 1), (8, 8)):
        with pytest.raises(errors.OutOfBoundsError, match="expected a range in tier 'local'"):
            context.poison(0, address, size)
    context.poison(0, info.base, 0)
    assert context.stats(0).poisoned_bytes == 0


# ---- against a model ---------------------------------------------------------------------------------------------

SIZES = st.one_of(st.integers(1, 300), st.integers(4000, 9000))
FRACTIONS = st.floats(0, 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), FRACTIONS, st.binary(max_size=64)),
        st.tuples(st.just("memset"), st.integers(0, 1), FRACTIONS, FRACTIONS, st.integers(0, 255)),
        st.tuples(st.just("copy"), st.integers(0, 1), FRACTIONS, st.integers(0, 1), FRACTIONS, FRACTIONS),
        st.tuples(st.just("resize"), st.integers(0, 1), SIZES),
        st.tuples(st.just("migrate"), st.integers(0, 1), st.integers(0, 1)),
    ),
    max_size=25,
)


class Model:
    """Two allocations and what they should hold."""

    def __init__(self, context: NativeContext, sizes: tuple[int, int]) -> None:
        self.context = context
        self.pointers = [context.alloc(number, size) for number, size in enumerate(sizes)]
        self.bytes = [bytearray(size) for size in sizes]

    def _range(self, which: int, start: float, length: float = 1.0) -> tuple[int, int]:
        size = len(self.bytes[which])
        offset = int(start * size)
        return offset, int(length * (size - offset))

    def write(self, which: int, start: float, data: bytes) -> None:
        offset, room = self._range(which, start)
        self.context.write(self.pointers[which], offset, data[:room])
        self.bytes[which][offset : offset + len(data[:room])] = data[:room]

    def memset(self, which: int, start: float, length: float, value: int) -> None:
        offset, size = self._range(which, start, length)
        self.context.memset(self.pointers[which], offset, value, size)
        self.bytes[which][offset : offset + size] = bytes([value]) * size

    def copy(self, to: int, to_start: float, source: int, source_start: float, length: float) -> None:
        to_offset, to_room = self._range(to, to_start)
        source_offset, size = self._range(source, source_start, length)
        size = min(size, to_room)
        self.context.copy(self.pointers[to], to_offset, self.pointers[source], source_offset, size)
        self.bytes[to][to_offset : to_offset + size] = bytes(
            self.bytes[source][source_offset : source_offset + size]
        )

    def resize(self, which: int, size: int) -> None:
        self.pointers[which] = self.context.resize(self.pointers[which], size)
        self.bytes[which] = bytearray(bytes(self.bytes[which])[:size].ljust(size, b"\0"))

    def migrate(self, which: int, tier: int) -> None:
        self.pointers[which] = self.context.migrate(self.pointers[which], tier)

    def check(self) -> None:
        for pointer, expected in zip(self.pointers, self.bytes, strict=True):
            assert self.context.read(pointer, 0, len(expected)) == bytes(expected)


@given(st.tuples(SIZES, SIZES), STEPS)
def test_accesses_do_to_memory_what_they_do_to_a_bytearray(
    sizes: tuple[int, int], steps: list[tuple]
) -> None:
    with NativeContext() as context:
        context.add_tier("local", MIB)
        context.add_tier("far", MIB)
        model = Model(context, sizes)
        for name, *arguments in steps:
            getattr(model, name)(*arguments)
            model.check()
        context.check()
