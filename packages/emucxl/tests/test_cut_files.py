"""Files behind memory that another process cuts short, and files that the process may not make: refused, not killed.

Each program runs in a process of its own, as it would be killed by SIGBUS or SIGXFSZ.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

CUT = """
import os, sys
import emucxl
from emucxl import errors
from emucxl.links import Link, LinkConfig
from emucxl.pool import Pool

path = sys.argv[1]

def refused(call, *kinds):
    try:
        call()
    except kinds or (errors.CorruptError,) as error:
        assert "cut short" in str(error) or kinds, error
    else:
        raise AssertionError("not refused")
"""

CUT_TIER = """
def cut(provider, capacity):
    context = emucxl.Context("virtual")
    tier = context.add_tier("t", capacity, provider)
    other = context.add_tier("o", 1 << 20)
    small, large, private = tier.alloc(64), tier.alloc(4 << 20), other.alloc(64)
    engine = emucxl.CopyEngine(context)
    large.fill(1)
    os.truncate(path, 8192)
    refused(lambda: large.read(64, 1 << 20))
    refused(lambda: large.write(b"x", 1 << 20))
    refused(lambda: large.fill(1))
    refused(lambda: large.migrate(other))
    refused(lambda: private.migrate(tier))
    refused(lambda: private.copy_from(large, size=64))
    refused(lambda: context.read_batch([(large, 0, bytearray(64))]))
    refused(lambda: engine.submit([(private, large, 64)]))
    refused(lambda: tier.alloc(64))
    refused(lambda: large.resize(5 << 20))
    small.free()
    large.free()
    assert private.read(1) == bytes(1)
    engine.close()
    context.close()
    assert os.stat(path).st_size == 8192
"""

CUT_LINK = """
link = Link.open(path, LinkConfig(10.0))
context = emucxl.Context("virtual")
buffer = context.add_tier("t", 1 << 20, link=link).alloc(64)
cache = emucxl.Cache(bytearray(4096 + 64) and context.add_tier("m", 1 << 20).alloc(4096), context=context, link=link)
buffer.read()
os.truncate(path, 0)
refused(lambda: buffer.read())
refused(lambda: buffer.write(b"x"))
refused(lambda: cache.read(8))
refused(link.stats)
refused(lambda: link.reserve("read", 1, 0))
refused(lambda: context.add_tier("u", 1 << 20, link=link))
buffer.free()
cache.close()
context.close()
link.close()
"""

CUT_POOL = """
pool = Pool.create(path, size_bytes=8 << 20)
other = pool.join("o", lease_s=3600, heartbeat=False)
kept = other.carve("k", 1 << 20)
host = pool.join("h", lease_s=0.05)  # last: nobody else looks whether its heartbeats are in time
region = host.carve("r", 1 << 20)
os.truncate(path, 4096)
refused(lambda: region.read(1))
refused(lambda: region.write(b"x"))
refused(lambda: region.fill(1))
refused(lambda: region.resize(2 << 20))
refused(lambda: region.poison(0, 64))
refused(lambda: region.size_bytes)
refused(lambda: host.carve("s", 1))
refused(lambda: host.open("k"))
refused(host.heartbeat)
refused(host.info)
refused(lambda: pool.join("late"))
for call in (pool.stats, pool.hosts, pool.regions, pool.poison_ranges, pool.reclaim, pool.check):
    refused(call)
import time
time.sleep(0.2)  # several heartbeats of the thread
refused(region.release)
kept.close()
host.leave()
pool.close()
"""

LIMITED = """
import os, resource, signal, sys
import emucxl
from emucxl import errors
from emucxl.links import Link, LinkConfig
from emucxl.pool import Pool

before = signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
directory = sys.argv[1]

def refused(call):
    try:
        call()
    except errors.SystemMemoryError as error:
        assert "ulimit -f" in str(error), error
    else:
        raise AssertionError("not refused")

context = emucxl.Context("virtual")
refused(lambda: context.add_tier("memfd", 4 << 20, emucxl.Shm()))
refused(lambda: context.add_tier("file", 4 << 20, emucxl.Shm(path=directory + "/tier")))
refused(lambda: Pool.create(directory + "/pool", size_bytes=4 << 20))
if sys.argv[2] == "0":
    refused(lambda: Link.create(10.0))
    refused(lambda: Link.open(directory + "/link", LinkConfig(10.0)))
assert context.add_tier("anon", 4 << 20).alloc(64).read(1) == bytes(1)
assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_DFL
assert os.listdir(directory) == [], os.listdir(directory)
"""


def run(program: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    name = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
    assert done.returncode == 0, f"{name}\n{done.stderr}"


@pytest.mark.parametrize("provider", ["Shm(path=path)", "Shm(fd=os.open(path, os.O_RDWR))", "Dax(path)"])
def test_a_tier_whose_file_was_cut_is_refused(provider: str, tmp_path: Path) -> None:
    path = tmp_path / "tier"
    path.write_bytes(bytes(8 << 20))
    path.chmod(0o600)
    run(f"{CUT}{CUT_TIER}\ncut(emucxl.{provider}, 0)", path)


def test_a_link_whose_file_was_cut_is_refused(tmp_path: Path) -> None:
    run(CUT + CUT_LINK, tmp_path / "link")


def test_a_pool_whose_file_was_cut_is_refused(tmp_path: Path) -> None:
    run(CUT + CUT_POOL, tmp_path / "pool")


def test_a_view_of_a_region_reads_zeroes_once_the_pool_was_cut(tmp_path: Path) -> None:
    code = """
pool = Pool.create(path, size_bytes=8 << 20)
host = pool.join("h", heartbeat=False)
view = host.carve("r", 1 << 20).memoryview()
view[0] = 1
os.truncate(path, 4096)
refused(host.heartbeat)
assert view[0] == 0
"""
    run(CUT + code, tmp_path / "pool")


@pytest.mark.parametrize("limit_bytes", [0, 1 << 20])
def test_a_limit_on_the_size_of_files_is_told(limit_bytes: int, tmp_path: Path) -> None:
    run(LIMITED, tmp_path, limit_bytes)


def test_others_cannot_cut_what_a_context_shows_of_itself() -> None:
    import emucxl

    with emucxl.Context("virtual") as context:
        context.add_tier("a", 1 << 20)
        found = [
            path
            for path in Path("/proc/self/fd").iterdir()
            if os.path.lexists(path) and os.readlink(path).startswith("/memfd:emucxl-context")
        ]
        assert found
        for path in found:
            with pytest.raises(PermissionError):
                os.truncate(path, 0)
