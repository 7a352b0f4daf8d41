"""Ranks on GPUs that reach each other's memory: `all_reduce_rms_norm` is one kernel, the rest is torch.distributed's.

Thread safety: one thread at a time per rank, and one stream for all calls; `abort` may be called from any thread.

Invariants:
  1. `all_reduce_rms_norm` queues work on the current stream and returns: it never waits for the device. Once `prepare`
     has run for the hidden size, dtype and number of tokens it allocates nothing, and a CUDA graph can capture it.
  2. Every wait of a kernel ends within `timeout_s`, counted from when it began to wait. The kernels that are queued
     behind a failed one end at once and write nothing. Results count only after a later call, or `synchronize`, has
     returned without raising.
  3. Counters and slots are new with each communicator: nothing that an aborted one left behind is ever read.
"""

from __future__ import annotations

import time
from copy import copy
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from tokenweave.communicators.base import DEFAULT_TIMEOUT_S
from tokenweave.communicators.bulletin import SLICE_S
from tokenweave.communicators.symmetric_memory import SymmetricBuffer, SymmetricMemory, TorchSymmetricMemory
from tokenweave.communicators.torch import TorchCommunicator
from tokenweave.errors import CommunicatorError, CommunicatorTimeout, RankError
from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.cuda.sharing import (
    ABORT,
    FAILED_RANK,
    VECTOR_BYTES,
    VECTOR_ELEMENTS,
    Meeting,
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
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class SymmMemCommunicator(TorchCommunicator):
    """One rank of a group on GPUs. Channel: symmetric memory (the fused operation), the group (everything else).

    All ranks must be given the same `num_ctas` and `one_shot_tokens`, and must agree in each call on whether `hidden`
    lies in memory of `symmetric_empty`, and where. The backend of the group should serve both kinds of tensor:
    "cpu:gloo,cuda:nccl".
    """

    name = "symm_mem"

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
        num_ctas: int = NUM_CTAS,
        one_shot_tokens: int = ONE_SHOT_TOKENS,
    ) -> None:
        """As for `TorchCommunicator`. `memory` is torch's on the current device unless given."""
        super().__init__(
            group,
            control_group,
            store=store,
            kernels=kernels,
            timeout_s=timeout_s,
            check_calls=check_calls,
        )
        if num_ctas < 1 or one_shot_tokens < 0 or self.size > MAX_RANKS:
            raise CommunicatorError(
                f"got num_ctas={num_ctas}, one_shot_tokens={one_shot_tokens} and {self.size} ranks; expected at least "
                f"1, at least 0 and at most {MAX_RANKS}"
            )
        self.one_shot_tokens = one_shot_tokens
        self._memory = memory if memory is not None else self._default_memory()
        self._buffers: list[SymmetricBuffer] = []
        self._staging: SymmetricBuffer | None = None
        self._slots: SymmetricBuffer | None = None
        self._meet_through(num_ctas)

    def all_reduce_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        """As for every communicator; the normed rows replace those of `hidden`, which is returned.

        hidden: (num_tokens, hidden_size) float32, bfloat16 or float16 on the communicator's device. Up to
        `one_shot_tokens` rows may lie anywhere; more are copied to symmetric memory and back, unless they lie in a
        tensor of `symmetric_empty` (or are rows of one). Sums are float32 and in rank order, unless the switch adds.

        Raises:
            CommunicatorError: bad arguments, or memory would have to be allocated while a graph is captured.
            CommunicatorTimeout, RankError: an earlier call failed.
        """
        self._check_fused(hidden, residual, norms)
        self._count_call()  # nothing is compared: the host does not wait for the other ranks
        num_tokens, hidden_size = hidden.shape
        if num_tokens == 0 or hidden_size == 0:
            return hidden
        if num_tokens <= self.one_shot_tokens:
            self._in_one_shot(hidden, residual, norms)
        else:
            self._by_owners(hidden, residual, norms)
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

        `norms` are examples of those of the calls to come, such as all of a model's: a kernel is compiled for each
        combination of weights that are there. With none given they have a `weight` and no `post_weight`.
        """
        norms = norms or (ResidualNorms(torch.ones(hidden_size, dtype=dtype, device=self.device), 1.0),)
        each = {tuple(example.weights): example for example in norms}.values()
        for num_tokens in sorted({min(max_tokens, self.one_shot_tokens), max_tokens}):
            for example in each:
                hidden = torch.zeros(num_tokens, hidden_size, dtype=dtype, device=self.device)
                residual = torch.zeros(num_tokens, hidden_size, device=self.device)
                self.all_reduce_rms_norm(hidden, residual, example)
        self.synchronize()

    def synchronize(self) -> None:
        """Waits for what is queued on the current stream.

        Raises:
            CommunicatorTimeout, RankError: it failed, or another rank has aborted; the results do not count.
        """
        self._check_usable()
        if self.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            looked_s = time.monotonic()
            while not event.query():  # type: ignore[no-untyped-call]
                time.sleep(50e-6)
                if time.monotonic() - looked_s > SLICE_S:
                    self._release_if_aborted()
                    looked_s = time.monotonic()
        self._raise_if_failed()

    def abort(self, reason: str) -> None:
        """As for every communicator; this rank's kernels give up at their next look, the others' when they time out."""
        super().abort(reason)
        self._release_kernels()

    def _default_memory(self) -> SymmetricMemory:
        from tokenweave.communicators.available import symm_mem_reason

        if reason := symm_mem_reason():
            raise CommunicatorError(f"symm_mem cannot be had here: {reason}; use torch or shm")
        device = torch.device("cuda", torch.cuda.current_device())
        return TorchSymmetricMemory(self._data, device)

    def _meet_through(self, num_ctas: int) -> None:
        """Allocates the counters by which the kernels meet."""
        device = self.device
        self._mailbox = self._memory.mailbox()
        self._letters = self._mailbox.numpy()  # as fast to look at as any array
        self._pads = self._allocate(num_ctas * self.size * torch.int32.itemsize)
        self._meeting = Meeting(
            rank=self.rank,
            size=self.size,
            num_ctas=num_ctas,
            pads=self._pads.table,
            failed=torch.zeros(1, dtype=torch.int32, device=device),
            mailbox=self._mailbox,
            timeout_ns=int(self.timeout_s * 1e9),
        )
        self._epochs = torch.zeros(num_ctas, dtype=torch.int32, device=device)

    def _in_one_shot(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> None:
        from tokenweave.kernels.cuda import launch  # not above: triton is an extra of its own

        meeting = self._meeting
        rows_per_cta = -(-self.one_shot_tokens // meeting.num_ctas)
        row_bytes = hidden.shape[1] * hidden.itemsize
        needed = slots_bytes(self.size, meeting.num_ctas, rows_per_cta, row_bytes)
        if self._slots is None or self._slots.local.nbytes < needed:
            self._slots = self._allocate(needed)
        rows = hidden.contiguous()
        launch.in_one_shot(meeting, self._slots.table, self._epochs, rows_per_cta, rows, residual, norms)
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
        buffer = self._memory.allocate(size_bytes)
        self.barrier()
        return buffer

    def _check_fused(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> None:
        device = self.device
        if hidden.dim() != 2 or hidden.dtype not in DTYPES or hidden.device != device:
            raise CommunicatorError(
                f"got hidden of {hidden.dtype} {tuple(hidden.shape)} on {hidden.device}; expected (num_tokens, "
                f"hidden_size) of float32, bfloat16 or float16 on {device}"
            )
        _check_beside("residual", residual, hidden.shape, (torch.float32,), device)
        for name, weight in norms.weights.items():
            _check_beside(name, weight, hidden.shape[1:], DTYPES, device)

    def _raise_if_failed(self) -> None:
        """Looks at what this rank's kernels have said; costs a read of host memory."""
        if self._waits.failure is not None:
            raise copy(self._waits.failure)
        said = int(self._letters[FAILED_RANK])
        if said == 0:
            return
        message = f"rank {self.rank} waited {self.timeout_s:g} s in all_reduce_rms_norm for rank {said - 1}"
        self._waits.failure = RankError(message, said - 1)
        self._tell(message, said - 1)
        raise CommunicatorTimeout(f"{message}; check that it is alive, or raise timeout_s")

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

    def _release_if_aborted(self) -> None:
        try:
            self._waits.bulletin.raise_if_aborted()
        except RankError as error:
            self._waits.failure = self._waits.failure or error
            self._release_kernels()
        except RuntimeError:
            return

    def _release_kernels(self) -> None:
        self._letters[ABORT] = 1

    def _check_usable(self) -> None:
        super()._check_usable()
        self._raise_if_failed()


def _check_beside(
    name: str,
    tensor: Tensor,
    shape: torch.Size,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    if (
        tensor.shape == shape
        and tensor.dtype in dtypes
        and tensor.device == device
        and tensor.is_contiguous()
    ):
        return
    wanted = " or ".join(str(dtype) for dtype in dtypes)
    raise CommunicatorError(
        f"got {name} of {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} with strides {tensor.stride()}; "
        f"expected {wanted} {tuple(shape)} on {device}, contiguous"
    )
