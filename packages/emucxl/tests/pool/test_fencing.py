"""Leases, fencing and death: what a pool does about hosts that are silent or gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl import errors
from emucxl.pool import HostState, Pool
from support.patience import PATIENCE_S, wait_until
from support.pool_victims import BOOT_ID, HEARTBEAT_NS, LOCK_INODE, START_TIME, poke, silence, victim

EXTENT = 4096


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", 16 * EXTENT, extent_bytes=EXTENT, max_regions=8) as created:
        yield created
        created.check()


# ---- death


def test_killed_host_is_noticed_at_once_however_long_its_lease(pool: Pool) -> None:
    with victim(pool, lease_s=3600) as other:
        other.kill()
        report = pool.reclaim()
        assert (report.fenced_hosts, report.freed_hosts, report.freed_regions, report.freed_extents) == (
            1,
            1,
            1,
            4,
        )
        assert (pool.hosts(), pool.regions(), pool.stats().free_extents) == ([], [], 16)


@pytest.mark.parametrize("event", ["join", "carve", "open", "heartbeat"])
def test_every_host_cleans_up_after_the_dead(pool: Pool, event: str) -> None:
    with pool.join("a", lease_s=3600, heartbeat=False) as host, victim(pool) as other:
        other.kill()
        if event == "join":
            pool.join("b").leave()
        elif event == "carve":
            host.carve("x", 1)
        elif event == "heartbeat":
            host.heartbeat()
        else:
            with pytest.raises(errors.NotFoundError):
                host.open("theirs")
        assert [each.name for each in pool.hosts()] == ["a"]


def test_heartbeat_thread_cleans_up_after_the_dead(pool: Pool) -> None:
    with pool.join("a", lease_s=0.2), victim(pool) as other:
        other.kill()
        wait_until(lambda: pool.stats().free_extents == 16)


def test_memory_of_a_full_pool_is_taken_back_from_the_dead_and_zeroed(pool: Pool) -> None:
    with pool.join("a") as host, victim(pool) as other:
        with pytest.raises(errors.PoolFullError):
            host.carve("x", 16 * EXTENT)
        other.kill()
        region = host.carve("x", 16 * EXTENT)
        assert region.read() == bytes(16 * EXTENT)


def test_persistent_region_survives_the_death_of_every_process(pool: Pool) -> None:
    with victim(pool, persistent=True) as other:
        other.kill()
    with Pool.open(pool.path) as again:
        again.reclaim()
        again.check()
        with again.join("later") as host:
            assert host.open("theirs").read() == b"\x11" * (4 * EXTENT)


def test_region_that_others_hold_survives_its_owner(pool: Pool) -> None:
    with pool.join("a") as host, victim(pool) as other:
        region = host.open("theirs", writable=True)
        other.kill()
        pool.reclaim()
        assert region.read(4) == b"\x11" * 4
        (shown,) = pool.regions()
        assert shown.owner is None
        region.resize(5 * EXTENT)  # and whoever grows it becomes its owner
        assert pool.regions()[0].owner == host.info().slot


def test_reused_pid_is_not_taken_for_the_host(pool: Pool) -> None:
    with pool.join("a", heartbeat=False, lease_s=3600) as host:
        host.carve("x", 1, persistent=True).close()
        poke(pool, host.info().slot, LOCK_INODE, 0)  # as on a filesystem without locks
        # as if that process had started later
        poke(pool, host.info().slot, START_TIME, host.info().start_time + 1)
        assert pool.reclaim().freed_hosts == 1
        with pytest.raises(errors.FencedError):
            host.heartbeat()


# ---- silence


def test_silent_host_is_fenced_and_lets_go_when_it_finds_out(pool: Pool) -> None:
    with (
        pool.join("silent", lease_s=0.05, heartbeat=False) as host,
        pool.join("b", lease_s=3600, heartbeat=False) as other,
    ):
        region = host.carve("x", 4 * EXTENT)
        region.fill(1)
        view = region.memoryview()
        time.sleep(0.1)
        report = pool.reclaim()
        assert (report.fenced_hosts, report.freed_hosts, report.quarantined_hosts) == (1, 0, 1)
        assert pool.hosts()[0].state is HostState.FENCED
        assert pool.stats().held_extents == 4  # its process lives, and could still write there
        for call in (
            lambda: region.read(1),
            lambda: region.write(b"x"),
            lambda: region.size_bytes,
            lambda: region.check_access(0, 1),
            lambda: region.poison(0, 1),
            host.info,
        ):
            with pytest.raises(errors.FencedError, match="lease"):
                call()
        with pytest.raises(errors.FencedError):
            host.carve("y", 1)
        assert pool.stats().held_extents == 0  # that call let go of everything
        with other.carve("x", 16 * EXTENT) as everything:
            everything.fill(2)
            view[:] = b"\x03" * len(view)
            assert everything.read() == b"\x02" * (16 * EXTENT)
        del view


def test_fenced_host_may_join_again_with_a_new_epoch(pool: Pool) -> None:
    host = pool.join("a", lease_s=0.05, heartbeat=False)
    epoch = host.info().epoch
    time.sleep(0.1)
    pool.reclaim()
    with pytest.raises(errors.FencedError):
        host.heartbeat()
    host.leave()
    with pool.join("a") as again:
        assert again.info().epoch > epoch


def test_late_heartbeat_that_nobody_missed_is_in_time(pool: Pool) -> None:
    with pool.join("a", lease_s=0.02, heartbeat=False) as host:
        time.sleep(0.05)
        host.heartbeat()
        assert host.info().state is HostState.ACTIVE


def test_stopped_host_is_fenced_and_corrupts_nobody_when_it_goes_on(pool: Pool) -> None:
    with pool.join("a", lease_s=3600) as host, victim(pool, lease_s=1) as other:
        other.told("epoch")
        other.stop()
        silence(pool, slot=1)
        assert pool.reclaim().quarantined_hosts == 1
        with pytest.raises(errors.PoolFullError):  # what it held is nobody's while it could still write there
            host.carve("x", 16 * EXTENT)
        other.signal(signal.SIGCONT)
        wait_until(lambda: pool.stats().free_extents == 16)
        region = host.carve("x", 16 * EXTENT)
        region.fill(7)
        assert other.told("write") == "FencedError"
        assert other.told("carve") == "FencedError"
        assert other.told("store") == "done"  # into zeroes that are nobody's
        assert region.read() == b"\x07" * (16 * EXTENT)
        assert other.told("rejoin") == "True"


def test_stopped_host_can_be_killed_for_its_memory(pool: Pool) -> None:
    with victim(pool) as other:
        other.stop()
        silence(pool)
        assert pool.reclaim().quarantined_hosts == 1
        report = pool.reclaim(kill=True)
        assert (report.freed_hosts, report.freed_extents, report.quarantined_hosts) == (1, 4, 0)
        assert other.process.wait(PATIENCE_S) == -signal.SIGKILL


def test_kill_spares_hosts_whose_lease_runs(pool: Pool) -> None:
    with victim(pool) as other:
        pool.reclaim(kill=True)
        assert other.told("write") == "done"


def test_touching_a_view_faults_after_fencing_where_asked_for(pool: Pool) -> None:
    with victim(pool, lease_s=1, fault=True) as other:
        other.stop()
        silence(pool)
        assert pool.reclaim().quarantined_hosts == 1
        other.signal(signal.SIGCONT)
        wait_until(lambda: pool.stats().free_extents == 16)
        assert other.told("write") == "FencedError"
        assert other.told("load") == ""
        assert other.process.wait(PATIENCE_S) == -signal.SIGSEGV


# ---- other machines, as far as one machine can play them


def test_host_of_another_machine_is_judged_by_its_heartbeats(pool: Pool) -> None:
    with pool.join("far", lease_s=0.4, heartbeat=False) as far:
        slot = far.info().slot
        poke(pool, slot, BOOT_ID, 0x1234)
        poke(pool, slot, HEARTBEAT_NS, 1)  # its clock means nothing here
        assert pool.hosts()[0].is_here is False
        assert pool.hosts()[0].silence_s is None
        assert pool.reclaim().fenced_hosts == 0  # seen for the first time
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            far.heartbeat()
            assert pool.reclaim().fenced_hosts == 0
            time.sleep(0.02)
        region = far.carve("x", 1)
        time.sleep(0.5)
        assert pool.reclaim().fenced_hosts == 1
        assert pool.stats().held_extents == 1  # one more lease, in which a host that lives would let go
        time.sleep(0.5)
        assert pool.reclaim().freed_hosts == 1
        assert pool.stats().held_extents == 0
        with pytest.raises(errors.FencedError):
            region.read(1)


def test_heartbeat_from_the_future_is_not_believed_for_long(pool: Pool) -> None:
    with pool.join("a", lease_s=0.1, heartbeat=False) as host:
        poke(pool, host.info().slot, HEARTBEAT_NS, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**15)
        pool.reclaim()
        time.sleep(0.2)
        assert pool.reclaim().fenced_hosts == 1
