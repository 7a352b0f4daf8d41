"""Hosts of a pool: those that join and leave, threads, and children of forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from emucxl import errors
from emucxl.pool import HostState, Pool
from support.patience import wait_until
from support.small_pools import EXTENT


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
