"""The core's contexts, through the C interface."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucxl import abi, errors, native
from support.native_context import MIB, NativeContext, fill

SIZE_MAX = 2**64 - 1


@pytest.fixture
def context() -> Iterator[NativeContext]:
    """Tiers 0, "local", and 1, "far": unmodelled memory of this process; tier 2, "nowhere": addresses alone."""
    with NativeContext() as opened:
        opened.add_tier("local")
        opened.add_tier("far")
        opened.add_tier("nowhere", provider=abi.PROVIDER_NULL)
        yield opened
        opened.check()


def status_of(call: Callable[..., int], *arguments: object) -> type[errors.EmucxlError] | None:
    status = call(*arguments)
    return type(native.error_of(status)) if status else None


# ---- contexts ----------------------------------------------------------------------------------------------------


def test_a_config_of_another_size_is_refused() -> None:
    handle = ctypes.c_void_p()
    config = abi.ContextConfig()
    config.struct_bytes = 8
    library = abi.load()
    assert status_of(library.emx_context_open, config, handle) is errors.ArgumentError
    assert "got emx_context_config of 8 bytes; expected 16" in library.emx_error_detail().decode()
    assert handle.value is None


def test_an_unknown_clock_is_refused() -> None:
    with pytest.raises(
        errors.ArgumentError, match="got clock 7; expected EMX_CLOCK_REAL or EMX_CLOCK_VIRTUAL"
    ):
        NativeContext(clock=7)


def test_a_calibration_of_another_size_is_refused() -> None:
    calibration = abi.Calibration()
    calibration.struct_bytes = 1
    config = abi.ContextConfig(calibration=ctypes.pointer(calibration))
    assert status_of(abi.load().emx_context_open, config, ctypes.c_void_p()) is errors.ArgumentError


def test_nowhere_to_put_the_context_is_an_error() -> None:
    assert status_of(abi.load().emx_context_open, None, None) is errors.ArgumentError


def test_every_call_on_a_closed_context_says_closed() -> None:
    context = NativeContext()
    context.add_tier()
    pointer = context.alloc(0, 64)
    context.close()
    for call in (
        lambda: context.add_tier("other"),
        lambda: context.alloc(0, 64),
        lambda: context.free(pointer),
        lambda: context.resize(pointer, 128),
        lambda: context.migrate(pointer, 0),
        lambda: context.query(pointer),
        lambda: context.read(pointer, 0, 1),
        lambda: context.write(pointer, 0, b"x"),
        lambda: context.memset(pointer, 0, 0, 1),
        lambda: context.copy(pointer, 0, pointer, 0, 1),
        lambda: context.read_batch([(pointer, 0, 1)]),
        lambda: context.poison(0, pointer, 1),
        lambda: context.info(0),
        lambda: context.stats(0),
        lambda: context.trim(0),
        context.check,
    ):
        with pytest.raises(errors.ClosedError, match="the context was closed"):
            call()
    context.advance(1)
    assert context.now_ns == 0
    context.close()  # and a second close does nothing


def test_a_null_context_is_an_error() -> None:
    assert status_of(abi.load().emx_alloc, None, 0, 1, 0, ctypes.c_void_p()) is errors.ArgumentError


def test_virtual_clock_stands_still_until_it_is_advanced() -> None:
    with NativeContext(clock=abi.CLOCK_VIRTUAL) as context:
        assert context.now_ns == 0
        context.advance(1500)
        assert context.now_ns == 1500
        context.advance(SIZE_MAX)  # and never wraps
        assert context.now_ns == SIZE_MAX


def test_real_clock_is_waited_for() -> None:
    with NativeContext() as context:
        before = context.now_ns
        context.advance(2_000_000)
        assert context.now_ns - before >= 2_000_000


# ---- tiers -------------------------------------------------------------------------------------------------------


def test_tiers_are_numbered_as_they_are_added(context: NativeContext) -> None:
    assert context.library.emx_tier_count(context.handle) == 3
    assert [context.info(tier).name for tier in range(3)] == [b"local", b"far", b"nowhere"]


def test_a_name_is_taken_once(context: NativeContext) -> None:
    with pytest.raises(errors.NameTakenError, match="a tier 'far' already; choose another name"):
        context.add_tier("far")


@pytest.mark.parametrize("name", ["", "x" * 32])
def test_a_name_has_a_length(context: NativeContext, name: str) -> None:
    with pytest.raises(errors.ArgumentError, match="name"):
        context.add_tier(name)
    context.add_tier("x" * 31)


def test_the_seventeenth_tier_is_refused(context: NativeContext) -> None:
    for number in range(3, abi.MAX_TIERS):
        context.add_tier(f"t{number}", provider=abi.PROVIDER_NULL)
    with pytest.raises(errors.ArgumentError, match="16 tiers, the most there can be"):
        context.add_tier("one more")


def test_a_tier_config_of_another_size_is_refused(context: NativeContext) -> None:
    config = abi.TierConfig(name=b"t", capacity_bytes=MIB, fd=-1)
    config.struct_bytes -= 8
    tier = ctypes.c_uint32(77)
    call = context.library.emx_tier_add
    assert status_of(call, context.handle, config, tier) is errors.ArgumentError
    assert tier.value == 77, "a failing call leaves its results alone"
    assert status_of(call, context.handle, None, tier) is errors.ArgumentError
    assert status_of(call, context.handle, abi.TierConfig(name=b"t"), None) is errors.ArgumentError


def test_a_tier_that_was_refused_leaves_no_trace(context: NativeContext) -> None:
    with pytest.raises(errors.ArgumentError):
        context.add_tier("t", capacity_bytes=0)
    assert context.library.emx_tier_count(context.handle) == 3
    assert context.add_tier("t") == 3


def test_a_modelled_tier_on_the_real_clock_needs_a_calibration(context: NativeContext) -> None:
    with pytest.raises(errors.ArgumentError, match=r"tier 't': .*calibration"):
        context.add_tier("t", timing=abi.Timing(read_latency_ns=1000))


def test_capacity_is_rounded_up_to_pages(context: NativeContext) -> None:
    tier = context.add_tier("t", capacity_bytes=5000)
    assert context.info(tier).capacity_bytes == 2 * mmap.PAGESIZE


@pytest.mark.parametrize("tier", [3, 16, 2**32 - 1])
def test_an_unknown_tier_is_an_error(context: NativeContext, tier: int) -> None:
    pointer = context.alloc(0, 64)
    for call in (
        lambda: context.alloc(tier, 64),
        lambda: context.migrate(pointer, tier),
        lambda: context.info(tier),
        lambda: context.stats(tier),
        lambda: context.trim(tier),
        lambda: context.poison(tier, pointer, 1),
    ):
        with pytest.raises(errors.ArgumentError, match=f"got tier {tier}; expected less than 3"):
            call()
    context.free(pointer)


# ---- allocations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "alignment"), [(0, 0), (16, 3), (16, 4 * MIB), (0, 64)])
def test_an_allocation_that_makes_no_sense_is_refused(
    context: NativeContext, size: int, alignment: int
) -> None:
    with pytest.raises(errors.ArgumentError, match="got"):
        context.alloc(0, size, alignment)


def test_a_failing_allocation_leaves_the_pointer_alone(context: NativeContext) -> None:
    pointer = ctypes.c_void_p(1234)
    call = context.library.emx_alloc
    assert status_of(call, context.handle, 0, 17 * MIB, 0, pointer) is errors.TierFullError
    assert status_of(call, context.handle, 0, SIZE_MAX, 0, pointer) is errors.TierFullError
    assert status_of(call, context.handle, 9, 1, 0, pointer) is errors.ArgumentError
    assert pointer.value == 1234
    assert status_of(call, context.handle, 0, 1, 0, None) is errors.ArgumentError


@pytest.mark.parametrize("alignment", [16, 64, 4096, 2 * MIB])
def test_alignment_is_kept(context: NativeContext, alignment: int) -> None:
    pointers = [context.alloc(0, 100, alignment) for _ in range(3)]
    assert [pointer % alignment for pointer in pointers] == [0, 0, 0]


def test_free_of_null_does_nothing(context: NativeContext) -> None:
    context.free(None)


def test_a_pointer_is_freed_once(context: NativeContext) -> None:
    pointer = context.alloc(0, 100)
    context.free(pointer)
    with pytest.raises(errors.BadPointerError):
        context.free(pointer)


def test_foreign_pointers_are_refused_by_every_call(context: NativeContext) -> None:
    mine = context.alloc(0, 64)
    outside = ctypes.create_string_buffer(64)
    unallocated = context.info(0).base + 8 * MIB
    end = mine + 64
    for pointer in (ctypes.addressof(outside), unallocated, 8, SIZE_MAX, end + 4096):
        for call in (
            lambda: context.free(pointer),  # noqa: B023
            lambda: context.resize(pointer, 128),  # noqa: B023
            lambda: context.migrate(pointer, 1),  # noqa: B023
            lambda: context.query(pointer),  # noqa: B023
            lambda: context.read(pointer, 0, 1),  # noqa: B023
            lambda: context.write(pointer, 0, b"x"),  # noqa: B023
            lambda: context.memset(pointer, 0, 0, 1),  # noqa: B023
            lambda: context.copy(pointer, 0, mine, 0, 1),  # noqa: B023
            lambda: context.copy(mine, 0, pointer, 0, 1),  # noqa: B023
            lambda: context.read_batch([(mine, 0, 1), (pointer, 0, 1)]),  # noqa: B023
            lambda: context.write_batch([(mine, 0, b"x"), (pointer, 0, b"x")]),  # noqa: B023
        ):
            with pytest.raises(errors.BadPointerError):
                call()
    assert context.read(mine, 0, 64) == bytes(64)


def test_an_interior_pointer_is_no_base(context: NativeContext) -> None:
    pointer = context.alloc(0, 100)
    for call in (context.free, lambda at: context.resize(at, 10), lambda at: context.migrate(at, 1)):
        with pytest.raises(errors.BadPointerError):
            call(pointer + 16)
    context.free(pointer)


def test_an_interior_pointer_tells_its_allocation(context: NativeContext) -> None:
    pointer = context.alloc(1, 100)
    found = context.query(pointer + 99)
    assert (found.base, found.size_bytes, found.offset, found.tier) == (pointer, 100, 99, 1)
    with pytest.raises(errors.BadPointerError):
        context.query(pointer + 100)


@pytest.mark.parametrize(
    ("old", "new"), [(100, 5000), (5000, 100), (100, 101), (MIB, 3 * MIB), (3 * MIB, 17)]
)
def test_resize_keeps_the_common_bytes_and_zeroes_the_rest(
    context: NativeContext, old: int, new: int
) -> None:
    pointer = context.alloc(0, old)
    data = os.urandom(old)
    context.write(pointer, 0, data)
    moved = context.resize(pointer, new)
    assert context.query(moved).size_bytes == new
    assert context.read(moved, 0, new) == data[:new].ljust(new, b"\0")


def test_bytes_given_up_by_shrinking_come_back_as_zeros(context: NativeContext) -> None:
    pointer = context.alloc(0, 3000)
    context.memset(pointer, 0, 0xAA, 3000)
    pointer = context.resize(pointer, 2900)
    pointer = context.resize(pointer, 3000)
    assert context.read(pointer, 2900, 100) == bytes(100)


def test_a_failing_resize_leaves_the_allocation_as_it_was(context: NativeContext) -> None:
    pointer = context.alloc(0, 1000)
    context.write(pointer, 0, b"precious")
    with pytest.raises(errors.TierFullError):
        context.resize(pointer, 17 * MIB)
    with pytest.raises(errors.ArgumentError, match="new size of 0"):
        context.resize(pointer, 0)
    assert context.query(pointer).size_bytes == 1000
    assert context.read(pointer, 0, 8) == b"precious"


def test_migrate_moves_the_bytes_and_frees_the_old_place(context: NativeContext) -> None:
    data = os.urandom(70_000)
    pointer = context.alloc(0, len(data))
    context.write(pointer, 0, data)
    moved = context.migrate(pointer, 1)
    assert context.query(moved).tier == 1
    assert context.read(moved, 0, len(data)) == data
    assert context.stats(0).num_allocations == 0
    with pytest.raises(errors.BadPointerError):
        context.query(pointer)
    assert context.migrate(moved, 1) == moved, "it is there already"


def test_a_failing_migrate_leaves_the_allocation_as_it_was(context: NativeContext) -> None:
    small = context.add_tier("small", capacity_bytes=4096)
    pointer = context.alloc(0, 8192)
    context.write(pointer, 0, b"precious")
    with pytest.raises(errors.TierFullError, match="tier 'small'"):
        context.migrate(pointer, small)
    assert context.read(pointer, 0, 8) == b"precious"


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
        opened.add_tier("far", timing=abi.Timing(read_latency_ns=READ_NS, write_latency_ns=WRITE_NS))
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
        timing = abi.Timing(read_latency_ns=READ_NS, write_latency_ns=WRITE_NS)
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


# ---- the monitor page --------------------------------------------------------------------------------------------

MONITOR_HEAD = struct.Struct("<QIIIII")
MONITOR_TIER = struct.Struct("<32sIIQQQQ")
SHARD = struct.Struct("<5Q24x")
NUM_SHARDS = 16


def monitor_pages() -> list[bytes]:
    pages = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(link).startswith("/memfd:emucxl-context"):
                pages.append(link.read_bytes())
        except OSError:  # the descriptor that listed the directory
            continue
    return pages


def test_the_monitor_page_shows_tiers_and_traffic(context: NativeContext) -> None:
    pointer = context.alloc(1, 1000)
    context.write(pointer, 0, bytes(300))
    context.read(pointer, 0, 20)
    context.stats(1)
    page = next(page for page in monitor_pages() if b"nowhere" in page)
    magic, version, page_bytes, pid, clock, num_tiers = MONITOR_HEAD.unpack_from(page)
    assert (magic.to_bytes(8, "little"), version, page_bytes) == (b"emxMonx1", 1, len(page))
    assert (pid, clock, num_tiers) == (os.getpid(), abi.CLOCK_REAL, 3)
    tier_bytes = 128 + NUM_SHARDS * SHARD.size
    assert len(page) == 128 + abi.MAX_TIERS * tier_bytes
    at = 128 + tier_bytes
    name, provider, modelled, capacity, allocated, _, live = MONITOR_TIER.unpack_from(page, at)
    assert (name.rstrip(b"\0"), provider, modelled) == (b"far", abi.PROVIDER_ANON, 0)
    assert (capacity, allocated, live) == (16 * MIB, 1000, 1)
    shards = [SHARD.unpack_from(page, at + 128 + number * SHARD.size) for number in range(NUM_SHARDS)]
    assert [sum(column) for column in zip(*shards, strict=True)] == [20, 300, 1, 1, 0]


def test_the_monitor_page_goes_with_the_context() -> None:
    before = len(monitor_pages())
    with NativeContext():
        assert len(monitor_pages()) == before + 1
    assert len(monitor_pages()) == before


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
