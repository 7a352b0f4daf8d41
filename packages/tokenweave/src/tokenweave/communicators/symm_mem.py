"""Ranks on GPUs that reach each other's memory: `all_reduce_rms_norm` is one kernel, the rest is torch.distributed's.

Thread safety: one thread at a time per rank, and one stream for all calls; `abort` may be called from any thread.

Invariants:
  1. `all_reduce_rms_norm` queues work on the current stream and returns: it never waits for the device. Once `prepare`
     has run for the hidden size, dtype and number of tokens it allocates nothing, and a CUDA graph can capture it.
  2. Every wait of a kernel ends within `timeout_s`, counted from when it began to wait. The kernels that are queued
     behind a failed one end at once and write nothing. Results count only after a later call, or `synchronize`, has
     returned without raising.
  3. Counters and slots are new with each communicator: nothing that an aborted one left behind is ever read.
  4. Ranks that call with different numbers of tokens, or of CTAs, find it out when their kernels meet: each raises
     `CollectiveMismatch`. A call of no tokens launches nothing, so ranks that meet nobody then time out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from tokenweave.communicators.activation_ring import BuffersTaken
from tokenweave.communicators.base import DEFAULT_TIMEOUT_S
from tokenweave.communicators.fused_checks import check_fused
from tokenweave.communicators.partial_ring import PartialRing, ring_bytes
from tokenweave.communicators.symmetric_memory import SymmetricBuffer, SymmetricMemory, TorchSymmetricMemory
from tokenweave.communicators.torch import TorchCommunicator
from tokenweave.errors import CollectiveMismatch, CommunicatorError, CommunicatorTimeout, RankError
from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.cuda.sharing import (
    ABORT,
    SAID,
    VECTOR_BYTES,
    VECTOR_ELEMENTS,
    CtaTable,
    Meeting,
    Said,
    describe,
    pads_bytes,
    shard,
    slots_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch._C._distributed_c10d import Store

    from tokenweave.kernels import Kernels

NUM_CTAS = 16  # what the paper's kernel needs to saturate NVLink; not measured here
ONE_SHOT_TOKENS = (
    16  # up to so many tokens a second barrier is taken to cost more than it saves; not measured here
)
MAX_RANKS = 72  # of one NVLink domain


class SymmMemCommunicator(TorchCommunicator):
    """One rank of a group on GPUs. Channel: symmetric memory (the fused operation), the group (everything else).

    All ranks must be given the same `num_ctas` and `one_shot_tokens`, and must agree in each call on whether `hidden`
    lies in memory of `new_partial` or `symmetric_empty`, and where. The group may be one of "nccl" alone, or of
    "cpu:gloo,cuda:nccl".
    """

    name = "symm_mem"
    _meeting: Meeting

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        control_group: dist.ProcessGroup | None = None,
        *,
        store: Store | None = None,
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        check_calls: bool = True,
        memory: SymmetricMemory | None = None,
        num_ctas: int | CtaTable = NUM_CTAS,
        one_shot_tokens: int = ONE_SHOT_TOKENS,
    ) -> None:
        """As for `TorchCommunicator`. `memory` is torch's on the current device unless given.

        `num_ctas`: how many CTAs a call takes, or a table of it by tokens. There are counters for the most of them:
        `use_ctas` chooses among these later.
        """
        super().__init__(
            group,
            control_group,
            store=store,
            kernels=kernels,
            timeout_s=timeout_s,
            check_calls=check_calls,
        )
        if one_shot_tokens < 0 or self.size > MAX_RANKS:
            raise CommunicatorError(
                f"got one_shot_tokens={one_shot_tokens} and {self.size} ranks; expected at least 0 and at most "
                f"{MAX_RANKS}"
            )
        self.one_shot_tokens = one_shot_tokens
        self._memory = memory if memory is not None else self._default_memory()
        self._buffers: list[SymmetricBuffer] = []
        self._staging: SymmetricBuffer | None = None
        self._slots: dict[int, SymmetricBuffer] = {}  # by the bytes of a row
        self._ring: PartialRing | None = None
        self._meet_through(num_ctas if isinstance(num_ctas, CtaTable) else CtaTable.always(num_ctas))

    def all_reduce_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        """As for every communicator; the normed rows replace those of `hidden`, which is returned.

        hidden: (num_tokens, hidden_size) float32, bfloat16 or float16 on the communicator's device. Up to
        `one_shot_tokens` rows may lie anywhere; more are copied to symmetric memory and back, unless they lie in a
        tensor of `new_partial` or `symmetric_empty` (or are rows of one). residual: all rows, or `owned_rows` alone;
        it begins at a multiple of 16 bytes. Sums are float32 and in rank order, unless the switch adds.

        Raises:
            CommunicatorError: bad arguments, or memory would have to be allocated while a graph is captured.
            CollectiveMismatch, CommunicatorTimeout, RankError: an earlier call failed.
        """
        num_tokens, hidden_size = hidden.shape if hidden.dim() == 2 else (0, 0)
        owned = self.owned_rows(num_tokens, hidden_size, hidden.dtype)
        check_fused(self.device, len(owned), hidden, residual, norms)
        self._count_call()  # nothing is compared: the host does not wait for the other ranks
        if num_tokens == 0 or hidden_size == 0:
            return hidden
        with self._on_device():
            if num_tokens <= self.one_shot_tokens:
                self._in_one_shot(hidden, residual, norms)
            else:
                self._by_owners(hidden, residual, norms)
        self._kept.keep(hidden, residual)
        self._raise_if_failed()
        return hidden

    @property
    def device(self) -> torch.device:
        """Where the tensors of the fused operation are."""
        return self._memory.device

    def owned_rows(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> range:
        """All of them up to `one_shot_tokens`; above, this rank's share, `num_tokens / size` neighbours or one more."""
        if not self.is_residual_sharded(num_tokens, hidden_size, dtype):
            return range(num_tokens)
        return shard(num_tokens, self.rank, self.size)

    def is_residual_sharded(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        return num_tokens > self.one_shot_tokens

    def use_ctas(self, num_ctas: int | CtaTable) -> None:
        """Has later calls that share rows out take so many CTAs, or those of a table; at most the constructor's most.

        For a tuner, and for who has its table. Every rank says it between the same two calls; where they differ a call
        raises `CollectiveMismatch`. Calls in one shot do not follow it.
        """
        table = num_ctas if isinstance(num_ctas, CtaTable) else CtaTable.always(num_ctas)
        if table.most > self._meeting.num_ctas:
            raise CommunicatorError(
                f"got {table.most} CTAs; this communicator was made with counters for {self._meeting.num_ctas}"
            )
        self._meeting = replace(self._meeting, table=table)

    def reserve_activations(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().reserve_activations(num_tokens, hidden_size, dtype)
        if self._ring is None or not self._ring.fits(num_tokens, hidden_size, dtype):
            buffer = self._allocate(ring_bytes(num_tokens, hidden_size, dtype))
            self._buffers.insert(0, buffer)  # where a reduction looks first
            self._ring = PartialRing(buffer)

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """In the ring of `reserve_activations`, if it fits there; else a tensor of the device."""
        if self._ring is None or not self._ring.fits(num_tokens, hidden_size, dtype):
            return torch.empty((num_tokens, hidden_size), dtype=dtype, device=self.device)
        return self._ring.new_partial(num_tokens, hidden_size, dtype)

    def begin_pass(self) -> None:
        if self._ring is not None:
            self._ring.begin_pass()

    @property
    def buffers_taken(self) -> BuffersTaken:
        return BuffersTaken() if self._ring is None else self._ring.taken

    def take_buffers(self, num: BuffersTaken) -> None:
        if self._ring is not None:
            self._ring.take(num)

    def call_sites(self) -> None:
        """None: a pass over it is captured as a CUDA graph, not call by call."""

    def symmetric_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor that `all_reduce_rms_norm` takes without a copy; a collective. It lives as long as the communicator.

        Let the GEMM before write straight into it (`torch.mm(..., out=)`).
        """
        self._check_usable()
        num_elements = torch.Size(shape).numel()
        buffer = self._allocate(max(num_elements * dtype.itemsize, VECTOR_BYTES))
        self._buffers.append(buffer)
        return buffer.local[: num_elements * dtype.itemsize].view(dtype).view(*shape)

    def prepare(self, hidden_size: int, dtype: torch.dtype, max_tokens: int, *norms: ResidualNorms) -> None:
        """Allocates and compiles what calls of up to `max_tokens` rows need: a collective, due before a capture.

        A kernel is compiled for each combination of weights that `norms` have. With none given there is a `weight` and
        no `post_weight`.
        """
        norms = norms or (ResidualNorms(torch.ones(hidden_size, dtype=dtype, device=self.device), 1.0),)
        each = {tuple(example.weights): example for example in norms}.values()
        for num_tokens in sorted({min(max_tokens, self.one_shot_tokens), max_tokens}):
            for example in each:
                self._reduce_zeros(num_tokens, hidden_size, dtype, example)
        self.synchronize()

    def synchronize(self) -> None:
        """Waits for what is queued on the current stream.

        Raises:
            CommunicatorTimeout, RankError: it failed, or another rank has aborted; the results do not count.
        """
        self._check_usable()
        if self.device.type == "cuda":
            self.wait_for(torch.cuda.current_stream(self.device).record_event())
        self._raise_if_failed()

    def _default_memory(self) -> SymmetricMemory:
        from tokenweave.communicators.available import symm_mem_reason

        if reason := symm_mem_reason():
            raise CommunicatorError(f"symm_mem cannot be had here: {reason}; use torch or shm")
        device = torch.device("cuda", torch.cuda.current_device())
        return TorchSymmetricMemory(self._data, device)

    def _on_device(self) -> AbstractContextManager[object]:
        """Makes the device current: a new thread begins on the first one, where no kernel of this rank may run."""
        device = self.device
        if device.type != "cuda" or torch.cuda.current_device() == device.index:
            return nullcontext()
        return torch.cuda.device(device)

    def _meet_through(self, table: CtaTable) -> None:
        """Allocates the counters by which the kernels meet."""
        device = self.device
        self._mailbox = self._memory.mailbox()
        self._letters = self._mailbox.numpy()  # as fast to look at as any array
        self._pads = self._allocate(pads_bytes(self.size, table.most))
        self._meeting = Meeting(
            rank=self.rank,
            size=self.size,
            num_ctas=table.most,
            pads=self._pads.table,
            epochs=torch.zeros(table.most, dtype=torch.int32, device=device),
            failed=torch.zeros(1, dtype=torch.int32, device=device),
            mailbox=self._mailbox,
            timeout_ns=int(self.timeout_s * 1e9),
            table=table,
        )

    def _in_one_shot(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> None:
        from tokenweave.kernels.cuda import launch  # not above: triton is an extra of its own

        meeting = self._meeting
        rows_per_cta = -(-self.one_shot_tokens // meeting.num_ctas)
        row_bytes = hidden.shape[1] * hidden.itemsize
        if row_bytes not in self._slots:
            needed = slots_bytes(self.size, meeting.num_ctas, rows_per_cta, row_bytes)
            self._slots[row_bytes] = self._allocate(needed)
        rows = hidden.contiguous()
        launch.in_one_shot(meeting, self._slots[row_bytes].table, rows_per_cta, rows, residual, norms)
        if rows is not hidden:
            hidden.copy_(rows)

    def _by_owners(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> None:
        """Each row is reduced by the rank that owns it, where it lies in symmetric memory or is staged."""
        for buffer in self._buffers:
            offset_bytes = buffer.offset_of(hidden)
            if offset_bytes is not None and offset_bytes % VECTOR_BYTES == 0 and hidden.is_contiguous():
                self._reduce(buffer, offset_bytes, hidden, residual, norms)
                return
        if self._staging is None or self._staging.local.nbytes < hidden.nbytes:
            self._staging = self._allocate(hidden.nbytes)
        staged = self._staging.local[: hidden.nbytes].view(hidden.dtype).view(hidden.shape)
        staged.copy_(hidden)
        self._reduce(self._staging, 0, staged, residual, norms)
        hidden.copy_(staged)

    def _reduce(
        self,
        buffer: SymmetricBuffer,
        offset_bytes: int,
        hidden: Tensor,
        residual: Tensor,
        norms: ResidualNorms,
    ) -> None:
        from tokenweave.kernels.cuda import launch

        if buffer.multicast and hidden.shape[1] % VECTOR_ELEMENTS == 0:
            multicast = buffer.multicast + offset_bytes
            launch.by_switch(self._meeting, multicast, hidden, residual, norms)
        else:
            launch.by_peers(self._meeting, buffer.table, offset_bytes, hidden, residual, norms)

    def _allocate(self, size_bytes: int) -> SymmetricBuffer:
        """Returns when every rank's buffer is there, and zero."""
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise CommunicatorError(
                f"{size_bytes:,} bytes of symmetric memory would have to be allocated while a graph is captured; call "
                "prepare() for this hidden size, dtype and number of tokens first"
            )
        with self._on_device():
            buffer = self._memory.allocate(size_bytes)
        self.barrier()
        return buffer

    def _raise_if_failed(self) -> None:
        """Looks at what this rank's kernels have said; costs a read of host memory."""
        if self._waits.failure is not None:
            raise copy(self._waits.failure)
        said = Said.of(int(self._letters[SAID]))
        if said is None:
            return
        if said.came:
            self._raise_mismatch(said)
        message = f"rank {self.rank} waited {self.timeout_s:g} s in all_reduce_rms_norm for rank {said.rank}"
        self._waits.failure = RankError(message, said.rank)
        self._tell(message, said.rank)
        raise CommunicatorTimeout(f"{message}; check that it is alive, or raise timeout_s")

    def _raise_mismatch(self, said: Said) -> None:
        """The other rank says the same of this one, so nobody has to be told but third ranks."""
        message = (
            f"rank {self.rank} called {describe(said.called)} where rank {said.rank} called {describe(said.came)}; "
            "every rank must make the same calls in order"
        )
        self._waits.failure = CollectiveMismatch(message)
        with suppress(RuntimeError):  # the store is gone
            self._waits.bulletin.abort(message, None)
        raise copy(self._waits.failure)

    def _tell(self, message: str, rank: int) -> None:
        """The first reason that any rank gave for the end stays."""
        try:
            self._waits.bulletin.raise_if_aborted()
            self._waits.bulletin.abort(message, rank)
        except RankError as error:
            self._waits.failure = error
            raise
        except RuntimeError:
            return  # the store is gone, and rank 0 with it

    @property
    def _place(self) -> torch.device:
        return self.device

    @property
    def _device_timeout_s(self) -> float:
        """Longer than a kernel's own, which says more: it knows for whom it waited."""
        return 2 * self.timeout_s

    def _end_device_calls(self) -> None:
        """This rank's kernels give up at their next look; the others' do when they time out, or their ranks look."""
        self._letters[ABORT] = 1
        super()._end_device_calls()

    def _check_usable(self) -> None:
        super()._check_usable()
        self._raise_if_failed()
