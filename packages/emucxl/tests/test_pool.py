"""Pools through Python: hosts, regions, sharing, quotas, poison, and what is refused."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl import errors
from emucxl.pool import HostState, Pool, RegionState, Sharing, named_pools, pool_path
from support.patience import wait_until

EXTENT = 4096


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", 32 * EXTENT, extent_bytes=EXTENT, max_regions=8) as created:
        yield created
        created.check()


# ---- pools and their files


def test_pool_is_private_and_fully_reserved(pool: Pool) -> None:
    facts = pool.path.stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert facts.st_blocks * 512 >= facts.st_size == pool.stats().file_bytes
    assert (pool.stats().num_extents, pool.stats().free_extents) == (32, 32)


def test_name_is_a_file_in_shared_memory() -> None:
    name = f"test-{os.getpid()}"
    with Pool.create(name, EXTENT, extent_bytes=EXTENT) as pool:
        try:
            assert pool.path == pool_path(name) == Path(f"/dev/shm/emucxl-pool-{name}")
            assert name in named_pools()
        finally:
            pool.path.unlink()


def test_size_is_rounded_up_to_whole_extents(tmp_path: Path) -> None:
    with Pool.create(tmp_path / "pool", EXTENT + 1, extent_bytes=EXTENT) as pool:
        assert pool.stats().size_bytes == 2 * EXTENT


def test_existing_file_is_not_replaced(pool: Pool) -> None:
    before = pool.stats().uuid
    with pytest.raises(errors.NameTakenError, match="exists"):
        Pool.create(pool.path, EXTENT)
    with Pool.open(pool.path) as again:
        assert again.stats().uuid == before


@pytest.mark.parametrize(
    ("size_bytes", "extent_bytes"),
    [(0, EXTENT), (-1, EXTENT), (1 << 64, EXTENT), (EXTENT, 1000), (EXTENT, 1 << 30), (1 << 60, EXTENT)],
)
def test_bad_sizes_are_refused_and_leave_no_file(tmp_path: Path, size_bytes: int, extent_bytes: int) -> None:
    with pytest.raises(errors.ArgumentError):
        Pool.create(tmp_path / "pool", size_bytes, extent_bytes=extent_bytes)
    assert not list(tmp_path.iterdir())


def test_full_filesystem_is_told_and_leaves_no_file() -> None:
    name = f"test-{os.getpid()}"
    with pytest.raises(errors.SystemMemoryError, match="ask for less"):
        Pool.create(name, 1 << 45, extent_bytes=512 << 20)
    assert not list(Path("/dev/shm").glob(f"*{name}*"))


def test_missing_pool_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError):
        Pool.open(tmp_path / "none")


def test_file_that_others_may_open_is_refused(pool: Pool) -> None:
    pool.path.chmod(0o640)
    with pytest.raises(errors.AccessDeniedError, match="0600"):
        Pool.open(pool.path)
    pool.path.chmod(0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_refused(pool: Pool) -> None:
    os.chown(pool.path, 12345, -1)
    with pytest.raises(errors.AccessDeniedError, match="another user"):
        Pool.open(pool.path)


def test_link_and_directory_are_no_pools(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pool.path)
    for path in (tmp_path / "link", tmp_path):
        with pytest.raises((errors.ArgumentError, errors.SystemCallError)):
            Pool.open(path)


def write_private(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"", b"x", b"something else" * 1000], ids=["empty", "short", "other"])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(errors.ForeignError):
        Pool.open(write_private(tmp_path / "other", content))


@pytest.mark.parametrize("version", [1, 3])
def test_other_version_is_refused(pool: Pool, tmp_path: Path, version: int) -> None:
    content = bytearray(pool.path.read_bytes())
    content[8] = version
    with pytest.raises(errors.ForeignError, match=f"a pool of version {version}.*opens version 2: remove it"):
        Pool.open(write_private(tmp_path / "other", bytes(content)))


@pytest.mark.parametrize("place", [16, 48, 60, 100])
def test_damaged_header_is_refused(pool: Pool, tmp_path: Path, place: int) -> None:
    content = bytearray(pool.path.read_bytes())
    content[place] ^= 4
    with pytest.raises(errors.CorruptError, match="checksum"):
        Pool.open(write_private(tmp_path / "damaged", bytes(content)))


def test_truncated_file_is_refused(pool: Pool, tmp_path: Path) -> None:
    content = pool.path.read_bytes()
    with pytest.raises(errors.CorruptError, match="cut short"):
        Pool.open(write_private(tmp_path / "short", content[:-1]))


def test_ordinary_file_stands_in_for_a_device(tmp_path: Path) -> None:
    device = write_private(tmp_path / "device", b"\xff" * (64 * EXTENT))
    with Pool.format(device, extent_bytes=EXTENT, max_regions=8) as pool, pool.join("a") as host:
        free = pool.stats().free_extents
        assert 50 <= free < 64
        region = host.carve("all", free * EXTENT)
        assert region.read() == bytes(free * EXTENT)  # what lay there before is gone
    with pytest.raises(errors.NameTakenError):
        Pool.format(device, extent_bytes=EXTENT, max_regions=8)
    Pool.format(device, 2 * EXTENT, extent_bytes=EXTENT, max_regions=8, overwrite=True).close()


def test_too_small_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match="room for 0 extents"):
        Pool.format(write_private(tmp_path / "device", bytes(4 * EXTENT)), extent_bytes=EXTENT)


def test_read_only_pool_shows_but_changes_nothing(pool: Pool) -> None:
    with Pool.open(pool.path, read_only=True) as looking, pool.join("a") as host:
        kept = host.carve("x", 10)
        assert [region.tag for region in looking.regions()] == ["x"]
        assert [each.name for each in looking.hosts()] == ["a"]
        looking.check()
        for change in (lambda: looking.join("b"), looking.reclaim, lambda: looking.poison(0, 1)):
            with pytest.raises(errors.AccessDeniedError):
                change()
        kept.close()


# ---- hosts


def test_host_shows_in_the_pool_until_it_leaves(pool: Pool) -> None:
    with pool.join("trainer", lease_s=2.5, quota_bytes=4 * EXTENT) as host:
        (shown,) = pool.hosts()
        assert (shown.slot, shown.epoch) == (host.info().slot, host.info().epoch)
        assert (shown.name, shown.state, shown.pid) == ("trainer", HostState.ACTIVE, os.getpid())
        assert (shown.lease_s, shown.quota_bytes, shown.is_here) == (2.5, 4 * EXTENT, True)
    assert pool.hosts() == []
    with pytest.raises(errors.ClosedError):
        host.carve("x", 1)


def test_each_join_has_a_new_epoch(pool: Pool) -> None:
    epochs = []
    for _ in range(3):
        with pool.join("a") as host:
            epochs.append(host.info().epoch)
    assert epochs == sorted(set(epochs))


def test_a_pool_has_room_for_64_hosts(pool: Pool) -> None:
    hosts = [pool.join(f"host {i}", lease_s=3600, heartbeat=False) for i in range(64)]
    with pytest.raises(errors.PoolFullError, match="slots"):
        pool.join("one more")
    hosts[10].leave()
    pool.join("one more", lease_s=3600, heartbeat=False).leave()
    for host in hosts:
        host.leave()


def test_heartbeat_thread_keeps_a_short_lease_alive(pool: Pool) -> None:
    with pool.join("a", lease_s=0.2) as host:
        joined = host.info().heartbeats
        wait_until(lambda: host.info().heartbeats >= joined + 8, "the heartbeats of two leases")
        assert pool.hosts()[0].state is HostState.ACTIVE


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb", "a\0b"])
def test_bad_names_and_tags_are_refused(pool: Pool, name: str) -> None:
    with pytest.raises(errors.ArgumentError):
        pool.join(name)
    with pool.join("a") as host, pytest.raises(errors.ArgumentError):
        host.carve(name, 1)


@pytest.mark.parametrize("lease_s", [1e-5, 4000.0, -1.0])
def test_bad_lease_is_refused(pool: Pool, lease_s: float) -> None:
    with pytest.raises(errors.ArgumentError):
        pool.join("a", lease_s=lease_s)


# ---- regions


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


# ---- poison


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


# ---- views and ends


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


def test_threads_carve_and_close_at_once(pool: Pool) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with pool.join(f"host {number}", lease_s=3600, heartbeat=False) as host:
                for turn in range(30):
                    with host.carve(f"{number} {turn}", 2 * EXTENT) as region:
                        assert region.read() == bytes(2 * EXTENT)
                        region.fill(number + 1)
                        assert region.read() == bytes([number + 1]) * (2 * EXTENT)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pool.stats().free_extents == 32


FORKED = """
import os, sys
from emucxl import errors
from emucxl.pool import Pool
pool = Pool.open(sys.argv[1])
host = pool.join("parent")
region = host.carve("x", 100)
child = os.fork()
if child == 0:
    refused = 0
    for call in (pool.stats, host.heartbeat, lambda: region.read(1), lambda: host.carve("y", 1)):
        try:
            call()
        except errors.ClosedError:
            refused += 1
    pool.close()
    os._exit(0 if refused == 4 else 1)
assert os.waitpid(child, 0)[1] == 0
region.write(b"still mine")
assert region.read(10) == b"still mine"
"""


def test_child_of_a_fork_is_not_its_parents_host(pool: Pool) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, str(pool.path)], check=True, timeout=60)
    pool.reclaim()
    assert pool.hosts() == []
