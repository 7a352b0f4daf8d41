"""Links: queues in shared memory."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import emucxl
from emucxl.calibration import Calibration
from emucxl.errors import (
    AccessDeniedError,
    ArgumentError,
    ClosedError,
    CorruptError,
    ForeignError,
    NameTakenError,
    NotFoundError,
)
from emucxl.links import Link, LinkConfig
from emucxl.timing import Timing

FILE_BYTES = 4096
CALIBRATION = Calibration(50, 50, 1000, 1000, 20, 50_000, 60)


@pytest.fixture
def link() -> Iterator[Link]:
    with Link.create(1) as opened:
        yield opened


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "write"]), st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
        max_size=60,
    ),
    full_duplex=st.booleans(),
)
def test_reservations_follow_the_formula(steps: list[tuple[str, int, int]], full_duplex: bool) -> None:
    rates = {"read": math.ceil(2**32 / 3), "write": math.ceil(2**32 / 0.7)}
    free_ns, fraction = {"read": 0, "write": 0}, {"read": 0, "write": 0}
    with Link.create(3, 0.7, full_duplex=full_duplex) as link:
        for direction, size, now_ns in steps:
            lane = direction if full_duplex else "read"
            cost = rates[direction] * size + fraction[lane]
            fraction[lane] = cost % 2**32
            free_ns[lane] = max(now_ns, free_ns[lane]) + (cost >> 32)
            assert link.reserve(direction, size, now_ns) == free_ns[lane]  # type: ignore[arg-type]
        stats = link.stats()
    assert stats.read_bytes == sum(size for direction, size, _ in steps if direction == "read")
    assert stats.write_transfers == sum(direction == "write" for direction, _, _ in steps)


def test_tiers_of_one_link_wait_for_each_other(link: Link) -> None:
    with emucxl.Context("virtual") as context:
        near, far = (
            context.add_tier(name, 1 << 20, timing=Timing(100, 100), link=link) for name in ("near", "far")
        )
        one, other = near.alloc(1000), far.alloc(1000)
        context.read_batch([(one, 0, bytearray(1000)), (other, 0, bytearray(1000))])
        assert context.now_ns == 1000 + 1000 + 100
        one.free()
        other.free()
    assert link.stats().queued_ns > 0


def test_the_latency_of_a_link_is_added_to_that_of_the_tier() -> None:
    with Link.create(1, latency_ns=40) as link, emucxl.Context("virtual") as context:
        buffer = context.add_tier("far", 1 << 20, timing=Timing(100, 100), link=link).alloc(10)
        buffer.read(10)
        assert context.now_ns == 10 + 100 + 40
        buffer.free()


def test_contexts_with_virtual_clocks_share_a_link_in_the_order_of_their_calls(link: Link) -> None:
    with emucxl.Context("virtual") as first, emucxl.Context("virtual") as second:
        buffers = [c.add_tier("far", 1 << 20, link=link).alloc(1000) for c in (first, second)]
        for buffer in buffers:
            buffer.read(1000)
        assert (first.now_ns, second.now_ns) == (1000, 2000)
        for buffer in buffers:
            buffer.free()


def test_a_link_follows_one_kind_of_clock(link: Link) -> None:
    with emucxl.Context("virtual") as context:
        context.add_tier("far", 1 << 20, link=link)
    with (
        emucxl.Context(calibration=CALIBRATION) as context,
        pytest.raises(ArgumentError, match="virtual clocks"),
    ):
        context.add_tier("far", 1 << 20, link=link)


def test_a_tier_keeps_its_link_alive() -> None:
    with emucxl.Context("virtual") as context:
        link = Link.create(1)
        buffer = context.add_tier("far", 1 << 20, link=link).alloc(1000)
        link.close()
        buffer.read(1000)
        assert context.now_ns == 1000
        with pytest.raises(ClosedError):
            link.stats()
        buffer.free()


def test_utilisation_is_that_of_the_recent_past(link: Link) -> None:
    with emucxl.Context("virtual") as context:
        buffer = context.add_tier("far", 1 << 20, link=link).alloc(1000)
        for _ in range(1000):
            buffer.read(1000)  # 1 us
            context.advance(3000)
        assert link.stats().read_utilisation == pytest.approx(0.25, rel=0.02)
        assert link.stats().write_utilisation == 0
        buffer.free()


# ---- other processes ---------------------------------------------------------------------------------------------

RESERVE = """
import sys
from emucxl.links import Link
link = Link.attach(int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    end = link.reserve("write", 1000, 0)
print(end)
"""


def run_child(code: str, link: Link, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(link.fd), *map(str, arguments)],
        pass_fds=[link.fd],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_queue_on_one_link(link: Link) -> None:
    children = [run_child(RESERVE, link, 500) for _ in range(3)]
    ends = [int(child.communicate(timeout=60)[0]) for child in children]
    assert max(ends) == 3 * 500 * 1000
    assert link.stats().write_bytes == 3 * 500 * 1000


FLOOD = """
import sys
from emucxl.links import Link
link = Link.attach(int(sys.argv[1]))
print("ready", flush=True)
while True:
    link.reserve("write", 1000, 0)
"""


def test_a_killed_process_leaves_the_link_usable() -> None:
    for _ in range(5):
        with Link.create(1) as link:
            child = run_child(FLOOD, link)
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
            child.communicate(timeout=60)
            free_ns = link.reserve("write", 0, 0)
            # At most the transfer that it died in is queued and not counted: nobody waits for more than was queued.
            assert free_ns - link.stats().write_bytes in (0, 1000)
            assert link.reserve("write", 500, free_ns + 7) == free_ns + 507


def test_real_transfers_through_one_link_take_at_least_their_sum() -> None:
    code = """
import sys
import emucxl
from emucxl.calibration import Calibration
from emucxl.links import Link
from emucxl.timing import Timing
link = Link.attach(int(sys.argv[1]))
with emucxl.Context(calibration=Calibration(50, 50, 1000, 1000, 20, 50000, 60)) as context:
    buffer = context.add_tier("far", 1 << 24, timing=Timing(500, 500), link=link).alloc(1 << 20)
    target = bytearray(1 << 20)
    print(context.now_ns)
    for _ in range(10):
        buffer.read_into(target)
    print(context.now_ns)
"""
    with Link.create(0.5) as link:
        children = [run_child(code, link) for _ in range(2)]
        times = [[int(line) for line in child.communicate(timeout=120)[0].split()] for child in children]
        stats = link.stats()
    assert stats.read_bytes == 20 << 20
    lasted_ns = max(end for _, end in times) - min(begin for begin, _ in times)
    assert lasted_ns >= (20 << 20) / 0.5 * 0.999  # both together: the link carried one byte at a time


# ---- files -------------------------------------------------------------------------------------------------------


def test_processes_meet_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "link"
    config = LinkConfig(2, 1, latency_ns=3, full_duplex=False)
    with Link.open(path, config) as first, Link.open(path) as second:
        assert path.stat().st_mode & 0o777 == 0o600
        assert second.config == config
        assert first.reserve("read", 1000, 0) == 500
        assert second.reserve("read", 1000, 0) == 1000
        with pytest.raises(NameTakenError, match="2 and 1 GB/s"):
            Link.open(path, LinkConfig(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Link.open(tmp_path / "link")
    with pytest.raises(NotFoundError):
        Link.open(tmp_path / "no" / "link", LinkConfig(1))


def made(path: Path) -> bytes:
    Link.open(path, LinkConfig(1)).close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda content: b"", ForeignError),
        (lambda content: content[:-1], ForeignError),
        (lambda content: content + b"x", ForeignError),
        (lambda content: bytes(len(content)), ForeignError),
        (lambda content: content[:8] + b"\1" + content[9:], ForeignError),  # the version
        (lambda content: content[:26] + b"\xff" + content[27:], CorruptError),  # the bandwidth
        (
            lambda content: content[:16] + b"\1\0\0\0" + content[20:],
            CorruptError,
        ),  # duplex, under its checksum
    ],
)
def test_files_that_are_no_links_are_refused(damage: object, error: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "link"
    Link.open(path, LinkConfig(1, full_duplex=False)).close()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(error):
        Link.open(path)
    with path.open("rb+") as file, pytest.raises(error):
        Link.attach(file.fileno())


# ---- clocks that begin anew


CLOCK, BOOT, FREE_NS, LATEST_NS = 20, 64, 128, 144  # in the file (native/include/emucxl/link_layout.h)


def poke(path: Path, place: int, value: int, size: int = 8) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(value.to_bytes(size, "little"))


def peek(path: Path, place: int) -> int:
    return int.from_bytes(path.read_bytes()[place : place + 8], "little")


def read_through(link: Link) -> None:
    """One small access on the real clock, which waits for the link as long as that says."""
    with (
        emucxl.Context(calibration=CALIBRATION) as context,
        context.add_tier("far", 1 << 20, link=link).alloc(64) as buffer,
    ):
        buffer.read(64)


def test_a_queue_that_no_clock_can_reach_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "link"
    with Link.open(path, LinkConfig(1)) as link:
        read_through(link)
        poke(path, FREE_NS, 2**63)
        assert link.stats().read_utilisation == 0
        read_through(link)  # would wait for centuries
        assert peek(path, FREE_NS) <= time.monotonic_ns()
        now_ns = time.monotonic_ns()
        assert link.reserve("read", 50 * 10**9, now_ns) == now_ns + 50 * 10**9  # what is near is a queue
        assert link.reserve("read", 5, now_ns) == now_ns + 50 * 10**9 + 5


def test_a_link_that_was_made_before_a_restart_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "link"
    later_ns = time.monotonic_ns() + 30 * 10**9  # near enough to be a queue, were it of this clock
    for clock in (0, 1):  # nobody said which, the real one
        Link.open(path, LinkConfig(1)).close()
        poke(path, CLOCK, clock, 4)
        poke(path, BOOT, 12345)
        poke(path, FREE_NS, later_ns)
        poke(path, LATEST_NS, later_ns)
        with Link.open(path) as link:
            now_ns = time.monotonic_ns()
            assert link.reserve("read", 7, now_ns) == now_ns + 7
            with Link.open(path) as other:  # of this run of the machine: it queues
                assert other.reserve("read", 7, now_ns) == now_ns + 14
        path.unlink()


def test_virtual_times_outlast_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "link"
    with Link.open(path, LinkConfig(1)) as link, emucxl.Context("virtual") as context:
        context.add_tier("far", 1 << 20, link=link)
        link.reserve("read", 1000, 0)
    poke(path, BOOT, 12345)
    with Link.open(path) as link:
        assert link.reserve("read", 1, 0) == 1001


IN_ANOTHER_TIME = """
import sys, time
from emucxl.links import Link
with Link.open(sys.argv[1]) as link:
    now_ns = time.monotonic_ns()
    print(link.reserve("read", 50_000_000_000, now_ns) - now_ns, now_ns)
"""


def test_time_namespaces_share_one_queue(tmp_path: Path) -> None:
    other_time = ["unshare", "-T", "--monotonic", "1000"]
    try:
        subprocess.run([*other_time, "true"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this machine or this user makes no time namespaces")
    path = tmp_path / "link"
    with Link.open(path, LinkConfig(1)) as link:
        read_through(link)
        command = [*other_time, sys.executable, "-c", IN_ANOTHER_TIME, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        waits_ns, then_ns = map(int, done.stdout.split())
        assert waits_ns == 50 * 10**9
        assert then_ns > time.monotonic_ns() + 900 * 10**9  # it was another time
        now_ns = time.monotonic_ns()
        assert (
            link.reserve("read", 0, now_ns) == then_ns - 1000 * 10**9 + waits_ns
        )  # what it queued lies before us
        assert link.stats().read_bytes == 64 + 50 * 10**9


# ---- files that are refused


def test_a_file_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "link"
    made(path)
    path.chmod(0o644)
    with pytest.raises(AccessDeniedError, match="mode 600"):
        Link.open(path)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    made(tmp_path / "link")
    (tmp_path / "other").symlink_to(tmp_path / "link")
    with pytest.raises(Exception, match="cannot open"):
        Link.open(tmp_path / "other")


def test_a_wrong_descriptor_is_refused() -> None:
    with pytest.raises(ArgumentError, match="descriptor 9999"):
        Link.attach(9999)
    reading, writing = os.pipe()
    with pytest.raises(ForeignError):
        Link.attach(reading)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("bandwidth", [0, -1, 1e-4, 1e6, float("nan")])
def test_senseless_bandwidths_are_refused(bandwidth: float) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        Link.create(bandwidth)
    with pytest.raises(ArgumentError, match="expected"):
        Link.create(1, bandwidth)


def test_the_layout_for_watchers_is_what_a_link_is(link: Link) -> None:
    link.reserve("write", 1234, 0)
    content = os.pread(link.fd, FILE_BYTES, 0)
    assert content[:8] == b"emxlink1"
    read_gbps = ctypes.c_double.from_buffer_copy(content, 24).value
    write_lane = 128 + 128
    free_ns, written = (
        int.from_bytes(content[at : at + 8], "little") for at in (write_lane, write_lane + 40)
    )
    assert (read_gbps, free_ns, written) == (1.0, 1234, 1234)
