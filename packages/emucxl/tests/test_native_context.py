"""The core's contexts, through the C interface."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl import abi, errors
from support.native_context import MIB, NativeContext, status_of, three_tiers

SIZE_MAX = 2**64 - 1


@pytest.fixture
def context() -> Iterator[NativeContext]:
    yield from three_tiers()


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
    calibration = abi.RawCalibration()
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
        context.add_tier("t", timing=abi.RawTiming(read_latency_ns=1000))


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
