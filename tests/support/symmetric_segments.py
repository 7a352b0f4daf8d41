"""A `symm_mem` communicator of processes on a CPU: its memory is a segment, and Triton interprets its kernels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenweave.communicators.base import Communicator

REGION_BYTES = 8 << 20  # of one rank


def join_interpreted(rank: int, size: int, fd: int, options: dict[str, Any]) -> Communicator:
    """Joins a group in the segment behind `fd`. Triton must not have been imported yet, or as an interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    from emucxl.shared_memory import SharedSegment
    from support.interpreted_ranks import InterpretedCommunicator, SegmentMemory

    segment = SharedSegment.attach(fd, size * REGION_BYTES)
    os.close(fd)
    InterpretedCommunicator.memory = SegmentMemory(segment, rank, size, REGION_BYTES)
    port = options.pop("port")
    try:
        return InterpretedCommunicator.connect(rank, size, "127.0.0.1", port, **options)
    finally:
        del InterpretedCommunicator.memory  # from here on the communicator alone keeps the segment
