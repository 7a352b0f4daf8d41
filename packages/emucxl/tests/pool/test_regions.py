"""Regions of a pool: shared, grown, kept, limited."""

from __future__ import annotations

import pytest

from emucxl import errors
from emucxl.pool import Pool, RegionState, Sharing
from support.small_pools import EXTENT


def test_region_is_shared_between_hosts(pool: Pool) -> None:
    with (
        pool.join("a") as one,
        pool.join("b") as two,
        Pool.open(pool.path) as again,
        again.join("c") as three,
    ):
        region = one.carve("x", 3 * EXTENT + 5)
        region.write(b"hello", 3 * EXTENT)
        reader = two.open("x")
        assert reader.read(5, 3 * EXTENT) == b"hello"
        writer = three.open("x", writable=True)
        writer.write(b"J", 3 * EXTENT)
        assert region.read(offset=3 * EXTENT) == b"Jello"
        (shown,) = pool.regions()
        assert (shown.tag, shown.state, shown.size_bytes, shown.num_extents) == (
            "x", RegionState.LIVE, 3 * EXTENT + 5, 4,
        )  # fmt: skip
        assert (shown.owner, shown.readers, shown.writers) == (0, (1,), (0, 2))


def test_read_only_region_cannot_be_written(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        kept = one.carve("x", 10)
        region = two.open("x")
        for change in (lambda: region.write(b"1"), lambda: region.fill(1), region.release):
            with pytest.raises(errors.AccessDeniedError, match="read-only"):
                change()
        view = region.memoryview()
        assert view.readonly
        del view
        kept.close()


def test_sharing_limits_what_others_may_open(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        private = one.carve("private", 10, sharing=Sharing.NONE)
        readable = one.carve("readable", 10, sharing=Sharing.READ)
        with pytest.raises(errors.AccessDeniedError):
            two.open("private")
        with pytest.raises(errors.AccessDeniedError):
            two.open("readable", writable=True)
        assert two.open("readable").read() == bytes(10)
        assert (private.closed, readable.closed) == (False, False)


def test_tag_is_unique_among_live_regions(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        region = one.carve("x", 10)
        for host in (one, two):
            with pytest.raises(errors.NameTakenError):
                host.carve("x", 10)
        with pytest.raises(errors.NameTakenError, match="open already"):
            one.open("x")
        region.close()
        two.carve("x", 10)


def test_region_lives_until_its_last_holder_lets_go(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        region = one.carve("x", 10)
        region.write(b"kept")
        other = two.open("x")
        region.close()
        assert other.read(4) == b"kept"
        assert pool.regions()[0].owner is None
        other.close()
        assert pool.regions() == []
        assert pool.stats().free_extents == 32


def test_persistent_region_outlives_its_host_until_released(pool: Pool) -> None:
    with pool.join("a") as host:
        host.carve("x", 2 * EXTENT, persistent=True).write(b"data")
    assert pool.hosts() == []
    with Pool.open(pool.path) as again, again.join("b") as host:
        region = host.open("x", writable=True)
        assert region.read(4) == b"data"
        assert again.regions()[0].owner == host.info().slot  # unowned before, so it adopted it
        region.release()
        assert again.regions() == []
        with pytest.raises(errors.ClosedError):
            region.read(1)


def test_memory_is_zeroed_for_the_next_region(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        region = one.carve("x", 32 * EXTENT)
        region.fill(0xEE)
        region.close()
        assert two.carve("y", 32 * EXTENT).read() == bytes(32 * EXTENT)


def test_growing_keeps_address_and_bytes_and_shows_elsewhere(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        region = one.carve("x", 100)
        region.fill(1)
        blocker = one.carve("between", EXTENT)  # so that the region's extents are scattered
        other = two.open("x")
        address = region.address
        region.grow(5 * EXTENT)
        assert region.address == address
        assert region.read() == b"\1" * 100 + bytes(5 * EXTENT - 100)
        region.write(b"end", 5 * EXTENT - 3)
        assert other.size_bytes == 5 * EXTENT
        assert other.read(3, 5 * EXTENT - 3) == b"end"
        blocker.close()


def test_bytes_stored_past_the_end_do_not_show_after_growing(pool: Pool) -> None:
    with pool.join("a") as host:
        region = host.carve("x", EXTENT)
        region.fill(9)
        region.resize(10)
        region.resize(EXTENT)
        assert region.read() == b"\x09" * 10 + bytes(EXTENT - 10)


def test_region_shrinks_only_while_nobody_else_holds_it(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        region = one.carve("x", 4 * EXTENT)
        other = two.open("x")
        with pytest.raises(errors.InUseError):
            region.resize(EXTENT)
        other.close()
        region.resize(EXTENT)
        assert pool.stats().held_extents == 1
        with pytest.raises(errors.OutOfBoundsError):
            region.read(1, EXTENT)


def test_only_the_owner_resizes(pool: Pool) -> None:
    with pool.join("a") as one, pool.join("b") as two:
        kept = one.carve("x", 10)
        with pytest.raises(errors.AccessDeniedError, match="owner"):
            two.open("x", writable=True).resize(20)
        kept.close()


def test_region_grows_to_the_room_it_was_carved_with(pool: Pool) -> None:
    with pool.join("a") as host:
        region = host.carve("x", 10, max_bytes=EXTENT)
        with pytest.raises(errors.ArgumentError, match="room"):
            region.resize(EXTENT + 1)
        with pytest.raises(errors.ArgumentError):
            host.carve("y", 10, max_bytes=5)


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (100, 1), (101, 0), (2**63, 2**63), (2**64 - 1, 2)])
def test_ranges_outside_of_a_region_are_refused(pool: Pool, offset: int, size: int) -> None:
    with pool.join("a") as host:
        region = host.carve("x", 100)
        with pytest.raises(errors.OutOfBoundsError):
            region.read(size, offset)
        with pytest.raises(errors.OutOfBoundsError):
            region.check_access(offset, size)
        assert region.read(0, 100) == b""


def test_pool_that_is_full_says_so_and_loses_nothing(pool: Pool) -> None:
    with pool.join("a") as host:
        kept = host.carve("x", 30 * EXTENT)
        with pytest.raises(errors.PoolFullError, match="30 of the pool's 32"):
            host.carve("y", 3 * EXTENT)
        with pytest.raises(errors.PoolFullError):
            host.carve("z", 1 << 40)
        assert pool.stats().free_extents == 2
        kept.close()
        with pytest.raises(errors.NotFoundError):
            host.open("z")


def test_pool_has_as_many_regions_as_it_was_made_for(pool: Pool) -> None:
    with pool.join("a") as host:
        regions = [host.carve(f"region {i}", 1) for i in range(8)]
        with pytest.raises(errors.PoolFullError, match="max_regions"):
            host.carve("one more", 1)
        assert len(regions) == 8


def test_quota_counts_whole_extents_of_owned_regions(pool: Pool) -> None:
    with pool.join("a", quota_bytes=4 * EXTENT) as host, pool.join("b") as rich:
        region = host.carve("x", 2 * EXTENT + 1)
        assert host.info().owned_bytes == 3 * EXTENT
        with pytest.raises(errors.QuotaError):
            host.carve("y", EXTENT + 1)
        with pytest.raises(errors.QuotaError):
            region.resize(5 * EXTENT)
        region.resize(4 * EXTENT)
        rich.carve("z", 8 * EXTENT, persistent=True).close()
        with pytest.raises(errors.QuotaError):  # unowned, so that writing means owning
            host.open("z", writable=True)
        assert host.open("z").size_bytes == 8 * EXTENT
        region.close()
        assert host.info().owned_bytes == 0
