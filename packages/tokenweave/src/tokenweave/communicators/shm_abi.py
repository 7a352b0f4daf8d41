"""The native shared-memory collectives as ctypes sees them (native/include/tokenweave.h), and the segment they need.

Imports no torch, so that a launcher can make a segment before anything heavy is loaded.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Final

from tokenweave.errors import CommunicatorError
from tokenweave.native import load

OK: Final = 0
ERROR_TIMEOUT: Final = -4
ERROR_ABORTED: Final = -5
ERROR_MISMATCH: Final = -6

# One rank's buffer, of which it has two. All slots of a small group together stay well inside the last-level cache,
# and a chunk is long enough (tens of microseconds) to hide the cost of its step.
SLOT_BYTES = 256 * 1024


class Options(ctypes.Structure):
    """tw_shm_options."""

    _fields_ = [
        ("rank", c_int32),
        ("size", c_int32),
        ("slot_bytes", c_uint64),
        ("timeout_ns", c_int64),
        ("spin_ns", c_int64),
    ]


@cache
def library() -> ctypes.CDLL:
    """The native library with the signatures of the collectives declared."""
    native = load()
    reduce_norm_rows = [
        *(c_void_p, c_void_p, c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_void_p),
        *(c_int64, c_int64, c_int, c_int),
    ]
    signatures = {
        "segment_bytes": (c_size_t, [c_int, c_size_t]),
        "attach": (c_int, [c_void_p, c_size_t, c_int, POINTER(Options), POINTER(c_void_p)]),
        "detach": (None, [c_void_p]),
        "barrier": (c_int, [c_void_p]),
        "all_reduce": (c_int, [c_void_p, c_void_p, c_size_t, c_int]),
        "all_gather": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t]),
        "gather_columns": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t, POINTER(c_size_t), c_int]),
        "broadcast": (c_int, [c_void_p, c_void_p, c_size_t, c_int]),
        "all_reduce_rms_norm": (c_int, reduce_norm_rows),
        "reduce_norm_begin": (c_int, [c_void_p, c_size_t, c_size_t, c_int]),
        "reduce_norm_rows": (c_int, reduce_norm_rows),
        "reduce_norm_end": (c_int, [c_void_p, c_size_t, c_size_t, c_int]),
        "owned_rows": (None, [c_int, c_int, c_int64, POINTER(c_int64), POINTER(c_int64)]),
        "send_bytes": (c_int, [c_void_p, c_char_p, c_size_t, c_int]),
        "receive_begin": (c_int, [c_void_p, c_int, c_int, POINTER(c_uint64)]),
        "receive_rest": (c_int, [c_void_p, c_int, c_void_p]),
        "set_spin": (c_int, [c_void_p, c_int64]),
        "check": (c_int, [c_void_p]),
        "abort": (c_int, [c_void_p, c_int, c_char_p]),
        "last_error": (c_int, [c_void_p, c_char_p, c_size_t]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(native, f"tw_shm_{name}")
        function.restype, function.argtypes = result, arguments
    return native


def segment_bytes(size: int, slot_bytes: int = SLOT_BYTES) -> int:
    """Bytes of the shared segment in which a group of `size` ranks meets.

    Raises:
        CommunicatorError: a size or slot size that cannot be.
        NativeError: the native library cannot be loaded.
    """
    needed = int(library().tw_shm_segment_bytes(size, slot_bytes)) if size > 0 and slot_bytes > 0 else 0
    if needed == 0:
        raise CommunicatorError(
            f"got size={size}, slot_bytes={slot_bytes}; expected 1 to 64 ranks and a positive multiple of 4096 bytes"
        )
    return needed
