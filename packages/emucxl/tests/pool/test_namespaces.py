"""Hosts that cannot be told by their PIDs: other PID and time namespaces, containers that died, restarts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl import errors
from emucxl.pool import Host, HostState, Pool
from emucxl.pool.patience import Patience
from support.patience import wait_until
from support.pool_victims import BOOT_ID, LOCK_INODE, PID_NAMESPACE, START_TIME, poke, victim

EXTENT = 4096
OTHER_TIME = ("unshare", "-T", "--boottime", "100000", "--monotonic", "100000")
CONTAINER = ("unshare", "-p", "-f", "--kill-child", "--mount-proc")
FOREIGN_PROC = ("unshare", "-p", "-f", "--kill-child")  # PIDs of its own, but its parent's /proc

# Any other process of the machine does this all the time: it joins, and takes what it gets.
THIEF = """
import sys
from emucxl.pool import Pool
pool = Pool.open(sys.argv[1])
report = pool.reclaim(kill=True)
with pool.join("thief") as host:
    got = host.carve("all of it", pool.stats().free_extents * 4096).size_bytes // 4096
print(report.freed_hosts, got)
"""


def needs(wrapper: tuple[str, ...]) -> tuple[str, ...]:
    """`wrapper`, where this machine and this user can make such namespaces."""
    with contextlib.suppress(OSError):
        tried = subprocess.run([*wrapper, "true"], capture_output=True, check=False, timeout=60)
        if tried.returncode == 0:
            return wrapper
    pytest.skip(f"{' '.join(wrapper[:3])} does not work here")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(tmp_path / "pool", 16 * EXTENT, extent_bytes=EXTENT, max_regions=8) as created:
        yield created
        created.check()


def steal(pool: Pool, *wrapper: str) -> tuple[int, int]:
    """How many hosts another process cleans up after, and how many extents it can get then."""
    command = [*wrapper, sys.executable, "-c", THIEF, str(pool.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    freed, got = done.stdout.split()
    return int(freed), int(got)


@pytest.mark.parametrize(
    ("of_victim", "of_thief"),
    [((), OTHER_TIME), (OTHER_TIME, ()), (CONTAINER, ()), ((), CONTAINER), (FOREIGN_PROC, FOREIGN_PROC)],
    ids=["thief's time", "victim's time", "victim's PIDs", "thief's PIDs", "/proc of others"],
)
def test_live_host_of_other_namespaces_keeps_its_memory(
    pool: Pool, of_victim: tuple[str, ...], of_thief: tuple[str, ...]
) -> None:
    with victim(pool, wrapper=of_victim and needs(of_victim)) as other:
        assert steal(pool, *(of_thief and needs(of_thief))) == (0, 12)
        assert other.told("write") == "done"


@pytest.mark.parametrize("wrapper", [OTHER_TIME, CONTAINER], ids=["time", "PIDs"])
def test_killed_host_of_other_namespaces_is_noticed_at_once(pool: Pool, wrapper: tuple[str, ...]) -> None:
    with victim(pool, lease_s=3600, wrapper=needs(wrapper)) as other:
        other.kill()
        wait_until(lambda: pool.reclaim().freed_hosts == 1 or not pool.hosts())  # its process is being ended
        assert steal(pool) == (0, 16)


def test_stopped_host_of_another_container_holds_its_memory(pool: Pool) -> None:
    """Its two leases run out, but it can go on at any time, and its stores through pointers with it."""
    with victim(pool, lease_s=0.1, wrapper=needs(CONTAINER)) as other:
        (inside,) = Path(f"/proc/{other.process.pid}/task/{other.process.pid}/children").read_text().split()
        os.kill(int(inside), signal.SIGSTOP)
        wait_until(lambda: pool.reclaim().quarantined_hosts == 1)
        assert pool.reclaim(kill=True, wait=True).quarantined_hosts == 1
        assert steal(pool) == (0, 12)
        os.kill(int(inside), signal.SIGCONT)
        wait_until(lambda: pool.stats().free_extents == 16)  # it let go itself


def test_start_time_has_no_say_while_the_lock_is_held(pool: Pool) -> None:
    with victim(pool) as other:
        poke(pool, 0, START_TIME, 1)
        assert steal(pool) == (0, 12)
        assert other.told("write") == "done"


def test_process_whose_first_thread_ended_lives(pool: Pool) -> None:
    with victim(pool, lease_s=3600) as other:
        other.told("end main thread")
        stat = Path(f"/proc/{other.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert steal(pool) == (0, 12)
        poke(pool, 0, LOCK_INODE, 0)  # also where only the PID is asked
        assert steal(pool) == (0, 12)


def test_child_of_a_dead_host_does_not_keep_its_memory(pool: Pool) -> None:
    with victim(pool, lease_s=3600) as other:
        child = int(other.told("fork"))
        try:
            poke(pool, 0, PID_NAMESPACE, 1)  # nobody can ask for its PID
            other.kill()
            assert steal(pool) == (1, 16)
        finally:
            os.kill(child, signal.SIGKILL)


def test_process_that_became_another_program_is_no_host(pool: Pool) -> None:
    with victim(pool, lease_s=3600) as other:
        assert other.process.stdin is not None
        other.process.stdin.write("exec\n")
        other.process.stdin.flush()
        wait_until(lambda: pool.reclaim().freed_hosts == 1)
        assert other.process.poll() is None


def test_slot_of_a_host_whose_lock_is_held_is_not_taken(pool: Pool) -> None:
    """Two objects of one process are two open files: their locks tell them apart."""
    with Pool.open(pool.path) as again, pool.join("a") as one, again.join("b") as other:
        assert (one.info().slot, other.info().slot) == (0, 1)
        one.leave()
        with again.join("c") as third:
            assert third.info().slot == 0
            assert steal(pool) == (0, 16)


# ---- hosts of which only silence tells


def of_another_boot(pool: Pool, slot: int) -> None:
    poke(pool, slot, BOOT_ID, 0x1234)


def reclaim_command(pool: Pool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emucxl", "pool", "reclaim", str(pool.path), "--kill", "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def test_one_command_frees_what_a_host_held_before_a_restart(pool: Pool) -> None:
    with victim(pool, lease_s=0.2) as other:
        epoch = pool.hosts()[0].epoch
        other.kill()
        of_another_boot(pool, 0)
        done = reclaim_command(pool)
        assert json.loads(done.stdout) == {
            "fenced_hosts": 1,
            "freed_hosts": 1,
            "freed_regions": 1,
            "freed_extents": 4,
            "quarantined_hosts": 0,
        }
        assert "sign of life of victim" in done.stderr
        with pool.join("next") as host:
            assert host.info().slot == 0
            assert host.info().epoch > epoch


def test_waiting_spares_a_host_elsewhere_that_says_something(pool: Pool) -> None:
    with pool.join("elsewhere", lease_s=60, heartbeat=False) as host:
        of_another_boot(pool, 0)
        with speaking(host):
            report = pool.reclaim(kill=True, wait=True)
        assert (report.fenced_hosts, report.freed_hosts) == (0, 0)
        assert pool.hosts()[0].state is HostState.ACTIVE
        host.carve("x", 1)


@contextlib.contextmanager
def speaking(host: Host) -> Iterator[None]:
    """Meanwhile a thread says over and over that the host lives."""
    over = threading.Event()

    def speak() -> None:
        while not over.wait(0.01):
            host.heartbeat()

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_host_that_was_fenced_while_somebody_waited_is_told(pool: Pool) -> None:
    with pool.join("far", lease_s=0.1, heartbeat=False) as far:
        of_another_boot(pool, far.info().slot)
        report = pool.reclaim(wait=True)
        assert (report.fenced_hosts, report.freed_hosts, report.quarantined_hosts) == (1, 1, 0)
        with pytest.raises(errors.FencedError):
            far.heartbeat()


def test_only_a_host_whose_silence_decides_is_waited_for(pool: Pool) -> None:
    with pool.join("here", heartbeat=False), pool.join("far", lease_s=2, heartbeat=False) as far:
        assert Patience().waits_for(pool.hosts(), 0) == []
        of_another_boot(pool, far.info().slot)
        patience = Patience()
        assert [host.name for host in patience.waits_for(pool.hosts(), 0)] == ["far"]
        assert [host.name for host in patience.waits_for(pool.hosts(), 2.1)] == ["far"]
        assert patience.waits_for(pool.hosts(), 3) == []  # for a lease nobody fenced it: nobody will
        patience = Patience()
        assert patience.waits_for(pool.hosts(), 0)
        far.heartbeat()
        assert patience.waits_for(pool.hosts(), 0.1) == []
