"""Providers: one suite over all of them, and what each does of its own."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import pytest

from emucxl import abi, errors, native
from support.native_context import MIB, NativeContext, fill, provider_unavailable

CAPACITY = 8 * MIB
ROOT = Path(__file__).parents[2]


class JoinConfig(abi.SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("flags", c_uint32),
        ("lease_ns", c_uint64),
        ("quota_bytes", c_uint64),
    )


class PoolConfig(abi.SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("flags", c_uint32),
        ("size_bytes", c_uint64),
        ("extent_bytes", c_uint64),
        ("max_regions", c_uint32),
    )


# Each gives the fields of a tier's config, and has what they need closed by `resources`.


def anon(tmp_path: Path, resources: contextlib.ExitStack) -> dict[str, Any]:
    return {"provider": abi.PROVIDER_ANON}


def shm_memfd(tmp_path: Path, resources: contextlib.ExitStack) -> dict[str, Any]:
    return {"provider": abi.PROVIDER_SHM}


def shm_file(tmp_path: Path, resources: contextlib.ExitStack) -> dict[str, Any]:
    return {"provider": abi.PROVIDER_SHM, "path": os.fsencode(tmp_path / "tier")}


def shm_fd(tmp_path: Path, resources: contextlib.ExitStack) -> dict[str, Any]:
    fd = os.memfd_create("test")
    resources.callback(os.close, fd)
    os.write(fd, b"junk" * (CAPACITY // 4))
    return {"provider": abi.PROVIDER_SHM, "fd": fd}


def numa(tmp_path: Path, resources: contextlib.ExitStack) -> dict[str, Any]:
    if (reason := provider_unavailable(abi.PROVIDER_NUMA)) is not None:
        pytest.skip(reason)
    return {"provider": abi.PROVIDER_NUMA, "numa_node": first_node()}


def dax_file(tmp_path: Path, resources: contextlib.ExitStack) -> dict[str, Any]:
    device = tmp_path / "dax0.0"
    device.write_bytes(b"\xa5" * CAPACITY)
    return {"provider": abi.PROVIDER_DAX, "path": os.fsencode(device)}


def null(tmp_path: Path, resources: contextlib.ExitStack) -> dict[str, Any]:
    return {"provider": abi.PROVIDER_NULL}


POOL_SIGNATURES: native.Signatures = {
    "emx_pool_create": (c_int, [c_char_p, POINTER(PoolConfig), POINTER(c_void_p)]),
    "emx_pool_close": (None, [c_void_p]),
    "emx_pool_join": (c_int, [c_void_p, c_char_p, c_void_p, POINTER(c_void_p)]),
    "emx_host_carve": (c_int, [c_void_p, c_char_p, c_uint64, c_void_p, POINTER(c_void_p)]),
    "emx_host_leave": (None, [c_void_p]),
    "emx_pool_open": (c_int, [c_char_p, c_uint32, POINTER(c_void_p)]),
    "emx_pool_reclaim": (c_int, [c_void_p, c_uint32, c_void_p]),
    "emx_region_close": (None, [c_void_p]),
    "emx_region_poison": (c_int, [c_void_p, c_uint64, c_uint64]),
}


def region(tmp_path: Path, resources: contextlib.ExitStack, join: JoinConfig | None = None) -> dict[str, Any]:
    library = abi.load()
    native.declare(library, POOL_SIGNATURES)
    pool, host, carved = c_void_p(), c_void_p(), c_void_p()
    path = os.fsencode(tmp_path / "pool")
    native.check(library.emx_pool_create(path, PoolConfig(size_bytes=2 * CAPACITY), byref(pool)))
    resources.callback(library.emx_pool_close, pool)
    native.check(library.emx_pool_join(pool, b"tester", join and byref(join), byref(host)))
    resources.callback(library.emx_host_leave, host)
    native.check(library.emx_host_carve(host, b"tier", CAPACITY, None, byref(carved)))
    resources.callback(library.emx_region_close, carved)
    return {"provider": abi.PROVIDER_REGION, "region": carved.value}


MAKERS: tuple[Callable[[Path, contextlib.ExitStack], dict[str, Any]], ...] = (
    anon,
    shm_memfd,
    shm_file,
    shm_fd,
    numa,
    dax_file,
    null,
    region,
)
SHARED = (shm_memfd, shm_file, shm_fd, dax_file)


def first_node() -> int:
    return int(re.match(r"\d+", Path("/sys/devices/system/node/has_memory").read_text())[0])  # type: ignore[index]


def open_tier(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[NativeContext, int, dict[str, Any]]]:
    with contextlib.ExitStack() as resources:
        fields = request.param(tmp_path, resources)
        context = resources.enter_context(NativeContext())
        tier = context.add_tier("tested", CAPACITY, **fields)
        yield context, tier, fields
        context.check()


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def opened(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[NativeContext, int, dict[str, Any]]]:
    yield from open_tier(request, tmp_path)


@pytest.fixture(params=SHARED, ids=lambda maker: maker.__name__)
def shared(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[NativeContext, int, dict[str, Any]]]:
    yield from open_tier(request, tmp_path)


Opened = tuple[NativeContext, int, dict[str, Any]]


def touchable(fields: dict[str, Any]) -> bool:
    return bool(fields["provider"] != abi.PROVIDER_NULL)


# ---- every provider ----------------------------------------------------------------------------------------------


def test_tier_is_what_was_asked_for(opened: Opened) -> None:
    context, tier, fields = opened
    info = context.info(tier)
    assert (info.name, info.provider, info.modelled) == (b"tested", fields["provider"], 0)
    assert info.capacity_bytes == context.stats(tier).capacity_bytes == CAPACITY
    assert info.base % (2 * MIB) == 0
    assert (info.fd >= 0) == (fields["provider"] in (abi.PROVIDER_SHM, abi.PROVIDER_DAX))


def test_memory_is_zero_when_it_is_handed_out(opened: Opened) -> None:
    context, tier, _ = opened
    for size in (16, 5000, 3 * MIB):
        first = context.alloc(tier, size)
        assert context.read(first, 0, size) == bytes(size)
        context.memset(first, 0, 0xAB, size)
        context.free(first)
        second = context.alloc(tier, size)
        assert context.read(second, 0, size) == bytes(size)


def test_bytes_are_kept_apart_all_over_the_tier(opened: Opened) -> None:
    context, tier, fields = opened
    pointers = fill(context, tier, 64 * 1024)
    assert len(pointers) >= CAPACITY // (64 * 1024) - 32
    for number, pointer in enumerate(pointers):
        context.memset(pointer, 0, number % 255 + 1, 64 * 1024)
    if touchable(fields):
        for number, pointer in enumerate(pointers):
            assert context.read(pointer, 0, 64 * 1024) == bytes([number % 255 + 1]) * 64 * 1024


def test_a_full_tier_says_so_and_recovers(opened: Opened) -> None:
    context, tier, _ = opened
    pointers = fill(context, tier, MIB)
    assert len(pointers) >= 6
    with pytest.raises(errors.TierFullError, match="tier 'tested'"):
        context.alloc(tier, 2 * MIB)
    assert context.stats(tier).reserved_bytes <= CAPACITY
    for pointer in pointers:
        context.free(pointer)
    assert len(fill(context, tier, MIB)) == len(pointers)


def test_trimmed_memory_comes_back_zero(opened: Opened) -> None:
    context, tier, _ = opened
    pointer = context.alloc(tier, 4 * MIB)
    context.memset(pointer, 0, 0xFF, 4 * MIB)
    context.free(pointer)
    context.trim(tier)
    assert context.stats(tier).allocated_bytes == 0
    pointer = context.alloc(tier, 4 * MIB)
    assert context.read(pointer, 0, 4 * MIB) == bytes(4 * MIB)


def test_allocations_move_between_this_tier_and_another(opened: Opened) -> None:
    context, tier, fields = opened
    other = context.add_tier("other", CAPACITY)
    data = os.urandom(300_000) if touchable(fields) else bytes(300_000)
    pointer = context.alloc(other, len(data))
    context.write(pointer, 0, data)
    pointer = context.resize(context.migrate(pointer, tier), 400_000)
    assert context.query(pointer).tier == tier
    pointer = context.migrate(pointer, other)
    assert context.read(pointer, 0, 400_000) == data + bytes(100_000)


def test_an_available_provider_gives_no_reason(opened: Opened) -> None:
    assert provider_unavailable(opened[2]["provider"]) is None


def test_a_capacity_of_more_than_there_are_addresses_is_refused(opened: Opened) -> None:
    context, _, fields = opened
    for capacity in (2**64 - 1, 2**63, 2**46 + 1):
        with pytest.raises(errors.SystemMemoryError, match="there are no more addresses"):
            context.add_tier("huge", capacity, **fields)
    assert context.library.emx_tier_count(context.handle) == 1


# ---- what is shared between processes ----------------------------------------------------------------------------

CHILD_PROGRAM = """
import mmap, sys
path, offset = sys.argv[1], int(sys.argv[2])
with open(path, "r+b", buffering=0) as file:
    memory = mmap.mmap(file.fileno(), 0)
    assert memory[offset:offset + 12] == b"from parent!", memory[offset:offset + 12]
    memory[offset + 12:offset + 23] = b"from child!"
