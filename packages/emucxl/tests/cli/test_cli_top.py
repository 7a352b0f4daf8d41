from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emucxl import monitor
from emucxl.cli.top import observe
from emucxl.context import Context
from support.patience import PATIENCE_S

WORKER = """
import sys, time
from emucxl.context import Context
with Context() as context:
    tier = context.add_tier("far", 1 << 20)
    buffer = tier.alloc(4096)
    print("ready", flush=True)
    while True:
        buffer.write(bytes(4096))
        buffer.read()
        tier.stats()
        time.sleep(0.002)
"""


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    """A process that keeps writing to and reading from a tier."""
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_context_of_another_process_is_seen_with_its_rates(invoke: Any, worker: Any) -> None:
    for interval_s in (0.3, 3, 30):
        view = json.loads(invoke("top", "--json", "--interval", str(interval_s)).stdout)
        context = next(context for context in view["contexts"] if context["pid"] == worker.pid)
        (tier,) = context["tiers"]
        if tier["read_gbps"] and tier["write_gbps"]:
            break  # or a busy machine had not let the worker do both within the interval
    assert list(view) == ["interval_s", "contexts", "links", "pools"]
    assert (context["clock"], tier["name"], tier["provider"], tier["modelled"]) == (
        "real",
        "far",
        "anon",
        False,
    )
    assert (tier["capacity_bytes"], tier["allocated_bytes"], tier["num_allocations"]) == (1 << 20, 4096, 1)
    assert tier["read_gbps"] > 0
    assert tier["write_gbps"] > 0


RANK = """
import sys, time
from emucxl import Context, CopyEngine, IndexedCopy
rank = int(sys.argv[1])
with Context(name=f"rank {rank}") as context, CopyEngine(context) as engine:
    slots = context.add_tier("slots", 1 << 20).alloc(1 << 20)
    local, places = bytearray(64 << 10), [piece * 4096 for piece in range(16)]
    store = IndexedCopy(slots, local, 4096 >> rank, places, places)
    fetch = IndexedCopy(local, slots, 4096 >> rank, places[:8], places[:8])
    for copy in (store, store, store, fetch):
        engine.submit([copy]).wait()
    slots.tier.stats()
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        engine.submit([store, fetch]).wait()
        time.sleep(0.002)
"""


@pytest.fixture
def ranks() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes. Each stores 16 pieces in a tier three times, and fetches 8 of them; told to, they go on."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for rank in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_the_tiers_of_several_ranks_are_seen_with_what_their_copy_engines_moved(
    invoke: Any, ranks: list[subprocess.Popen[str]]
) -> None:
    """Between a tier and memory that is in no tier: the tier's side counts."""

    def tiers(interval_s: float) -> list[Any]:
        view = json.loads(invoke("top", "--json", "--interval", str(interval_s)).stdout)
        contexts = {context["pid"]: context for context in view["contexts"]}
        found = [contexts[process.pid] for process in ranks]
        assert [context["name"] for context in found] == ["rank 0", "rank 1"]
        return [tier for context in found for tier in context["tiers"]]

    still = tiers(0.05)
    assert [tier["name"] for tier in still] == ["slots", "slots"]
    assert [tier["capacity_bytes"] for tier in still] == [1 << 20] * 2
    assert [tier["allocated_bytes"] for tier in still] == [1 << 20] * 2
    assert [(tier["write_bytes"], tier["write_accesses"]) for tier in still] == [
        (3 * 16 * 4096, 48),
        (3 * 16 * 2048, 48),
    ]
    assert [(tier["read_bytes"], tier["read_accesses"]) for tier in still] == [(8 * 4096, 8), (8 * 2048, 8)]
    assert all(tier["read_gbps"] == tier["write_gbps"] == 0 for tier in still)
    table = invoke("top", "--once", "--interval", "0.05").stdout
    for process, rank, moved in zip(ranks, range(2), ("196.61 kB", "98.30 kB"), strict=True):
        (row,) = (line for line in table.splitlines() if line.startswith(f"{process.pid} "))
        assert row.startswith(f"{process.pid} rank {rank} ")
        assert moved in row
    for process in ranks:
        assert process.stdin is not None
        process.stdin.write("\n")
    for interval_s in (0.1, 1, 10, 30):
        moving = tiers(interval_s)
        if all(tier["read_gbps"] and tier["write_gbps"] for tier in moving):
            break  # or a busy machine had not let both go on within the interval
    assert all(tier["write_gbps"] > 0 and tier["read_gbps"] > 0 for tier in moving)


def test_once_prints_tables(invoke: Any, worker: Any) -> None:
    text = invoke("top", "--once", "--interval", "0.1").stdout
    assert "Contexts" in text
    assert str(worker.pid) in text
    assert "unmodelled" in text


def test_without_a_terminal_it_prints_one_view_and_ends(shell: Any) -> None:
    done = shell("$EMUCXL top --interval 0.1 | cat")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_process_that_is_killed_leaves_nothing_to_see(worker: Any) -> None:
    assert worker.pid in [context.pid for context in monitor.sample().contexts]
    worker.kill()
    worker.wait()
    assert worker.pid not in [context.pid for context in monitor.sample().contexts]


def test_processes_that_end_while_it_looks_do_no_harm() -> None:
    ending = [subprocess.Popen([sys.executable, "-c", "pass"]) for _ in range(6)]
    while any(process.poll() is None for process in ending):
        monitor.sample()
    for process in ending:
        process.wait()


