"""Caches before a region of a pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl.coherence import Cache
from emucxl.errors import (
    AccessDeniedError,
    FencedError,
    InUseError,
    PoisonedError,
)
from emucxl.pool import Pool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", 16 << 20) as pool:
        yield pool


def test_hosts_of_a_pool_share_a_region_through_caches(pool: Pool) -> None:
    with (
        pool.join("a") as a,
        pool.join("b") as b,
        a.carve("shared", 4096) as mine,
        b.open("shared", writable=True) as theirs,
        Cache(mine) as writer,
        Cache(theirs) as reader,
    ):
        assert reader.size_bytes == mine.size_bytes
        reader.read(5)
        writer.write(b"hello")
        writer.flush()
        assert (reader.read(5), theirs.read(5)) == (bytes(5), b"hello")
        reader.invalidate()
        assert reader.read(5) == b"hello"
        with pytest.raises(InUseError):
            mine.close()


def test_a_region_that_is_read_only_here_is_not_written_to(pool: Pool) -> None:
    with (
        pool.join("a") as a,
        pool.join("b") as b,
        a.carve("shared", 4096),
        b.open("shared") as theirs,
        Cache(theirs) as reader,
    ):
        assert reader.read(5) == bytes(5)
        reader.invalidate()
        with pytest.raises(AccessDeniedError):
            reader.write(b"x")
        with pytest.raises(AccessDeniedError):
            reader.store_u64(0, 1)


def test_poison_is_met_even_where_the_line_is_cached(pool: Pool) -> None:
    with pool.join("a") as a, a.carve("x", 4096) as region, Cache(region) as host:
        assert host.read(256) == bytes(256)
        region.poison(64, 64)
        with pytest.raises(PoisonedError):
            host.read(1, 64)
        assert host.read(64) == bytes(64)
        host.invalidate()


def test_a_fenced_host_writes_nothing_back(pool: Pool) -> None:
    with pool.join("a", lease_s=0.05, heartbeat=False) as a:
        region = a.carve("x", 4096)
        host = Cache(region)
        host.write(b"late")
        time.sleep(0.1)
        pool.reclaim()
        for use in (
            host.flush,
            host.invalidate,
            host.read,
            lambda: host.write(b"x"),
            lambda: host.store_u64(0, 1),
        ):
            with pytest.raises(FencedError):
                use()
        host.close()
