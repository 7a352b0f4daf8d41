"""The providers shm, dax and region: the behaviour that they do not share with the others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import pytest

from emucxl import abi, errors, native
from support.native_context import MIB, NativeContext
from support.provider_cases import (
    CAPACITY,
    join_config,
    region,
)

ROOT = Path(__file__).parents[3]

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


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
@pytest.mark.parametrize("provider", [abi.PROVIDER_SHM, abi.PROVIDER_DAX])
def test_a_file_that_others_may_write_to_is_refused(provider: int, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "tier"
    path.write_bytes(b"precious" * 1024)
    path.chmod(mode)
    with NativeContext() as context:
        with pytest.raises(errors.AccessDeniedError, match=f"mode {mode:o}, so that others may write to it"):
            context.add_tier("t", 0, provider=provider, path=os.fsencode(path))
        path.chmod(0o644)
        context.add_tier("t", 0, provider=provider, path=os.fsencode(path))


def test_a_link_to_a_file_does_not_stand_in_for_a_device(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious" * 1024)
    (tmp_path / "dax").symlink_to(tmp_path / "victim")
    with (
        NativeContext() as context,
        pytest.raises(errors.ArgumentError, match="symbolic link to no device; expected the file itself"),
    ):
        context.add_tier("t", 0, provider=abi.PROVIDER_DAX, path=os.fsencode(tmp_path / "dax"))
    assert (tmp_path / "victim").read_bytes() == b"precious" * 1024


def test_a_link_to_a_device_is_followed(tmp_path: Path) -> None:
    (tmp_path / "dax").symlink_to("/dev/null")
    with (
        NativeContext() as context,
        pytest.raises(errors.UnavailableError, match="a device that has no size"),
    ):
        context.add_tier("t", 0, provider=abi.PROVIDER_DAX, path=os.fsencode(tmp_path / "dax"))


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
    no_heartbeat = join_config(flags=1, lease_ns=200_000_000)
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
