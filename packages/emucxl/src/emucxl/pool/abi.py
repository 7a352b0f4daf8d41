"""The structures and calls of pool.h, as ctypes sees them; `emucxl.pool` is what programs use."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char, c_char_p, c_int, c_int32, c_uint32, c_uint64, c_void_p
from functools import cache

from emucxl import native

TAG_BYTES = 64
DIRECTORY = "/dev/shm"
PREFIX = "emucxl-pool-"

POOL_FORMAT, POOL_OVERWRITE, POOL_READ_ONLY = 1, 2, 4
JOIN_NO_HEARTBEAT, JOIN_FAULT_ON_FENCE = 1, 2
CARVE_PERSISTENT = 1
RECLAIM_KILL = 1


class PoolConfig(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("flags", c_uint32),
        ("size_bytes", c_uint64),
        ("extent_bytes", c_uint64),
        ("max_regions", c_uint32),
    )


class PoolInfo(ctypes.Structure):
    _fields_ = (
        ("uuid", c_char * 37),
        ("max_hosts", c_uint32),
        ("max_regions", c_uint32),
        ("file_bytes", c_uint64),
        ("extent_bytes", c_uint64),
        ("num_extents", c_uint64),
        ("free_extents", c_uint64),
        ("held_extents", c_uint64),
        ("retired_extents", c_uint64),
        ("poisoned_extents", c_uint64),
        ("created_ns", c_uint64),
        ("num_hosts", c_uint32),
        ("num_regions", c_uint32),
        ("num_poison_ranges", c_uint32),
    )


class RawHostInfo(ctypes.Structure):
    _fields_ = (
        ("slot", c_uint32),
        ("epoch", c_uint32),
        ("state", c_uint32),
        ("is_here", c_uint32),
        ("pid", c_uint64),
        ("start_time", c_uint64),
        ("lease_ns", c_uint64),
        ("quota_bytes", c_uint64),
        ("owned_bytes", c_uint64),
        ("silence_ns", c_uint64),
        ("heartbeats", c_uint64),
        ("name", c_char * TAG_BYTES),
    )


class RegionEntry(ctypes.Structure):
    _fields_ = (
        ("tag", c_char * TAG_BYTES),
        ("slot", c_uint32),
        ("state", c_uint32),
        ("persistent", c_uint32),
        ("sharing", c_uint32),
        ("owner", c_int32),
        ("num_extents", c_uint32),
        ("poisoned_extents", c_uint32),
        ("size_bytes", c_uint64),
        ("max_bytes", c_uint64),
        ("readers", c_uint64),
        ("writers", c_uint64),
    )


class RawPoisonRange(ctypes.Structure):
    _fields_ = (("offset", c_uint64), ("size_bytes", c_uint64))


class RawReclaimReport(ctypes.Structure):
    _fields_ = (
        ("fenced_hosts", c_uint32),
        ("freed_hosts", c_uint32),
        ("freed_regions", c_uint32),
        ("freed_extents", c_uint32),
        ("quarantined_hosts", c_uint32),
    )


class JoinConfig(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("flags", c_uint32),
        ("lease_ns", c_uint64),
        ("quota_bytes", c_uint64),
    )


class CarveConfig(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("flags", c_uint32),
        ("sharing", c_uint32),
        ("max_bytes", c_uint64),
    )


class RawRegionInfo(ctypes.Structure):
    _fields_ = (
        ("tag", c_char * 64),
        ("base", c_void_p),
        ("size_bytes", c_uint64),
        ("writable", c_uint32),
        ("epoch", c_uint32),
    )


_HANDLE = POINTER(c_void_p)

SIGNATURES: native.Signatures = {
    "emx_pool_create": (c_int, [c_char_p, POINTER(PoolConfig), _HANDLE]),
    "emx_pool_open": (c_int, [c_char_p, c_uint32, _HANDLE]),
    "emx_pool_close": (None, [c_void_p]),
    "emx_pool_get_info": (c_int, [c_void_p, POINTER(PoolInfo)]),
    "emx_pool_list_hosts": (c_int, [c_void_p, POINTER(RawHostInfo), c_uint32, POINTER(c_uint32)]),
    "emx_pool_list_regions": (c_int, [c_void_p, POINTER(RegionEntry), c_uint32, POINTER(c_uint32)]),
    "emx_pool_list_poison": (c_int, [c_void_p, POINTER(RawPoisonRange), c_uint32, POINTER(c_uint32)]),
    "emx_pool_poison": (c_int, [c_void_p, c_uint64, c_uint64]),
    "emx_pool_reclaim": (c_int, [c_void_p, c_uint32, POINTER(RawReclaimReport)]),
    "emx_pool_check": (c_int, [c_void_p]),
    "emx_pool_join": (c_int, [c_void_p, c_char_p, POINTER(JoinConfig), _HANDLE]),
    "emx_host_leave": (None, [c_void_p]),
    "emx_host_heartbeat": (c_int, [c_void_p]),
    "emx_host_get_info": (c_int, [c_void_p, POINTER(RawHostInfo)]),
    "emx_host_carve": (c_int, [c_void_p, c_char_p, c_uint64, POINTER(CarveConfig), _HANDLE]),
    "emx_host_open": (c_int, [c_void_p, c_char_p, c_bool, _HANDLE]),
    "emx_region_resize": (c_int, [c_void_p, c_uint64]),
    "emx_region_close": (None, [c_void_p]),
    "emx_region_release": (c_int, [c_void_p]),
    "emx_region_get_info": (c_int, [c_void_p, POINTER(RawRegionInfo)]),
    "emx_region_check_access": (c_int, [c_void_p, c_uint64, c_uint64, c_bool]),
    "emx_region_read": (c_int, [c_void_p, c_uint64, c_void_p, c_uint64]),
    "emx_region_write": (c_int, [c_void_p, c_uint64, c_void_p, c_uint64]),
    "emx_region_fill": (c_int, [c_void_p, c_uint64, c_int, c_uint64]),
    "emx_region_poison": (c_int, [c_void_p, c_uint64, c_uint64]),
}


@cache
def library() -> ctypes.CDLL:
    """The core, with the pool's calls declared."""
    loaded = native.load()
    native.declare(loaded, SIGNATURES)
    return loaded
