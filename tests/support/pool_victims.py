"""Processes that join a pool as hosts, for tests that do them harm, and words of their records."""

from __future__ import annotations

import mmap
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from emucxl.pool import Pool
from support.patience import wait_until

_HOSTS_OFFSET = 4096
# Of a host's record (packages/emucxl/native/src/pool/layout.h).
HEARTBEAT_NS, START_TIME, BOOT_ID, PID_NAMESPACE, LOCK_INODE = 8, 48, 56, 72, 152

# Joins, carves "theirs", and does what it is told, a line at a time.
VICTIM = """
import sys
from emucxl import errors
from emucxl.pool import Pool

path, lease_s, persistent, fault = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "1", sys.argv[4] == "1"
pool = Pool.open(path)
host = pool.join("victim", lease_s=lease_s, fault_on_fence=fault)
region = host.carve("theirs", 4 * 4096, persistent=persistent)
region.fill(0x11)
view = region.memoryview()
print("ready", flush=True)
for line in sys.stdin:
    try:
        if line == "write\\n":
            region.write(b"\\xee" * 4096)
        elif line == "store\\n":
            view[:] = b"\\xee" * len(view)
        elif line == "load\\n":
            print(view[0], flush=True)
            continue
        elif line == "carve\\n":
            host.carve("more", 1)
        elif line == "rejoin\\n":
            before = epoch
            del view
            host.leave()
            host = pool.join("again")
            print(host.info().epoch > before, flush=True)
            continue
        elif line == "fork\\n":  # a child that outlives this process, and got its descriptors
            import os, time

            child = os.fork()
            if child == 0:
                os.close(0)
                os.close(1)
                time.sleep(60)
                os._exit(0)
            print(child, flush=True)
            continue
        elif line == "exec\\n":
            import os

            os.execvp("sleep", ["sleep", "60"])
        elif line == "end main thread\\n":
            import ctypes

            print("done", flush=True)
            ctypes.CDLL(None).pthread_exit(None)
        elif line == "epoch\\n":
            epoch = host.info().epoch
        print("done", flush=True)
    except errors.EmucxlError as error:
        print(type(error).__name__, flush=True)
"""


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


class Victim:
    def __init__(
        self, path: Path, lease_s: float, persistent: bool, fault: bool, wrapper: Sequence[str]
    ) -> None:
        arguments = [str(path), str(lease_s), str(int(persistent)), str(int(fault))]
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", VICTIM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def told(self, what: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """Returns once none of its threads can say anything more."""
        self.signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        wait_until(lambda: all(_state(thread) == "T" for thread in threads.iterdir()), "the victim's stop")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def victim(
    pool: Pool,
    lease_s: float = 30.0,
    persistent: bool = False,
    fault: bool = False,
    wrapper: Sequence[str] = (),
) -> Iterator[Victim]:
    """A process that joined; `wrapper` is the command that runs it, such as one that makes namespaces."""
    started = Victim(pool.path, lease_s, persistent, fault, wrapper)
    try:
        yield started
    finally:
        started.kill()
        for stream in (started.process.stdin, started.process.stdout):
            assert stream is not None
            stream.close()


def poke(pool: Pool, slot: int, field: int, value: int) -> None:
    """Overwrites a word of a host's record, as no library would."""
    with pool.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        struct.pack_into("<Q", content, _HOSTS_OFFSET + 256 * slot + field, value)


def silence(pool: Pool, slot: int = 0) -> None:
    """As if the host had said nothing for longer than its lease; it must not be able to, or it will say something."""
    (host,) = (host for host in pool.hosts() if host.slot == slot)
    lease_ns = int(host.lease_s * 1e9)
    poke(pool, slot, HEARTBEAT_NS, max(1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 2 * lease_ns))
