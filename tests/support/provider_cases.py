"""Every provider that a test can have here, as the fields of a tier's config."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import pytest

from emucxl import abi, native
from support.native_context import MIB, provider_unavailable

CAPACITY = 8 * MIB


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
