"""Ranks as threads of one process on GPUs: `all_reduce_rms_norm` is one kernel, the rest is done as for any threads.

For measuring, where a process for each rank would be more than is needed: the kernels are those of `symm_mem`, by peer
pointers and in one shot. No GPU has run it yet.

Thread safety: one thread and one stream for each rank.

Invariants:
  1. All ranks that share a device run at once, on streams of their own: `num_ctas` of each must fit on it together.
  2. The host does not wait for a device, save to allocate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenweave.communicators.base import DEFAULT_TIMEOUT_S
from tokenweave.communicators.fused_checks import check_fused
from tokenweave.communicators.partial_ring import PartialRing, ring_bytes
from tokenweave.communicators.symm_mem import ONE_SHOT_TOKENS
from tokenweave.communicators.symmetric_memory import SymmetricBuffer, SymmetricMemory
from tokenweave.communicators.thread import Rendezvous, ThreadCommunicator
from tokenweave.errors import CommunicatorError, CommunicatorTimeout
from tokenweave.kernels.cuda.sharing import (
    SAID,
    CtaTable,
    Meeting,
    Said,
    pads_bytes,
    shard,
    slots_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenweave.kernels import ResidualNorms


class ThreadSymmetricMemory(SymmetricMemory):
    """Memory of the devices of one process. `exchange` gives every rank's address, in rank order, for this rank's."""

    def __init__(self, device: torch.device, exchange: Callable[[Tensor], list[Tensor]]) -> None:
        self.device, self._exchange = device, exchange

    def allocate(self, size_bytes: int) -> SymmetricBuffer:
        local = torch.zeros(size_bytes, dtype=torch.uint8, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        ranks = self._exchange(local)
        for other in ranks:
            local[:1].copy_(
                other[:1]
            )  # torch lets devices reach each other when it first copies; both are zero
        addresses = tuple(tensor.data_ptr() for tensor in ranks)
        table = torch.tensor(addresses, dtype=torch.int64, device=self.device)
        return SymmetricBuffer(local, addresses, 0, table)


class FusedThreadCommunicator(ThreadCommunicator):
    """One thread's end of a group on GPUs. Channel: the devices' memory (the fused operation), the process's."""

    name = "fused_threads"
    _meeting: Meeting

    def open(self, device: torch.device, num_ctas: int) -> None:
        """Takes its place on `device`, with at most `num_ctas` CTAs to a call: a collective, due before all others."""
        self.device = device
        self._memory = ThreadSymmetricMemory(device, self._tensors_of_all)
        self._ring: PartialRing | None = None
        self._buffers: list[SymmetricBuffer] = []
        self._slots: dict[int, SymmetricBuffer] = {}  # by the bytes of a row
        mailbox = self._memory.mailbox()
        self._letters = mailbox.numpy()
        self._pads = self._allocate(pads_bytes(self.size, num_ctas))
        self._meeting = Meeting(
            rank=self.rank,
            size=self.size,
            num_ctas=num_ctas,
            pads=self._pads.table,
            epochs=torch.zeros(num_ctas, dtype=torch.int32, device=device),
            failed=torch.zeros(1, dtype=torch.int32, device=device),
            mailbox=mailbox,
            timeout_ns=int(self.timeout_s * 1e9),
            table=CtaTable.always(num_ctas),
        )

    def use_ctas(self, num_ctas: int) -> None:
        """Has later calls that share rows out take so many CTAs. Every rank says it between the same two calls."""
        if num_ctas > self._meeting.num_ctas:
            raise CommunicatorError(f"got {num_ctas} CTAs; there are counters for {self._meeting.num_ctas}")
        self._meeting = replace(self._meeting, table=CtaTable.always(num_ctas))

    def reserve_activations(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().reserve_activations(num_tokens, hidden_size, dtype)
        buffer = self._allocate(ring_bytes(num_tokens, hidden_size, dtype))
        self._ring = PartialRing(buffer)
        row_bytes = hidden_size * dtype.itemsize
        rows = -(-ONE_SHOT_TOKENS // self._meeting.num_ctas)
        self._slots[row_bytes] = self._allocate(
            slots_bytes(self.size, self._meeting.num_ctas, rows, row_bytes)
        )

    def begin_pass(self) -> None:
        if self._ring is not None:
            self._ring.begin_pass()

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """In the ring of `reserve_activations`, where it has to fit."""
        if self._ring is None or not self._ring.fits(num_tokens, hidden_size, dtype):
            raise CommunicatorError(
                f"got a partial sum of ({num_tokens}, {hidden_size}); expected one that was reserved"
            )
        return self._ring.new_partial(num_tokens, hidden_size, dtype)

    def new_residual(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """The rows that this rank owns, and no others."""
        own = self.owned_rows(num_tokens, hidden_size, dtype)
        return torch.zeros((len(own), hidden_size), device=self.device)

    def owned_rows(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> range:
        if not self.is_residual_sharded(num_tokens, hidden_size, dtype):
            return range(num_tokens)
        return shard(num_tokens, self.rank, self.size)

    def is_residual_sharded(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        return num_tokens > ONE_SHOT_TOKENS

    def all_reduce_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        """As for every communicator, on a tensor of `new_partial`. Returns when it is queued.

        Raises:
            CommunicatorTimeout: another rank did not come to an earlier call.
        """
        from tokenweave.kernels.cuda import launch  # not above: triton is an extra of its own

        num_tokens, hidden_size = hidden.shape
        check_fused(
            self.device,
            len(self.owned_rows(num_tokens, hidden_size, hidden.dtype)),
            hidden,
            residual,
            norms,
        )
        self._raise_if_failed()
        meeting = self._meeting
        if num_tokens <= ONE_SHOT_TOKENS:
            rows_per_cta = -(-ONE_SHOT_TOKENS // meeting.num_ctas)
            slots = self._slots[hidden_size * hidden.itemsize].table
            launch.in_one_shot(meeting, slots, rows_per_cta, hidden, residual, norms)
            return hidden
        for buffer in self._buffers:
            offset_bytes = buffer.offset_of(hidden)
            if offset_bytes is not None:
                launch.by_peers(meeting, buffer.table, offset_bytes, hidden, residual, norms)
                return hidden
        raise CommunicatorError(
            "got rows outside the memory that ranks share; expected a tensor of new_partial"
        )

    def _raise_if_failed(self) -> None:
        said = Said.of(int(self._letters[SAID]))
        if said is not None:
            message = (
                f"rank {self.rank} waited {self.timeout_s:g} s in all_reduce_rms_norm for rank {said.rank}"
            )
            self.abort(message)
            raise CommunicatorTimeout(message)

    def _tensors_of_all(self, tensor: Tensor) -> list[Tensor]:
        met: dict[int, Any] = self._meet("allocate", tensor, range(self.size), self.timeout_s)
        return [met[rank] for rank in range(self.size)]

    def _allocate(self, size_bytes: int) -> SymmetricBuffer:
        """Returns when every rank's buffer is there, and zero."""
        buffer = self._memory.allocate(size_bytes)
        self._buffers.append(buffer)  # as long as any rank may reach it
        self.barrier()
        return buffer


def fused_thread_group(size: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[FusedThreadCommunicator]:
    """The `size` ends of one group, to be handed to as many threads; each calls `open` on its end first."""
    rendezvous = Rendezvous(size)
    return [FusedThreadCommunicator(rendezvous, rank, timeout_s=timeout_s) for rank in range(size)]
