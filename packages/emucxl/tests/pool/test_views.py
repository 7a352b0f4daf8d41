"""Views of regions, and the ends of what they look at."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from emucxl import errors
from emucxl.pool import Pool
from support.small_pools import EXTENT


def test_view_is_the_memory_itself(pool: Pool) -> None:
    with pool.join("a") as host:
        region = host.carve("x", 100)
        view = region.memoryview()
        view[10:13] = b"abc"
        assert region.read(3, 10) == b"abc"
        region.write(b"d", 10)
        assert bytes(view[10:13]) == b"dbc"
        del view


def test_nothing_is_closed_under_a_view(pool: Pool) -> None:
    with pool.join("a") as host:
        region = host.carve("x", 2 * EXTENT)
        part = region.memoryview()[5:9]
        for change in (region.close, region.release, host.leave, pool.close, lambda: region.resize(1)):
            with pytest.raises(errors.InUseError):
                change()
        part[:] = b"1234"
        assert region.read(4, 5) == b"1234"
        region.resize(3 * EXTENT)  # growing moves nothing
        del part
        region.close()


def test_dropped_objects_let_go(pool: Pool) -> None:
    host = pool.join("a")
    host.carve("x", 10)
    gc.collect()
    assert pool.regions() == []
    del host
    gc.collect()
    assert pool.hosts() == []


def test_a_region_goes_with_its_last_view(pool: Pool) -> None:
    np = pytest.importorskip("numpy")
    gc.disable()  # references alone do it
    try:
        with pool.join("host") as host:
            view = host.carve("one", EXTENT).memoryview()
            part = view[5:9]
            del view
            assert [region.tag for region in pool.regions()] == ["one"]
            part[0] = 1
            del part
            assert pool.regions() == []
            array = np.frombuffer(host.carve("one", EXTENT).memoryview(), np.uint8)
            del array
            assert pool.regions() == []
        assert pool.stats().free_extents == pool.stats().num_extents
    finally:
        gc.enable()


def test_a_view_keeps_its_pool_and_its_host(tmp_path: Path) -> None:
    with Pool.create(tmp_path / "pool2", 1 << 20) as watching:
        view = Pool.open(tmp_path / "pool2").join("host").carve("one", EXTENT).memoryview()
        gc.collect()
        assert [host.name for host in watching.hosts()] == ["host"]
        view[0] = 1
        del view
        assert (watching.hosts(), watching.regions()) == ([], [])


def test_closed_pool_has_ended_its_hosts_and_regions(tmp_path: Path) -> None:
    pool = Pool.create(tmp_path / "pool", 8 * EXTENT, extent_bytes=EXTENT)
    host = pool.join("a")
    region = host.carve("x", 10)
    pool.close()
    pool.close()
    for call in (pool.stats, host.heartbeat, host.leave, lambda: region.read(1), region.close):
        if call in (host.leave, region.close):
            call()
            continue
        with pytest.raises(errors.ClosedError):
            call()
