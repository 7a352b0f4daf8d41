"""Symmetric memory: buffers that every rank of a group has alike, and reaches in every other rank.

Thread safety: one thread at a time per rank.

Invariants:
  1. Every rank allocates the same sizes in the same order: an allocation is a collective.
  2. A buffer is zero when it is handed out, and lives as long as the `SymmetricMemory` it came from: a captured graph
     or a late peer may still reach it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import torch.distributed as dist


@dataclass(frozen=True, eq=False)
class SymmetricBuffer:
    """One allocation, as this rank sees it."""

    local: Tensor  # (size_bytes,) uint8: this rank's own
    addresses: tuple[int, ...]  # where this rank reaches each rank's, in rank order
    multicast: int  # the address that stands for all of them at once; 0 where the hardware has none
    table: Tensor  # (size,) int64 on the device: `addresses`

    def offset_of(self, tensor: Tensor) -> int | None:
        """Where in the buffer a contiguous tensor begins, or None when it is not within."""
        offset_bytes = tensor.data_ptr() - self.local.data_ptr()
        is_within = offset_bytes >= 0 and offset_bytes + tensor.nbytes <= self.local.nbytes
        return offset_bytes if is_within else None


class SymmetricMemory(ABC):
    """Where symmetric buffers of one group come from."""

    device: torch.device

    @abstractmethod
    def allocate(self, size_bytes: int) -> SymmetricBuffer:
        """A new buffer. The ranks must meet before one of them uses another's."""

    def mailbox(self) -> Tensor:
        """(2,) int64, zero, in host memory that a kernel on `device` reaches too."""
        return torch.zeros(2, dtype=torch.int64, pin_memory=self.device.type == "cuda")


class TorchSymmetricMemory(SymmetricMemory):
    """torch's own, over CUDA's virtual memory: devices of one host, or of one NVLink domain."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.device = device
        self._group_name = group.group_name
        self._kept: list[tuple[Tensor, Any]] = []

    def allocate(self, size_bytes: int) -> SymmetricBuffer:
        # Not its `empty`, which may place several tensors in one allocation: here each is mapped as one piece.
        from torch._C._distributed_c10d import _SymmetricMemory
        from torch.distributed._symmetric_memory import rendezvous

        local = _SymmetricMemory.empty_strided_p2p((size_bytes,), (1,), torch.uint8, self.device)
        local.zero_()
        handle = rendezvous(local, self._group_name)
        torch.cuda.synchronize(self.device)
        self._kept.append((local, handle))
        base = handle.buffer_ptrs[handle.rank]
        offset_bytes = local.data_ptr() - base
        addresses = tuple(address + offset_bytes for address in handle.buffer_ptrs)
        multicast = handle.multicast_ptr + offset_bytes if handle.multicast_ptr else 0
        table = torch.tensor(addresses, dtype=torch.int64, device=self.device)
        return SymmetricBuffer(local, addresses, multicast, table)
