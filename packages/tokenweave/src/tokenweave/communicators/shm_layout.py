"""How large a segment a group needs. Imports no torch, so that a launcher can make one before anything heavy."""

from __future__ import annotations

from tokenweave.communicators.shm_abi import library
from tokenweave.errors import CommunicatorError

# One rank's buffer, of which it has two. All slots of a small group together stay well inside the last-level cache,
# and a chunk is long enough (tens of microseconds) to hide the cost of its step.
SLOT_BYTES = 256 * 1024


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