def test_a_fork_s_child_does_not_show_its_parent_s_context_twice() -> None:
    with Context() as context:
        context.add_tier("mine", 1 << 20)
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(300)"],
            stdout=subprocess.PIPE,
            pass_fds=_memfds(),
        )
        assert child.stdout is not None
        child.stdout.readline()
        mine = [view for view in monitor.sample().contexts if any(tier.name == "mine" for tier in view.tiers)]
        child.kill()
        child.wait()
        child.stdout.close()
    assert [view.pid for view in mine] == [os.getpid()]


def _memfds() -> tuple[int, ...]:
    links = {int(name): f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
    return tuple(
        fd for fd, path in links.items() if os.path.lexists(path) and "emucxl-context" in os.readlink(path)
    )


def test_a_link_is_seen_with_its_traffic() -> None:
    from emucxl.links import Link

    with Context() as context, Link.create(read_bandwidth_gbps=0.4, write_bandwidth_gbps=0.2) as link:
        tier = context.add_tier("far", 8 << 20, link=link)
        buffer = tier.alloc(1 << 20)
        before = monitor.sample()
        for _ in range(30):
            buffer.write(bytes(1 << 20))
        view = observe(before, monitor.sample(), [])
        found = next(found for found in view["links"] if os.getpid() in found["pids"])
        assert (found["kind"], found["clock"], found["write_bytes"]) == ("modelled", "real", 30 << 20)
        assert (
            0 < found["write_gbps"] < 0.21
        )  # as much as the link carries, where nothing else keeps the writer
        assert 0 < found["write_utilisation"] <= 1.0
        assert found["read_gbps"] == 0


def test_a_link_in_a_file_is_seen_and_other_files_are_not(tmp_path: Path) -> None:
    from emucxl.links import Link, LinkConfig

    (tmp_path / "other").write_bytes(bytes(4096))
    with Link.open(tmp_path / "link", LinkConfig(3.0)), open(tmp_path / "other"):
        mine = [link for link in monitor.sample().links if os.getpid() in link.pids]
    assert [link.read_bandwidth_gbps for link in mine] == [3.0]


def test_what_is_new_has_no_rates_yet() -> None:
    before = monitor.sample()
    with Context() as context:
        context.add_tier("new", 1 << 20)
        view = observe(before, monitor.sample(), [])
    tier = next(tier for context in view["contexts"] for tier in context["tiers"] if tier["name"] == "new")
    assert tier["read_gbps"] is None


def test_what_is_no_context_is_passed_over() -> None:
    """A memfd of that name that is too short, or says it is something else."""
    fds = [os.memfd_create(monitor.CONTEXT_NAME), os.memfd_create(monitor.LINK_NAME)]
    os.write(fds[0], b"short")
    os.write(fds[1], bytes(8192))
    ids = {f"{os.fstat(fd).st_dev}:{os.fstat(fd).st_ino}" for fd in fds}
    now = monitor.sample()
    assert not ids & {view.id for view in (*now.contexts, *now.links)}
    for fd in fds:
        os.close(fd)


def test_at_a_terminal_it_goes_on_until_ctrl_c(worker: Any) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "emucxl", "top", "--interval", "0.1"],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "180", "LINES": "200"},
    )
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + PATIENCE_S
    while seen.count(b"Contexts") < 3 and time.monotonic() < deadline:
        seen += os.read(leader, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while (
            select.select([leader], [], [], PATIENCE_S)[0]
            and os.read(leader, 65536)
            and time.monotonic() < deadline
        ):
            pass
    except OSError:  # the terminal's other end is closed
        pass
    os.close(leader)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert str(worker.pid).encode() in seen
    assert (process.returncode, errors) == (130, b"")


def test_pools_are_shown_with_their_hosts_and_leases(invoke: Any, tmp_path: Path) -> None:
    from emucxl.pool import Pool

    path = tmp_path / "a.pool"
    pool = Pool.create(path, 4 << 20, extent_bytes=1 << 20)
    try:
        host = pool.join("trainer", lease_s=30.0, quota_bytes=3 << 20)
        region = host.carve("weights", 2 << 20)
        view = json.loads(invoke("top", "--json", "--interval", "0.05", "--pool", str(path)).stdout)
        (found,) = (found for found in view["pools"] if found["path"] == str(path))
        assert (found["size_bytes"], found["held_bytes"], found["free_bytes"]) == (4 << 20, 2 << 20, 2 << 20)
        (shown,) = found["hosts"]
        assert (shown["name"], shown["state"], shown["pid"]) == ("trainer", "active", os.getpid())
        assert (shown["lease_s"], shown["owned_bytes"], shown["quota_bytes"]) == (30.0, 2 << 20, 3 << 20)
        assert [region["tag"] for region in found["regions"]] == ["weights"]
        text = invoke("top", "--once", "--interval", "0.05", "--pool", str(path)).stdout
        assert "trainer" in text
        assert "30.0 s" in text
        assert region.size_bytes == 2 << 20
    finally:
        pool.close()


def test_a_pool_that_can_not_be_read_is_shown_with_the_reason(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.pool").write_bytes(b"nothing" * 4096)
    for name in ("bad.pool", "nonesuch.pool"):
        path = str(tmp_path / name)
        view = json.loads(invoke("top", "--json", "--interval", "0.05", "--pool", path).stdout)
        assert [set(pool) for pool in view["pools"] if pool["path"] == path] == [{"path", "error"}]
        assert path in invoke("top", "--once", "--interval", "0.05", "--pool", path).stdout.replace("\n", "")