"""


def test_another_process_sees_the_bytes_at_their_offset(shared: Opened) -> None:
    context, tier, _ = shared
    info = context.info(tier)
    context.alloc(tier, 1000)
    pointer = context.alloc(tier, MIB)
    context.write(pointer, 100, b"from parent!")
    offset = pointer + 100 - info.base
    command = [sys.executable, "-c", CHILD_PROGRAM, f"/proc/self/fd/{info.fd}", str(offset)]
    subprocess.run(command, pass_fds=[info.fd], check=True, timeout=60)
    assert context.read(pointer, 100, 23) == b"from parent!from child!"


def test_memory_in_use_by_one_context_is_refused_to_another(shared: Opened) -> None:
    context, tier, fields = shared
    if "path" not in fields and "fd" not in fields:  # a memfd: by its descriptor
        fields = {**fields, "fd": context.info(tier).fd}
    with NativeContext() as other:
        with pytest.raises(errors.InUseError, match="in use by another tier"):
            other.add_tier("second", 0, **fields)
        with pytest.raises(errors.InUseError, match="in use by another tier"):
            context.add_tier("second", 0, **fields)
        pointer = context.alloc(tier, 100)
        context.write(pointer, 0, b"unharmed")
        assert context.read(pointer, 0, 8) == b"unharmed"


@pytest.mark.parametrize("maker", [shm_file, shm_fd, dax_file])
def test_closed_memory_can_be_opened_again(
    maker: Callable[[Path, contextlib.ExitStack], dict[str, Any]], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as resources:
        fields = maker(tmp_path, resources)
        with NativeContext() as context:
            context.add_tier("first", CAPACITY, **fields)
            context.memset(context.alloc(0, 4 * MIB), 0, 0xFF, 4 * MIB)
        with NativeContext() as context:
            context.add_tier("second", 0, **fields)
            assert context.info(0).capacity_bytes == CAPACITY
            assert context.read(context.alloc(0, 4 * MIB), 0, 4 * MIB) == bytes(4 * MIB)


def test_touching_what_is_allocated_needs_no_more_from_the_file_system(shared: Opened) -> None:
    context, tier, _ = shared
    fd = context.info(tier).fd
    context.alloc(tier, 4 * MIB)
    assert os.fstat(fd).st_blocks * 512 >= 4 * MIB


@pytest.mark.parametrize("maker", [shm_memfd, shm_file])
def test_trimmed_blocks_go_back_to_the_file_system(
    maker: Callable[[Path, contextlib.ExitStack], dict[str, Any]], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as resources, NativeContext() as context:
        tier = context.add_tier("tier", CAPACITY, **maker(tmp_path, resources))
        fd = context.info(tier).fd
        context.free(context.alloc(tier, 6 * MIB))
        context.trim(tier)
        assert os.fstat(fd).st_blocks * 512 <= 2 * MIB


# ---- memory of the system ----------------------------------------------------------------------------------------

MEMORY = [
    pytest.param({"provider": abi.PROVIDER_ANON}, id="anon"),
    pytest.param({"provider": abi.PROVIDER_SHM}, id="shm"),
    pytest.param({"provider": abi.PROVIDER_NUMA}, id="numa"),
]


def available_bytes() -> int:
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(params=MEMORY)
def memory(request: pytest.FixtureRequest) -> dict[str, Any]:
    fields = dict(request.param)
    if (reason := provider_unavailable(fields["provider"])) is not None:
        pytest.skip(reason)
    if fields["provider"] == abi.PROVIDER_NUMA:
        fields["numa_node"] = first_node()
    return fields


def test_more_than_the_system_has_is_refused_with_figures(memory: dict[str, Any]) -> None:
    with NativeContext() as context:
        with pytest.raises(errors.SystemMemoryError, match=r"got a capacity of \d+ bytes; expected at most"):
            context.add_tier("huge", available_bytes() + (1 << 30), **memory)
        assert context.library.emx_tier_count(context.handle) == 0


def test_tiers_are_not_promised_the_same_memory_twice(memory: dict[str, Any]) -> None:
    most = available_bytes() * 6 // 10
    with NativeContext() as first, NativeContext() as second:
        first.add_tier("first", most, **memory)
        with pytest.raises(errors.SystemMemoryError, match="promised to other tiers of this process"):
            second.add_tier("second", most)
        first.close()
        second.add_tier("second", most)


def memory_cgroup() -> Path | None:
    """A memory cgroup with a bound of 512 MiB, or None where this process may not make one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "memory":
            parent, limit = Path("/sys/fs/cgroup/memory" + name), "memory.limit_in_bytes"
        elif controllers == "":
            parent, limit = Path("/sys/fs/cgroup" + name), "memory.max"
        else:
            continue
        group = parent / f"emucxl-test-{os.getpid()}-{threading.get_ident()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(512 * MIB))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        return group
    return None


