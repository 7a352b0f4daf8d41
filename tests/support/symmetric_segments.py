"""Symmetric memory of processes on a CPU, and a `symm_mem` communicator over it whose kernels Triton interprets."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenweave.communicators.base import Communicator

REGION_BYTES = 8 << 20  # of one rank
ALIGNMENT_BYTES = 64


def join_interpreted(rank: int, size: int, fd: int, options: dict[str, Any]) -> Communicator:
    """Joins a group in the segment behind `fd`. Triton must not have been imported yet, or as an interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from torch import Tensor

    from emucxl.shared_memory import SharedSegment
    from tokenweave.communicators.symm_mem import SymmMemCommunicator
    from tokenweave.communicators.symmetric_memory import SymmetricBuffer, SymmetricMemory

    segment = SharedSegment.attach(fd, size * REGION_BYTES)
    os.close(fd)

    class SegmentMemory(SymmetricMemory):
        """Each rank's region is handed out from its beginning, alike on all ranks."""

        device = torch.device("cpu")

        def __init__(self) -> None:
            self._used_bytes = 0

        def allocate(self, size_bytes: int) -> SymmetricBuffer:
            begin = self._used_bytes
            self._used_bytes += -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            assert self._used_bytes <= REGION_BYTES
            addresses = tuple(segment.address + peer * REGION_BYTES + begin for peer in range(size))
            offset_bytes = rank * REGION_BYTES + begin
            local = torch.frombuffer(segment.buffer, dtype=torch.uint8, count=size_bytes, offset=offset_bytes)
            return SymmetricBuffer(local, addresses, 0, torch.tensor(addresses, dtype=torch.int64))

    class InterpretedCommunicator(SymmMemCommunicator):
        """Small limits, so that few rows already take every path."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, num_ctas=2, one_shot_tokens=3, **keywords)

        def _default_memory(self) -> SymmetricMemory:
            return SegmentMemory()

        def hurry(self, timeout_s: float) -> None:
            """From now on waits are as short as that: joining takes its time on a busy machine."""
            self.timeout_s = timeout_s
            self._meeting = replace(self._meeting, timeout_ns=int(timeout_s * 1e9))

        @property
        def pads(self) -> Tensor:
            """(num_ctas * size,) this rank's counters."""
            return self._pads.local.view(torch.int32)

    port = options.pop("port")
    return InterpretedCommunicator.connect(rank, size, "127.0.0.1", port, **options)
