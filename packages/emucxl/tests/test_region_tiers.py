"""A tier on a region of a pool, from Python: its life, its poison, its fencing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl import Buffer, Context, RegionMemory
from emucxl.errors import FencedError, InUseError, PoisonedError
from emucxl.pool import Host, Pool

REGION_BYTES = 4 << 20


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", size_bytes=16 << 20) as pool:
        yield pool


@pytest.fixture
def host(pool: Pool) -> Iterator[Host]:
    with pool.join("host-a", lease_s=60) as host:
        yield host


def test_a_region_cannot_be_closed_under_a_tier_and_can_after_it(host: Host) -> None:
    region = host.carve("tier", REGION_BYTES)
    with Context() as context:
        buffer = context.add_tier("pool", provider=RegionMemory(region)).alloc(100)
        with pytest.raises(InUseError):
            region.close()
        buffer.write(b"still there")
        assert buffer.read(11) == b"still there"
    region.close()


def test_a_tier_that_cannot_be_added_leaves_its_region_closable(host: Host) -> None:
    region = host.carve("tier", REGION_BYTES)
    with Context() as context:
        with pytest.raises(ValueError, match="capacity"):
            context.add_tier("pool", 2 * REGION_BYTES, provider=RegionMemory(region))
        region.close()


def test_poison_of_the_pool_is_met_by_the_tiers_buffers(host: Host) -> None:
    region = host.carve("tier", REGION_BYTES)
    with Context() as context:
        buffer = context.add_tier("pool", provider=RegionMemory(region)).alloc(4096)
        region.poison(buffer.address - region.address + 1024, 64)
        assert buffer.read(1024) == bytes(1024)
        with pytest.raises(PoisonedError):
            buffer.read(2048)


def test_a_fenced_host_reads_nothing_through_its_tier(pool: Pool) -> None:
    host = pool.join("short", lease_s=0.05, heartbeat=False)
    region = host.carve("tier", REGION_BYTES)
    with Context() as context:
        buffer = context.add_tier("pool", provider=RegionMemory(region)).alloc(64)
        with pool.join("other", lease_s=60), pytest.raises(FencedError):
            read_for_two_seconds(pool, buffer)


def read_for_two_seconds(pool: Pool, buffer: Buffer) -> None:
    for _ in range(200):
        pool.reclaim()
        buffer.read(64)
        time.sleep(0.01)
