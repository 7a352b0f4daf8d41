"""Providers: one suite over all of them, and what those that are shared have in common."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emucxl import abi, errors
from support.native_context import MIB, NativeContext, fill, provider_unavailable
from support.provider_cases import (
    CAPACITY,
    MAKERS,
    SHARED,
    dax_file,
    shm_fd,
    shm_file,
    shm_memfd,
)


def open_tier(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[NativeContext, int, dict[str, Any]]]:
    with contextlib.ExitStack() as resources:
        fields = request.param(tmp_path, resources)
        context = resources.enter_context(NativeContext())
        tier = context.add_tier("tested", CAPACITY, **fields)
        yield context, tier, fields
        context.check()


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def opened(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[NativeContext, int, dict[str, Any]]]:
    yield from open_tier(request, tmp_path)


@pytest.fixture(params=SHARED, ids=lambda maker: maker.__name__)
def shared(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[NativeContext, int, dict[str, Any]]]:
    yield from open_tier(request, tmp_path)


Opened = tuple[NativeContext, int, dict[str, Any]]


def touchable(fields: dict[str, Any]) -> bool:
    return bool(fields["provider"] != abi.PROVIDER_NULL)


# ---- every provider ----------------------------------------------------------------------------------------------


def test_tier_is_what_was_asked_for(opened: Opened) -> None:
    context, tier, fields = opened
    info = context.info(tier)
    assert (info.name, info.provider, info.modelled) == (b"tested", fields["provider"], 0)
    assert info.capacity_bytes == context.stats(tier).capacity_bytes == CAPACITY
    assert info.base % (2 * MIB) == 0
    assert (info.fd >= 0) == (fields["provider"] in (abi.PROVIDER_SHM, abi.PROVIDER_DAX))


def test_memory_is_zero_when_it_is_handed_out(opened: Opened) -> None:
    context, tier, _ = opened
    for size in (16, 5000, 3 * MIB):
        first = context.alloc(tier, size)
        assert context.read(first, 0, size) == bytes(size)
        context.memset(first, 0, 0xAB, size)
        context.free(first)
        second = context.alloc(tier, size)
        assert context.read(second, 0, size) == bytes(size)


def test_bytes_are_kept_apart_all_over_the_tier(opened: Opened) -> None:
    context, tier, fields = opened
    pointers = fill(context, tier, 64 * 1024)
    assert len(pointers) >= CAPACITY // (64 * 1024) - 32
    for number, pointer in enumerate(pointers):
        context.memset(pointer, 0, number % 255 + 1, 64 * 1024)
    if touchable(fields):
        for number, pointer in enumerate(pointers):
            assert context.read(pointer, 0, 64 * 1024) == bytes([number % 255 + 1]) * 64 * 1024


def test_a_full_tier_says_so_and_recovers(opened: Opened) -> None:
    context, tier, _ = opened
    pointers = fill(context, tier, MIB)
    assert len(pointers) >= 6
    with pytest.raises(errors.TierFullError, match="tier 'tested'"):
        context.alloc(tier, 2 * MIB)
    assert context.stats(tier).reserved_bytes <= CAPACITY
    for pointer in pointers:
        context.free(pointer)
    assert len(fill(context, tier, MIB)) == len(pointers)


def test_trimmed_memory_comes_back_zero(opened: Opened) -> None:
    context, tier, _ = opened
    pointer = context.alloc(tier, 4 * MIB)
    context.memset(pointer, 0, 0xFF, 4 * MIB)
    context.free(pointer)
    context.trim(tier)
    assert context.stats(tier).allocated_bytes == 0
    pointer = context.alloc(tier, 4 * MIB)
    assert context.read(pointer, 0, 4 * MIB) == bytes(4 * MIB)


def test_allocations_move_between_this_tier_and_another(opened: Opened) -> None:
    context, tier, fields = opened
    other = context.add_tier("other", CAPACITY)
    data = os.urandom(300_000) if touchable(fields) else bytes(300_000)
    pointer = context.alloc(other, len(data))
    context.write(pointer, 0, data)
    pointer = context.resize(context.migrate(pointer, tier), 400_000)
    assert context.query(pointer).tier == tier
    pointer = context.migrate(pointer, other)
    assert context.read(pointer, 0, 400_000) == data + bytes(100_000)


def test_an_available_provider_gives_no_reason(opened: Opened) -> None:
    assert provider_unavailable(opened[2]["provider"]) is None


def test_the_largest_tier_is_the_one_that_messages_name() -> None:
    with NativeContext() as context:
        with pytest.raises(errors.SystemMemoryError) as refused:
            context.add_tier("huge", 1 << 46, provider=abi.PROVIDER_NULL)
        found = re.search(r"expected at most (\d+)", str(refused.value))
        assert found is not None
        most = int(found[1])
        with pytest.raises(errors.SystemMemoryError, match=f"expected at most {most}"):
            context.add_tier("a byte more", most + 1, provider=abi.PROVIDER_NULL)
        assert context.info(context.add_tier("most", most, provider=abi.PROVIDER_NULL)).capacity_bytes == most


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nb", "\x7f"])
def test_a_tiers_name_is_printable(name: str) -> None:
    with NativeContext() as context, pytest.raises(errors.ArgumentError, match="control character"):
        context.add_tier(name)


def test_a_capacity_of_more_than_there_are_addresses_is_refused(opened: Opened) -> None:
    context, _, fields = opened
    for capacity in (2**64 - 1, 2**63, 2**46 + 1):
        with pytest.raises(errors.SystemMemoryError, match="there are no more addresses"):
            context.add_tier("huge", capacity, **fields)
    assert context.library.emx_tier_count(context.handle) == 1


# ---- what is shared between processes ----------------------------------------------------------------------------

CHILD_PROGRAM = """
import mmap, sys
path, offset = sys.argv[1], int(sys.argv[2])
with open(path, "r+b", buffering=0) as file:
    memory = mmap.mmap(file.fileno(), 0)
    assert memory[offset:offset + 12] == b"from parent!", memory[offset:offset + 12]
    memory[offset + 12:offset + 23] = b"from child!"
