"""Poison: what it costs a pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from emucxl import errors
from emucxl.pool import Pool
from support.small_pools import EXTENT


def test_poison_is_told_with_its_offset_and_the_rest_goes_on(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        region = one.carve("x", 4 * EXTENT)
        other = two.open("x")
        region.poison(2 * EXTENT + 130, 1)
        for holder in (region, other):
            with pytest.raises(errors.PoisonedError, match=f"offset {2 * EXTENT + 128} "):
                holder.read()
        with pytest.raises(errors.PoisonedError):
            region.write(b"x", 2 * EXTENT + 191)
        assert region.read(128, 2 * EXTENT) == bytes(128)
        region.write(b"ok", 2 * EXTENT + 192)
        assert pool.stats().poisoned_extents == 1
        assert [(each.offset % EXTENT, each.size_bytes) for each in pool.poison_ranges()] == [(128, 64)]


def test_poisoned_extent_is_retired_for_good(pool: Pool) -> None:
    with pool.join("a") as host:
        region = host.carve("x", 2 * EXTENT)
        region.poison(0, 1)
        region.close()
    with Pool.open(pool.path) as again, again.join("b") as host:
        stats = again.stats()
        assert (stats.free_extents, stats.retired_extents, stats.num_poison_ranges) == (31, 1, 1)
        with pytest.raises(errors.PoolFullError, match="1 retired"):
            host.carve("y", 32 * EXTENT)
        host.carve("y", 31 * EXTENT)


def test_poison_of_a_free_extent_retires_it_at_once(pool: Pool) -> None:
    pool.poison(5 * EXTENT + 10, 2 * EXTENT)
    assert pool.stats().retired_extents == 3
    with pytest.raises(errors.OutOfBoundsError):
        pool.poison(32 * EXTENT, 1)


def test_more_poison_than_can_be_listed_makes_whole_extents_bad(tmp_path: Path) -> None:
    with Pool.create(tmp_path / "pool", 64 * EXTENT, extent_bytes=EXTENT) as pool, pool.join("a") as host:
        region = host.carve("x", 64 * EXTENT)
        for line in range(0, 64 * 64, 2):  # every other line: 2,048 ranges, which the table holds
            region.poison(line * 64, 64)
        assert region.read(64, 64) == bytes(64)
        region.poison(64, 64)
        for line in (1, 3):
            with pytest.raises(errors.PoisonedError):
                region.read(64, line * 64)
        assert region.read(64, EXTENT + 64) == bytes(64)
        pool.check()
