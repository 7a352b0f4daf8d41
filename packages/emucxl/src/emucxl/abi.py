"""The structures and calls of context.h and timing.h, as ctypes sees them.

For emucxl's own modules and their tests; `emucxl.Context` and its kin are what programs use. The names are those of the
headers without their prefix: `emx_tier_info` is `RawTierInfo` here. tests/test_abi.py holds the layouts to the C
compiler's.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_double, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache

from emucxl import native

MAX_TIERS = 16
NAME_BYTES = 32
MAX_CURVE_POINTS = 8

CLOCK_REAL, CLOCK_VIRTUAL = 0, 1
PROVIDER_ANON, PROVIDER_SHM, PROVIDER_NUMA, PROVIDER_DAX, PROVIDER_NULL, PROVIDER_REGION = range(6)
READ, WRITE = 0, 1


class SizedStructure(ctypes.Structure):
    """A structure that begins with `struct_bytes`, which is filled in."""

    def __init__(self, *arguments: object, **fields: object) -> None:
        super().__init__(*arguments, **fields)
        self.struct_bytes = ctypes.sizeof(self)


class RawCurvePoint(ctypes.Structure):
    _fields_ = (("utilisation", c_double), ("latency_factor", c_double))


class RawTiming(ctypes.Structure):
    _fields_ = (
        ("read_latency_ns", c_double),
        ("write_latency_ns", c_double),
        ("read_bandwidth_gbps", c_double),
        ("write_bandwidth_gbps", c_double),
        ("hop_latency_ns", c_double),
        ("switch_hops", c_uint32),
        ("num_curve_points", c_uint32),
        ("curve", RawCurvePoint * MAX_CURVE_POINTS),
    )


class RawLinkConfig(SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("full_duplex", c_uint32),
        ("read_bandwidth_gbps", c_double),
        ("write_bandwidth_gbps", c_double),
        ("latency_ns", c_double),
    )


class RawLinkStats(ctypes.Structure):
    _fields_ = (
        ("read_bytes", c_uint64),
        ("write_bytes", c_uint64),
        ("read_transfers", c_uint64),
        ("write_transfers", c_uint64),
        ("read_busy_ns", c_uint64),
        ("write_busy_ns", c_uint64),
        ("queued_ns", c_uint64),
        ("read_utilisation", c_double),
        ("write_utilisation", c_double),
    )


class RawCalibration(SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("num_cores", c_uint32),
        ("read_latency_ns", c_double),
        ("write_latency_ns", c_double),
        ("read_bandwidth_gbps", c_double),
        ("write_bandwidth_gbps", c_double),
        ("clock_overhead_ns", c_double),
        ("sleep_overshoot_ns", c_double),
        ("exit_overhead_ns", c_double),
        ("latency_error", c_double),
        ("least_latency_ns", c_double),
    )


class ContextConfig(SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("clock", c_uint32),
        ("calibration", POINTER(RawCalibration)),
    )


class TierConfig(SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("provider", c_uint32),
        ("name", c_char_p),
        ("capacity_bytes", c_uint64),
        ("path", c_char_p),
        ("fd", c_int32),
        ("numa_node", c_int32),
        ("region", c_void_p),
        ("link", c_void_p),
        ("timing", RawTiming),
    )


class RawTierInfo(ctypes.Structure):
    _fields_ = (
        ("name", c_char * NAME_BYTES),
        ("provider", c_uint32),
        ("numa_node", c_int32),
        ("capacity_bytes", c_uint64),
        ("base", c_void_p),
        ("fd", c_int32),
        ("modelled", c_uint32),
        ("timing", RawTiming),
    )


class RawTierStats(ctypes.Structure):
    _fields_ = (
        ("capacity_bytes", c_uint64),
        ("allocated_bytes", c_uint64),
        ("reserved_bytes", c_uint64),
        ("num_allocations", c_uint64),
        ("total_allocations", c_uint64),
        ("peak_reserved_bytes", c_uint64),
        ("read_bytes", c_uint64),
        ("write_bytes", c_uint64),
        ("read_accesses", c_uint64),
        ("write_accesses", c_uint64),
        ("delayed_ns", c_uint64),
        ("poisoned_bytes", c_uint64),
    )


class RawAllocation(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("size_bytes", c_uint64), ("offset", c_uint64), ("tier", c_uint32))


class Access(ctypes.Structure):
    _fields_ = (("pointer", c_void_p), ("offset", c_size_t), ("buffer", c_void_p), ("size_bytes", c_size_t))


CONTEXT_SIGNATURES: native.Signatures = {
    "emx_context_open": (c_int, [POINTER(ContextConfig), POINTER(c_void_p)]),
    "emx_context_close": (None, [c_void_p]),
    "emx_context_set_calibration": (c_int, [c_void_p, POINTER(RawCalibration)]),
    "emx_context_now_ns": (c_uint64, [c_void_p]),
    "emx_context_advance": (None, [c_void_p, c_uint64]),
    "emx_context_check": (c_int, [c_void_p]),
    "emx_provider_unavailable": (c_char_p, [c_int]),
    "emx_tier_add": (c_int, [c_void_p, POINTER(TierConfig), POINTER(c_uint32)]),
    "emx_tier_count": (c_uint32, [c_void_p]),
    "emx_tier_get_info": (c_int, [c_void_p, c_uint32, POINTER(RawTierInfo)]),
    "emx_tier_get_stats": (c_int, [c_void_p, c_uint32, POINTER(RawTierStats)]),
    "emx_tier_trim": (c_int, [c_void_p, c_uint32]),
    "emx_alloc": (c_int, [c_void_p, c_uint32, c_size_t, c_size_t, POINTER(c_void_p)]),
    "emx_free": (c_int, [c_void_p, c_void_p]),
    "emx_resize": (c_int, [c_void_p, c_void_p, c_size_t, POINTER(c_void_p)]),
    "emx_migrate": (c_int, [c_void_p, c_void_p, c_uint32, POINTER(c_void_p)]),
    "emx_query": (c_int, [c_void_p, c_void_p, POINTER(RawAllocation)]),
    "emx_read": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t]),
    "emx_write": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t]),
    "emx_memset": (c_int, [c_void_p, c_void_p, c_size_t, c_int, c_size_t]),
    "emx_copy": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_size_t]),
    "emx_read_batch": (c_int, [c_void_p, POINTER(Access), c_size_t]),
    "emx_write_batch": (c_int, [c_void_p, POINTER(Access), c_size_t]),
    "emx_poison": (c_int, [c_void_p, c_uint32, c_void_p, c_size_t]),
}

TIMING_SIGNATURES: native.Signatures = {
    "emx_link_create": (c_int, [POINTER(RawLinkConfig), POINTER(c_void_p)]),
    "emx_link_attach": (c_int, [c_int, POINTER(c_void_p)]),
    "emx_link_open": (c_int, [c_char_p, POINTER(RawLinkConfig), POINTER(c_void_p)]),
    "emx_link_fd": (c_int, [c_void_p]),
    "emx_link_close": (None, [c_void_p]),
    "emx_link_get_config": (c_int, [c_void_p, POINTER(RawLinkConfig)]),
    "emx_link_get_stats": (c_int, [c_void_p, POINTER(RawLinkStats)]),
    "emx_link_reserve": (c_int, [c_void_p, c_int, c_uint64, c_uint64, POINTER(c_uint64)]),
    "emx_now_ns": (c_uint64, []),
    "emx_wait_until": (None, [c_uint64]),
    "emx_calibrate": (c_int, [c_uint64, POINTER(RawCalibration)]),
    "emx_check_timing": (c_int, [POINTER(RawCalibration), POINTER(RawTiming)]),
}

SIGNATURES: native.Signatures = {**CONTEXT_SIGNATURES, **TIMING_SIGNATURES}


@cache
def load() -> ctypes.CDLL:
    """The native core with the calls of this module declared.

    Raises:
        UnavailableError: it cannot be loaded, or is of another version.
    """
    library = native.load()
    native.declare(library, SIGNATURES)
    return library