"""


def test_another_process_sees_the_bytes_at_their_offset(shared: Opened) -> None:
    context, tier, _ = shared
    info = context.info(tier)
    context.alloc(tier, 1000)
    pointer = context.alloc(tier, MIB)
    context.write(pointer, 100, b"from parent!")
    offset = pointer + 100 - info.base
    command = [sys.executable, "-c", CHILD_PROGRAM, f"/proc/self/fd/{info.fd}", str(offset)]
    subprocess.run(command, pass_fds=[info.fd], check=True, timeout=60)
    assert context.read(pointer, 100, 23) == b"from parent!from child!"


def test_memory_in_use_by_one_context_is_refused_to_another(shared: Opened) -> None:
    context, tier, fields = shared
    if "path" not in fields and "fd" not in fields:  # a memfd: by its descriptor
        fields = {**fields, "fd": context.info(tier).fd}
    with NativeContext() as other:
        with pytest.raises(errors.InUseError, match="in use by another tier"):
            other.add_tier("second", 0, **fields)
        with pytest.raises(errors.InUseError, match="in use by another tier"):
            context.add_tier("second", 0, **fields)
        pointer = context.alloc(tier, 100)
        context.write(pointer, 0, b"unharmed")
        assert context.read(pointer, 0, 8) == b"unharmed"


@pytest.mark.parametrize("maker", [shm_file, shm_fd, dax_file])
def test_closed_memory_can_be_opened_again(
    maker: Callable[[Path, contextlib.ExitStack], dict[str, Any]], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as resources:
        fields = maker(tmp_path, resources)
        with NativeContext() as context:
            context.add_tier("first", CAPACITY, **fields)
            context.memset(context.alloc(0, 4 * MIB), 0, 0xFF, 4 * MIB)
        with NativeContext() as context:
            context.add_tier("second", 0, **fields)
            assert context.info(0).capacity_bytes == CAPACITY
            assert context.read(context.alloc(0, 4 * MIB), 0, 4 * MIB) == bytes(4 * MIB)


def test_touching_what_is_allocated_needs_no_more_from_the_file_system(shared: Opened) -> None:
    context, tier, _ = shared
    fd = context.info(tier).fd
    context.alloc(tier, 4 * MIB)
    assert os.fstat(fd).st_blocks * 512 >= 4 * MIB


@pytest.mark.parametrize("maker", [shm_memfd, shm_file])
def test_trimmed_blocks_go_back_to_the_file_system(
    maker: Callable[[Path, contextlib.ExitStack], dict[str, Any]], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as resources, NativeContext() as context:
        tier = context.add_tier("tier", CAPACITY, **maker(tmp_path, resources))
        fd = context.info(tier).fd
        context.free(context.alloc(tier, 6 * MIB))
        context.trim(tier)
        assert os.fstat(fd).st_blocks * 512 <= 2 * MIB


# ---- others ------------------------------------------------------------------------------------------------------


def test_an_unknown_provider_is_an_error() -> None:
    with NativeContext() as context, pytest.raises(errors.ArgumentError, match="got provider 99"):
        context.add_tier("t", provider=99)
    assert provider_unavailable(99) == "there is no such provider"


def test_a_tier_of_addresses_alone_may_be_larger_than_memory() -> None:
    with NativeContext() as context:
        tier = context.add_tier("nowhere", 1 << 42, provider=abi.PROVIDER_NULL)
        pointer = context.alloc(tier, 1 << 40)
        assert context.read(pointer, (1 << 40) - 8, 8) == bytes(8)


@pytest.mark.parametrize(
    "provider", [abi.PROVIDER_ANON, abi.PROVIDER_SHM, abi.PROVIDER_NUMA, abi.PROVIDER_NULL]
)
def test_a_capacity_is_needed(provider: int) -> None:
    if provider_unavailable(provider) is not None:
        pytest.skip("unavailable here")
    with (
        NativeContext() as context,
        pytest.raises(errors.ArgumentError, match="got a capacity of 0 bytes for tier 't'"),
    ):
        context.add_tier("t", 0, provider=provider)


def test_raw_stores_reach_the_memory_that_calls_read() -> None:
    with NativeContext() as context:
        pointer = context.alloc(context.add_tier("local"), mmap.PAGESIZE)
        ctypes.memmove(pointer + 8, b"raw", 3)
        assert context.read(pointer, 8, 3) == b"raw"
