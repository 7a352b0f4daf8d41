"""The published calls in Python: their names, their meaning, and errors where C programs crash."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emucxl import compat
from emucxl.compat import (
    LOCAL_MEMORY,
    PAGE_SIZE,
    REMOTE_MEMORY,
    emucxl_alloc,
    emucxl_context,
    emucxl_exit,
    emucxl_free,
    emucxl_get_numa_node,
    emucxl_get_size,
    emucxl_init,
    emucxl_is_local,
    emucxl_memcpy,
    emucxl_memmove,
    emucxl_memset,
    emucxl_migrate,
    emucxl_read,
    emucxl_resize,
    emucxl_stats,
    emucxl_write,
)
from emucxl.errors import (
    ArgumentError,
    ClosedError,
    InUseError,
    OutOfBoundsError,
    SystemMemoryError,
    TierFullError,
)

HEADER = Path(__file__).parents[1] / "native" / "include" / "emucxl_lib.h"
MIB = 1 << 20


@pytest.fixture
def nodes() -> Iterator[None]:
    emucxl_init(local_bytes=4 * MIB, remote_bytes=16 * MIB, clock="virtual")
    yield
    emucxl_exit()


def test_the_calls_are_those_of_the_header() -> None:
    declared = set(re.findall(r"EMX_API .*?(emucxl_\w+)\(", HEADER.read_text()))
    defined = {
        name for name, _ in inspect.getmembers(compat, inspect.isfunction) if name.startswith("emucxl_")
    }
    assert declared == defined - {"emucxl_context"}
    for name in ("LOCAL_MEMORY", "REMOTE_MEMORY", "PAGE_SIZE"):
        assert re.search(rf"#define {name} {getattr(compat, name)}\b", HEADER.read_text())


@pytest.mark.usefixtures("nodes")
def test_allocations_lie_on_the_node_that_was_asked_for() -> None:
    local, remote = emucxl_alloc(100, LOCAL_MEMORY), emucxl_alloc(PAGE_SIZE, REMOTE_MEMORY)
    assert (emucxl_is_local(local), emucxl_is_local(remote)) == (True, False)
    assert (emucxl_get_numa_node(local), emucxl_get_numa_node(remote)) == (0, 1)
    assert (emucxl_get_size(local), emucxl_get_size(remote)) == (100, PAGE_SIZE)
    assert (emucxl_stats(0), emucxl_stats(1)) == (100, PAGE_SIZE)
    assert remote.address % PAGE_SIZE == 0
    assert local.read() == bytes(100)
    emucxl_free(local, 100)
    emucxl_free(local)
    assert emucxl_stats(LOCAL_MEMORY) == 0


@pytest.mark.usefixtures("nodes")
def test_offsets_apply_to_the_allocation_alone() -> None:
    buffer, target = emucxl_alloc(100, REMOTE_MEMORY), bytearray(10)
    assert emucxl_write(buffer, 50, b"hello world", 5)
    assert emucxl_read(buffer, 49, target, 6)
    assert target == b"\0hello\0\0\0\0"
    array = np.zeros(5, np.uint8)
    assert emucxl_read(buffer, 50, array, 5)
    assert bytes(array) == b"hello"
    assert emucxl_memset(buffer, 52, -1, 2) is buffer
    assert buffer.read(5, 50) == b"he\xff\xffo"


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("call", [emucxl_memcpy, emucxl_memmove])
def test_copies_are_between_memory_of_any_kind(call: object) -> None:
    assert callable(call)
    local, remote, target = emucxl_alloc(10, 0), emucxl_alloc(20, 1), bytearray(4)
    assert call(local, b"0123456789", 10) is local
    assert call(remote, local, 10) is remote
    assert call(target, remote, 4) is target
    assert target == b"0123"
    assert call(target, b"ab", 2) == b"ab23"
    with pytest.raises(OutOfBoundsError):
        call(local, remote, 11)
    with pytest.raises(ArgumentError, match="expected at least 5"):
        call(target, remote, 5)
    with pytest.raises(ArgumentError, match="contiguous"):
        call(remote, np.zeros(20, np.uint8)[::2], 4)


@pytest.mark.usefixtures("nodes")
def test_resizing_keeps_the_bytes_that_fit() -> None:
    buffer = emucxl_alloc(10, LOCAL_MEMORY)
    emucxl_write(buffer, 0, b"0123456789", 10)
    larger = emucxl_resize(buffer, LOCAL_MEMORY, 10, 20)
    assert larger.read() == b"0123456789" + bytes(10)
    smaller = emucxl_resize(larger, REMOTE_MEMORY, 20, 5)
    assert smaller.read() == b"01234"
    assert not emucxl_is_local(smaller)
    assert (emucxl_stats(0), emucxl_stats(1)) == (0, 5)
    assert larger.freed


@pytest.mark.usefixtures("nodes")
def test_migrating_moves_all_of_it() -> None:
    buffer = emucxl_alloc(10, LOCAL_MEMORY)
    buffer.write(b"0123456789")
    moved = emucxl_migrate(buffer, REMOTE_MEMORY, 4)
    assert (moved.read(), emucxl_get_numa_node(moved)) == (b"0123456789", 1)
    longer = emucxl_migrate(moved, LOCAL_MEMORY, 12)
    assert (longer.read(), emucxl_get_numa_node(longer)) == (b"0123456789\0\0", 0)


@pytest.mark.usefixtures("nodes")
def test_a_failed_move_leaves_everything_as_it_was() -> None:
    buffer = emucxl_alloc(10, REMOTE_MEMORY)
    with pytest.raises(TierFullError):
        emucxl_resize(buffer, LOCAL_MEMORY, 10, 8 * MIB)
    with memoryview(buffer), pytest.raises(InUseError):
        emucxl_resize(buffer, LOCAL_MEMORY, 10, 20)
    assert (emucxl_get_numa_node(buffer), len(buffer)) == (1, 10)
    assert (emucxl_stats(0), emucxl_stats(1)) == (0, 10)


@pytest.mark.usefixtures("nodes")
def test_what_crashes_in_c_raises_here() -> None:
    buffer = emucxl_alloc(10, LOCAL_MEMORY)
    with pytest.raises(OutOfBoundsError):
        emucxl_read(buffer, 5, bytearray(10), 6)
    with pytest.raises(ArgumentError):
        emucxl_write(buffer, -1, b"x", 1)
    with pytest.raises(ArgumentError, match="expected at least 1 byte"):
        emucxl_memset(buffer, 0, 0, 0)
    with pytest.raises(ArgumentError, match="got node 2"):
        emucxl_alloc(10, 2)
    with pytest.raises(ArgumentError, match="got node -1"):
        emucxl_stats(-1)
    emucxl_free(buffer)
    for call in (emucxl_get_size, emucxl_get_numa_node, emucxl_is_local):
        with pytest.raises(ClosedError, match="the buffer was freed"):
            call(buffer)


def test_init_is_counted_and_the_last_exit_frees() -> None:
    emucxl_init(local_bytes=MIB, remote_bytes=MIB)
    emucxl_init()
    buffer = emucxl_alloc(10, LOCAL_MEMORY)
    emucxl_exit()
    buffer.write(b"here")
    with memoryview(buffer), pytest.raises(InUseError):
        emucxl_exit()
    emucxl_exit()
    assert buffer.freed
    for call in (emucxl_exit, emucxl_context, lambda: emucxl_alloc(1, 0)):
        with pytest.raises(ClosedError, match=r"call emucxl_init\(\) first"):
            call()


def test_the_first_init_decides() -> None:
    emucxl_init(local_bytes=MIB, remote_bytes=2 * MIB, remote_timing="cxl-direct", clock="virtual")
    try:
        with pytest.raises(ArgumentError, match="the nodes are open"):
            emucxl_init(local_bytes=MIB)
        local, remote = emucxl_context().tiers.values()
        assert (local.capacity_bytes, remote.capacity_bytes) == (MIB, 2 * MIB)
        assert (local.modelled, remote.modelled) == (False, True)
        before = emucxl_context().now_ns
        emucxl_read(emucxl_alloc(64, REMOTE_MEMORY), 0, bytearray(64), 64)
        assert emucxl_context().now_ns > before
    finally:
        emucxl_exit()


def test_without_options_the_nodes_are_as_large_as_the_machine_has_them() -> None:
    emucxl_init()
    try:
        assert all(tier.capacity_bytes >= MIB for tier in emucxl_context().tiers.values())
    finally:
        emucxl_exit()


def test_nodes_that_the_machine_has_not_are_refused() -> None:
    with pytest.raises(SystemMemoryError):
        emucxl_init(local_bytes=1 << 60, remote_bytes=MIB)
    with pytest.raises(ClosedError):
        emucxl_context()
