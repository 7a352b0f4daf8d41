"""SegmentMemory and InterpretedCommunicator. Importing this imports Triton: set TRITON_INTERPRET before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from emucxl.shared_memory import SharedSegment
from tokenweave.communicators.symm_mem import SymmMemCommunicator
from tokenweave.communicators.symmetric_memory import SymmetricBuffer, SymmetricMemory

ALIGNMENT_BYTES = 64
NUM_CTAS = 2


class SegmentMemory(SymmetricMemory):
    """Symmetric memory in one segment. Each rank's region is handed out from its beginning, alike on all ranks."""

    device = torch.device("cpu")

    def __init__(self, segment: SharedSegment, rank: int, size: int, region_bytes: int) -> None:
        self._segment, self._rank, self._size, self._region_bytes = segment, rank, size, region_bytes
        self._used_bytes = 0

    def allocate(self, size_bytes: int) -> SymmetricBuffer:
        begin = self._used_bytes
        self._used_bytes += -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        assert self._used_bytes <= self._region_bytes
        starts = [peer * self._region_bytes + begin for peer in range(self._size)]
        addresses = tuple(self._segment.address + start for start in starts)
        local = torch.frombuffer(
            self._segment.buffer, dtype=torch.uint8, count=size_bytes, offset=starts[self._rank]
        )
        return SymmetricBuffer(local, addresses, 0, torch.tensor(addresses, dtype=torch.int64))


class InterpretedCommunicator(SymmMemCommunicator):
    """A communicator with small limits, so that few rows already take every path."""

    memory: ClassVar[SegmentMemory]  # of this process, which is one rank

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, memory=self.memory, num_ctas=NUM_CTAS, one_shot_tokens=3, **keywords)

    def hurry(self, timeout_s: float) -> None:
        """Makes waits as short as that from now on: joining takes its time on a busy machine."""
        self.timeout_s = timeout_s
        self._meeting = replace(self._meeting, timeout_ns=int(timeout_s * 1e9))

    @property
    def pads(self) -> Tensor:
        """(num_ctas * 2 * size,) this rank's counters."""
        return self._pads.local.view(torch.int32)