GROUP_PROGRAM = """
import mmap, os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from emucxl import abi, errors, native
from support.native_context import MIB, NativeContext
context = NativeContext()
try:
    context.add_tier("too large", 600 * MIB)
    sys.exit("600 MiB in a group of 512 were not refused")
except errors.SystemMemoryError:
    pass
for number, fields in enumerate(({"provider": abi.PROVIDER_ANON}, {"provider": abi.PROVIDER_SHM})):
    context = NativeContext()
    context.add_tier("fits", 300 * MIB, **fields)
    hog = mmap.mmap(-1, 250 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, 250 * MIB, 4096):
        hog[offset] = 1
    blocks = 0
    try:
        while True:
            context.memset(context.alloc(0, 4 * MIB), 0, 1, 4 * MIB)
            blocks += 1
    except errors.SystemMemoryError as error:
        assert "something else took what there was" in str(error), error
    assert 10 <= blocks < 70, blocks
    context.check()
    context.close()
    hog.close()
print("refused, not killed")
"""


def test_growth_into_memory_that_is_gone_is_refused_and_not_killed() -> None:
    group = memory_cgroup()
    if group is None:
        pytest.skip("this process may not make a memory cgroup")
    try:
        done = subprocess.run(
            [sys.executable, "-c", GROUP_PROGRAM, str(group)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "refused, not killed\n"), done.stderr
    finally:
        group.rmdir()


# ---- shm ---------------------------------------------------------------------------------------------------------


def add_shm(capacity: int = CAPACITY, **fields: Any) -> None:
    with NativeContext() as context:
        context.add_tier("shm", capacity, provider=abi.PROVIDER_SHM, **fields)


def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "tier"
    add_shm(path=os.fsencode(path))
    assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, CAPACITY)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tier"
    path.write_bytes(b"precious" * 1024)
    with pytest.raises(errors.NameTakenError, match=r"tier has 8192 bytes; expected 8388608, in whole pages"):
        add_shm(path=os.fsencode(path))
    assert path.read_bytes() == b"precious" * 1024


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "tier"
    path.write_bytes(bytes(CAPACITY))
    os.chown(path, 12345, 12345)
    with pytest.raises(errors.AccessDeniedError, match="belongs to user 12345"):
        add_shm(path=os.fsencode(path))


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tier").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.ArgumentError, match="symbolic link"):
        add_shm(path=os.fsencode(tmp_path / "tier"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError, match=r"tier 'shm': cannot open '.*/missing/tier'"):
        add_shm(path=os.fsencode(tmp_path / "missing" / "tier"))


def test_a_file_that_does_not_fit_its_file_system_is_not_left_behind() -> None:
    path = Path("/dev/shm") / f"emucxl-test-{os.getpid()}"
    if not os.access(path.parent, os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    with pytest.raises(errors.SystemMemoryError):
        add_shm(1 << 50, path=os.fsencode(path))
    assert not path.exists()


def test_descriptors_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(errors.ArgumentError, match="no regular file"):
            add_shm(fd=reading)
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(errors.ArgumentError, match="not open here"):
        add_shm(fd=1_000_000)
    (tmp_path / "file").write_bytes(bytes(CAPACITY))
    with (
        (tmp_path / "file").open("rb") as file,
        pytest.raises(errors.AccessDeniedError, match="reading and writing"),
    ):
        add_shm(fd=file.fileno())
    with (
        (tmp_path / "file").open("r+b") as file,
        pytest.raises(errors.ArgumentError, match="expected one of them"),
    ):
        add_shm(fd=file.fileno(), path=os.fsencode(tmp_path / "other"))
    with (
        (tmp_path / "file").open("r+b") as file,
        pytest.raises(errors.ArgumentError, match="give the file's size"),
    ):
        add_shm(2 * CAPACITY, fd=file.fileno())


def test_a_descriptor_stays_the_callers() -> None:
    fd = os.memfd_create("test")
    try:
        add_shm(fd=fd)
        assert os.fstat(fd).st_size == CAPACITY
    finally:
        os.close(fd)


def test_nobody_can_cut_a_memfd_short() -> None:
    with NativeContext() as context:
        context.add_tier("shm", CAPACITY, provider=abi.PROVIDER_SHM)
        with pytest.raises(PermissionError):
            os.ftruncate(context.info(0).fd, 4096)


KILLED_PROGRAM = """
import os, sys
from emucxl import abi
from support.native_context import MIB, NativeContext
context = NativeContext()
context.add_tier("shm", 8 * MIB, provider=abi.PROVIDER_SHM)
context.memset(context.alloc(0, MIB), 0, 1, MIB)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_nothing_of_its_memfds() -> None:
    before = set(os.listdir("/dev/shm"))
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "tier" in name or "context" in name]


def test_a_killed_process_gives_its_file_up(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "tier")
    program = KILLED_PROGRAM.replace("abi.PROVIDER_SHM", f"abi.PROVIDER_SHM, path={path!r}")
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(errors.InUseError):
            add_shm(path=path)
        child.send_signal(signal.SIGKILL)
    add_shm(path=path)


# ---- numa --------------------------------------------------------------------------------------------------------


def pages_by_node(base: int) -> dict[int, int]:
    """What the kernel says of the mapping at `base`, by another way than the library asks."""
    pages: dict[int, int] = {}
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        start = int(line.split()[0], 16)
        if base <= start < base + CAPACITY:
            for node, count in re.findall(r" N(\d+)=(\d+)", line):
                pages[int(node)] = pages.get(int(node), 0) + int(count)
    return pages


def test_pages_are_on_the_node_before_they_are_touched(memory: dict[str, Any]) -> None:
    if memory["provider"] != abi.PROVIDER_NUMA:
        return
    with NativeContext() as context:
        tier = context.add_tier("numa", CAPACITY, **memory)
        info = context.info(tier)
        assert info.numa_node == memory["numa_node"]
        context.alloc(tier, 4 * MIB)
        pages = pages_by_node(info.base)
        assert set(pages) == {info.numa_node}
        assert sum(pages.values()) >= 2  # huge ones, or 1,024 small ones


@pytest.mark.parametrize("node", [-1, 900, 5000])
def test_a_node_that_is_not_there_is_unavailable(node: int) -> None:
    with NativeContext() as context:
        pattern = rf"got NUMA node {node}; expected one that has memory: \d" if available_numa() else "numa"
        with pytest.raises(errors.UnavailableError, match=pattern):
            context.add_tier("numa", CAPACITY, provider=abi.PROVIDER_NUMA, numa_node=node)


def available_numa() -> bool:
    return provider_unavailable(abi.PROVIDER_NUMA) is None


# ---- dax ---------------------------------------------------------------------------------------------------------


def add_dax(path: Path | str, capacity: int = 0) -> None:
    with NativeContext() as context:
        context.add_tier("dax", capacity, provider=abi.PROVIDER_DAX, path=os.fsencode(path))


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(errors.NotFoundError, match=r"cannot open '/dev/dax99\.9'"):
        add_dax("/dev/dax99.9")


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.UnavailableError, match="a device that has no size in sysfs"):
        add_dax("/dev/null")
    with pytest.raises(errors.EmucxlError, match="cannot open"):
        add_dax(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(errors.ArgumentError, match="which is empty"):
        add_dax(tmp_path / "empty")
    with pytest.raises(errors.ArgumentError, match="got no path"), NativeContext() as context:
        context.add_tier("dax", CAPACITY, provider=abi.PROVIDER_DAX)


def test_a_device_has_no_more_than_its_size(tmp_path: Path) -> None:
    device = tmp_path / "dax"
    device.write_bytes(bytes(CAPACITY + 100))
    with pytest.raises(errors.ArgumentError, match=f"expected at most {CAPACITY}"):
        add_dax(device, CAPACITY + 1)
    add_dax(device, CAPACITY)
    add_dax(device)


# ---- regions of a pool -------------------------------------------------------------------------------------------


def test_poison_of_the_pool_is_met_through_the_tier(tmp_path: Path) -> None:
    with contextlib.ExitStack() as resources:
        fields = region(tmp_path, resources)
        context = resources.enter_context(NativeContext())
        tier = context.add_tier("pooled", 0, **fields)
        other = context.add_tier("other")
        assert context.info(tier).capacity_bytes == CAPACITY
        pointer = context.alloc(tier, MIB)
        offset = pointer - context.info(tier).base
        native.check(context.library.emx_region_poison(fields["region"], offset + 4096, 1))
        context.write(pointer, 0, bytes(4096))
        for call in (
            lambda: context.read(pointer, 4000, 200),
            lambda: context.write(pointer, 4096, b"x"),
            lambda: context.migrate(pointer, other),
        ):
            with pytest.raises(errors.PoisonedError):
                call()


def test_a_host_that_was_fenced_can_use_its_tier_no_more(tmp_path: Path) -> None:
    no_heartbeat = JoinConfig(flags=1, lease_ns=200_000_000)
    with contextlib.ExitStack() as resources:
        fields = region(tmp_path, resources, no_heartbeat)
        context = resources.enter_context(NativeContext())
        tier = context.add_tier("pooled", 0, **fields)
        pointer = context.alloc(tier, MIB)
        time.sleep(0.4)
        looker = c_void_p()  # somebody else who notices that the lease ran out
        native.check(context.library.emx_pool_open(os.fsencode(tmp_path / "pool"), 0, byref(looker)))
        resources.callback(context.library.emx_pool_close, looker)
        native.check(context.library.emx_pool_reclaim(looker, 0, None))
        for call in (
            lambda: context.read(pointer, 0, 8),
            lambda: context.write(pointer, 0, b"x"),
            lambda: context.alloc(tier, 8),
            lambda: context.resize(pointer, 2 * MIB),
        ):
            with pytest.raises(errors.FencedError):
                call()


def test_a_region_carries_one_tier_at_a_time(tmp_path: Path) -> None:
    with contextlib.ExitStack() as resources:
        fields = region(tmp_path, resources)
        with NativeContext() as context, NativeContext() as other:
            context.add_tier("pooled", 0, **fields)
            with pytest.raises(errors.InUseError, match="region 'tier' is in use by another tier"):
                other.add_tier("again", 0, **fields)
            context.close()
            other.add_tier("again", 0, **fields)


def test_a_tier_needs_a_region() -> None:
    with NativeContext() as context, pytest.raises(errors.ArgumentError, match="got no region"):
        context.add_tier("pooled", CAPACITY, provider=abi.PROVIDER_REGION)


# ---- others ------------------------------------------------------------------------------------------------------


def test_an_unknown_provider_is_an_error() -> None:
    with NativeContext() as context, pytest.raises(errors.ArgumentError, match="got provider 99"):
        context.add_tier("t", provider=99)
    assert provider_unavailable(99) == "there is no such provider"


def test_a_tier_of_addresses_alone_may_be_larger_than_memory() -> None:
    with NativeContext() as context:
        tier = context.add_tier("nowhere", 1 << 42, provider=abi.PROVIDER_NULL)
        pointer = context.alloc(tier, 1 << 40)
        assert context.read(pointer, (1 << 40) - 8, 8) == bytes(8)


@pytest.mark.parametrize(
    "provider", [abi.PROVIDER_ANON, abi.PROVIDER_SHM, abi.PROVIDER_NUMA, abi.PROVIDER_NULL]
)
def test_a_capacity_is_needed(provider: int) -> None:
    if provider_unavailable(provider) is not None:
        pytest.skip("unavailable here")
    with (
        NativeContext() as context,
        pytest.raises(errors.ArgumentError, match="got a capacity of 0 bytes for tier 't'"),
    ):
        context.add_tier("t", 0, provider=provider)


def test_raw_stores_reach_the_memory_that_calls_read() -> None:
    with NativeContext() as context:
        pointer = context.alloc(context.add_tier("local"), mmap.PAGESIZE)
        ctypes.memmove(pointer + 8, b"raw", 3)
        assert context.read(pointer, 8, 3) == b"raw"
