"""Every provider that a test can have here, as the fields of a tier's config."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from ctypes import byref, c_void_p, sizeof
from pathlib import Path
from typing import Any

import pytest

from emucxl import abi, native
from emucxl.pool import abi as pool_abi
from support.native_context import MIB, provider_unavailable

CAPACITY = 8 * MIB


def join_config(**fields: int) -> pool_abi.JoinConfig:
    return pool_abi.JoinConfig(struct_bytes=sizeof(pool_abi.JoinConfig), **fields)


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


def region(
    tmp_path: Path, resources: contextlib.ExitStack, join: pool_abi.JoinConfig | None = None
) -> dict[str, Any]:
    library = pool_abi.library()
    config = pool_abi.PoolConfig(struct_bytes=sizeof(pool_abi.PoolConfig), size_bytes=2 * CAPACITY)
    pool, host, carved = c_void_p(), c_void_p(), c_void_p()
    path = os.fsencode(tmp_path / "pool")
    native.check(library.emx_pool_create(path, byref(config), byref(pool)))
    resources.callback(library.emx_pool_close, pool)
    native.check(library.emx_pool_join(pool, b"tester", join and byref(join), byref(host)))
    resources.callback(library.emx_host_leave, host)
    native.check(library.emx_host_carve(host, b"tier", CAPACITY, None, byref(carved)))
    resources.callback(library.emx_region_close, carved)
    return {"provider": abi.PROVIDER_REGION, "region": carved.value}


Maker = Callable[[Path, contextlib.ExitStack], dict[str, Any]]

MAKERS: tuple[Maker, ...] = (
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
