"""Ranks of one host that meet in a shared segment; the collectives themselves are native (native/comm).

Thread safety: one thread at a time per rank; `abort` and `mark_failed` may be called from any thread.

Invariants:
  1. A segment serves one group, once; each rank joins it once, in any order, as soon as the segment exists.
  2. A rank that dies, however, is noticed by the ranks that wait for it (within about 50 ms): the kernel lets go
     of a lock that the rank held. A supervisor that knows sooner, or knows why, calls `mark_failed`.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from emucxl import resources
from emucxl.shared_memory import SharedSegment
from tokenweave.communicators import shm_abi
from tokenweave.communicators.activation_ring import ActivationRing, BuffersTaken, symmetric_bytes
from tokenweave.communicators.base import DEFAULT_TIMEOUT_S, Communicator
from tokenweave.communicators.shm_abi import SLOT_BYTES, segment_bytes
from tokenweave.errors import CollectiveMismatch, CommunicatorError, CommunicatorTimeout, RankError
from tokenweave.kernels.calls import DTYPE_CODE
from tokenweave.kernels.compiled import NativeKernels
from tokenweave.replay.records import CallSites
from tokenweave.traffic import Traffic, exchanges_of_rows, exchanges_of_sum

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from tokenweave.kernels import Kernels, ResidualNorms

SPIN_S = 40e-6  # about what a wake-up from sleep costs: spinning longer than that would not pay
ONE_SHOT_TOKENS = 4  # up to here summing every row on every rank costs less than a second synchronisation
SHARED_SPIN_NS = 2_000  # where another thread computes on this core: it loses what is spun
CROWDED_SPIN_S = 2e-6  # with more ranks than processors: whoever is waited for may need this one

_DTYPES = {  # tw_shm_dtype
    torch.float32: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.uint8: 6,
}


class _FusedCall(NamedTuple):
    """The arguments of tw_shm_all_reduce_rms_norm after the group, and where its answer goes."""

    arguments: tuple[object, ...]
    meeting: tuple[int, int, int]  # what the ranks compare when they meet
    out: torch.Tensor
    is_one_shot: bool


class ShmCommunicator(Communicator):
    """One rank of a group that meets in `segment`. Channel: slots in the segment, counters and futexes.

    The segment must have `segment_bytes(size, slot_bytes)` bytes, all ranks must be given the same sizes, and it
    cannot be closed before the communicator is. CPU tensors only.
    """

    name = "shm"

    def __init__(
        self,
        segment: SharedSegment,
        rank: int,
        size: int,
        *,
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        slot_bytes: int = SLOT_BYTES,
        spin_s: float | None = None,
        symmetric_fd: int | None = None,
    ) -> None:
        """`symmetric_fd`: an empty segment, the same on every rank, that `reserve_activations` fills; the caller's."""
        super().__init__(rank, size, kernels=kernels, timeout_s=timeout_s)
        _check_segment(segment, size, slot_bytes)
        self.library: Any = shm_abi.library()
        self._closing = threading.Lock()  # so that no abort of another thread meets a handle that is gone
        self._view = segment.buffer  # keeps the segment mapped
        self._group: ctypes.c_void_p | None = None
        if spin_s is None:
            spin_s = SPIN_S if size <= resources.num_threads() else CROWDED_SPIN_S
        self._spin_ns = int(spin_s * 1e9)
        self._join(segment, slot_bytes)
        self._symmetric_fd = symmetric_fd
        self._symmetric: ActivationRing | None = None

    def _join(self, segment: SharedSegment, slot_bytes: int) -> None:
        options = shm_abi.Options(
            rank=self.rank,
            size=self.size,
            slot_bytes=slot_bytes,
            timeout_ns=int(self.timeout_s * 1e9),
            spin_ns=self._spin_ns,
        )
        group = ctypes.c_void_p()
        status = self.library.tw_shm_attach(
            segment.address, segment.size_bytes, segment.fd, ctypes.byref(options), ctypes.byref(group)
        )
        if status != shm_abi.OK:
            self._view.release()
            raise CommunicatorError(
                f"rank {self.rank} of {self.size} cannot join the segment (status {status}): it has been used by "
                "this rank already, or with other sizes; a segment serves one group, once"
            )
        self._group = group

    def barrier(self) -> None:
        self._check_status(self.library.tw_shm_barrier(self._open()))

    def mark_failed(self, rank: int, reason: str) -> None:
        """Makes every rank's current and later call raise `RankError` naming `rank`. For its supervisor."""
        self._check_root(rank)
        self._abort(rank, f"rank {rank} failed: {reason}")

    def abort(self, reason: str) -> None:
        self._abort(self.rank, f"rank {self.rank} aborted the job: {reason}")

    def close(self) -> None:
        with self._closing:
            if self._group is not None:
                self.library.tw_shm_detach(self._group)
                self._group = None
                self._view.release()
                if self._symmetric is not None:
                    self._symmetric.close()

    def reserve_activations(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
        """Rank 0 gives the symmetric segment its size; then every rank maps it. Nothing without a segment."""
        super().reserve_activations(num_tokens, hidden_size, dtype)
        if self._symmetric_fd is None:
            return
        if self._symmetric is not None:
            raise CommunicatorError("the activations have been reserved; a group reserves them once")
        size_bytes = symmetric_bytes(self.size, num_tokens * hidden_size * dtype.itemsize)
        segment = SharedSegment.fill(self._symmetric_fd, size_bytes) if self.rank == 0 else None
        self.barrier()
        segment = segment or SharedSegment.attach(self._symmetric_fd, size_bytes)
        self._symmetric = ActivationRing(segment, self.rank, self.size)

    @property
    def symmetric_memory(self) -> ActivationRing:
        """The memory that `reserve_activations` made.

        Raises:
            CommunicatorError: there is none.
        """
        if self._symmetric is None:
            raise CommunicatorError(
                "no activations were reserved; give the ranks a symmetric_fd, and reserve them"
            )
        return self._symmetric

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
        fused = self._fused(num_tokens, hidden_size, dtype)
        if fused is None:
            return super().new_partial(num_tokens, hidden_size, dtype)
        return fused[0].new_partial(num_tokens, hidden_size, dtype)

    def owned_rows(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> range:
        """Each rank's share, in rank order; all rows where tokens are few or the operation is not fused."""
        if not self.is_residual_sharded(num_tokens, hidden_size, dtype):
            return range(num_tokens)
        first, last = ctypes.c_int64(), ctypes.c_int64()
        # Arithmetic, no call of the group: a replay has no use for it.
        shm_abi.library().tw_shm_owned_rows(
            self.rank, self.size, num_tokens, ctypes.byref(first), ctypes.byref(last)
        )
        return range(first.value, last.value)

    def is_residual_sharded(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        return num_tokens > ONE_SHOT_TOKENS and self._fused(num_tokens, hidden_size, dtype) is not None

    def all_reduce_rms_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, norms: ResidualNorms
    ) -> torch.Tensor:
        """Native, in one call, where there is symmetric memory: see tw_shm_all_reduce_rms_norm."""
        call = self._fused_call(hidden, residual, norms)
        if call is None:
            return super().all_reduce_rms_norm(hidden, residual, norms)
        self._check_status(self.library.tw_shm_all_reduce_rms_norm(self._open(), *call.arguments))
        return call.out

    def reduce_norm_phases(
        self, hidden: torch.Tensor, residual: torch.Tensor, norms: ResidualNorms
    ) -> Generator[Traffic, None, torch.Tensor]:
        call = self._fused_call(hidden, residual, norms)
        if call is None:
            return (yield from super().reduce_norm_phases(hidden, residual, norms))
        num_tokens, hidden_size = hidden.shape
        own = len(self.owned_rows(num_tokens, hidden_size, hidden.dtype))
        row_bytes = hidden_size * hidden.itemsize
        scatter, gather = exchanges_of_rows(self.size, num_tokens, own, row_bytes)
        self._check_status(self.library.tw_shm_reduce_norm_begin(self._open(), *call.meeting))
        yield exchanges_of_sum(self.size, hidden.nbytes)[0] if call.is_one_shot else scatter
        self._check_status(self.library.tw_shm_reduce_norm_rows(self._open(), *call.arguments))
        if not call.is_one_shot:
            yield gather
            self._check_status(self.library.tw_shm_reduce_norm_end(self._open(), *call.meeting))
        return call.out

    def call_sites(self) -> CallSites:
        return CallSites(native=(self,))

    def begin_pass(self) -> None:
        if self._symmetric is not None:
            self._symmetric.begin_pass()

    @property
    def buffers_taken(self) -> BuffersTaken:
        return BuffersTaken() if self._symmetric is None else self._symmetric.taken

    def take_buffers(self, num: BuffersTaken) -> None:
        if self._symmetric is not None:
            self._symmetric.take(num)

    def share_core(self, is_shared: bool) -> None:
        spin_ns = min(SHARED_SPIN_NS, self._spin_ns) if is_shared else self._spin_ns
        self._check_status(self.library.tw_shm_set_spin(self._open(), spin_ns))

    def check(self) -> None:
        self._check_status(self.library.tw_shm_check(self._open()))

    def _fused_call(
        self, hidden: torch.Tensor, residual: torch.Tensor, norms: ResidualNorms
    ) -> _FusedCall | None:
        """The arguments of the native operation, `hidden` staged if need be; None where it cannot be used."""
        num_tokens, hidden_size = hidden.shape
        fused = self._fused(num_tokens, hidden_size, hidden.dtype)
        if fused is None:
            return None
        _check_dense("residual", residual, torch.float32, hidden.shape)
        for name, weight in norms.weights.items():
            _check_dense(name, weight, hidden.dtype, hidden.shape[1:])
        memory, kernels = fused
        offset = memory.offset_of(hidden)
        if offset is None:  # it does not come from `new_partial`
            hidden = memory.new_partial(num_tokens, hidden_size, hidden.dtype).copy_(hidden)
            offset = memory.offset_of(hidden)
        assert offset is not None
        one_shot = num_tokens <= ONE_SHOT_TOKENS
        shape = (num_tokens, hidden_size, hidden.dtype)
        out = torch.empty_like(hidden) if one_shot else memory.next_answer(*shape)
        arguments = (
            *(kernels.pool.handle, memory.address, memory.region_bytes, offset),
            *(residual.data_ptr(), ctypes.byref(norms.native), out.data_ptr(), num_tokens, hidden_size),
            *(DTYPE_CODE[hidden.dtype], one_shot),
        )
        return _FusedCall(arguments, (hidden.nbytes, offset, DTYPE_CODE[hidden.dtype]), out, one_shot)

    def _fused(
        self, num_tokens: int, hidden_size: int, dtype: torch.dtype
    ) -> tuple[ActivationRing, NativeKernels] | None:
        """Returns what the fused operation needs, if this rank has it for such tensors. All ranks find the same."""
        memory, kernels = self._symmetric, self.kernels
        if memory is None or dtype not in DTYPE_CODE or not isinstance(kernels, NativeKernels):
            return None
        return (memory, kernels) if memory.fits(num_tokens, hidden_size, dtype) else None

    def _abort(self, failed_rank: int, reason: str) -> None:
        with self._closing:
            if self._group is not None:
                self.library.tw_shm_abort(self._group, failed_rank, reason.encode().replace(b"\0", b" "))

    def _all_reduce(self, tensor: torch.Tensor) -> None:
        status = self.library.tw_shm_all_reduce(
            self._open(), tensor.data_ptr(), tensor.numel(), _DTYPES[tensor.dtype]
        )
        self._check_status(status)

    def _all_gather(self, tensor: torch.Tensor, gathered: torch.Tensor) -> None:
        status = self.library.tw_shm_all_gather(
            self._open(), tensor.data_ptr(), gathered.data_ptr(), tensor.nbytes
        )
        self._check_status(status)

    def _gather_columns(
        self, tensor: torch.Tensor, widths: Sequence[int], root: int, gathered: torch.Tensor | None
    ) -> None:
        row_bytes = (ctypes.c_size_t * self.size)(*(width * tensor.itemsize for width in widths))
        status = self.library.tw_shm_gather_columns(
            self._open(),
            tensor.data_ptr(),
            None if gathered is None else gathered.data_ptr(),
            tensor.shape[0],
            row_bytes,
            root,
        )
        self._check_status(status)

    def _broadcast(self, tensor: torch.Tensor, root: int) -> None:
        self._check_status(
            self.library.tw_shm_broadcast(self._open(), tensor.data_ptr(), tensor.nbytes, root)
        )

    def _broadcast_bytes(self, data: bytes | None, root: int, idle: bool) -> bytes:
        group = self._open()
        if data is not None:
            self._check_status(self.library.tw_shm_send_bytes(group, data, len(data), idle))
            return data
        length = ctypes.c_uint64()
        self._check_status(self.library.tw_shm_receive_begin(group, root, idle, ctypes.byref(length)))
        received = ctypes.create_string_buffer(length.value) if length.value else None
        self._check_status(self.library.tw_shm_receive_rest(group, root, received))
        return received.raw if received is not None else b""

    def _check(self, tensor: torch.Tensor) -> None:
        super()._check(tensor)
        if tensor.device.type != "cpu":
            raise CommunicatorError(
                f"got a tensor on {tensor.device}; shared memory takes CPU tensors: use torch"
            )

    def _open(self) -> ctypes.c_void_p:
        if self._group is None:
            raise CommunicatorError("the communicator is closed; make a new group in a new segment")
        return self._group

    def _check_status(self, status: int) -> None:
        if status != shm_abi.OK:
            self.raise_status(status)

    def raise_status(self, status: int, call: str = "") -> None:
        """Raises what a collective that returned `status` raises; the group knows which it was."""
        text = ctypes.create_string_buffer(512)
        failed_rank = self.library.tw_shm_last_error(self._group, text, len(text))
        message = text.value.decode(errors="replace")
        if status == shm_abi.ERROR_ABORTED:
            raise RankError(message, failed_rank if failed_rank >= 0 else None)
        if status == shm_abi.ERROR_TIMEOUT:
            raise CommunicatorTimeout(f"{message}; check that they are alive, or raise timeout_s")
        if status == shm_abi.ERROR_MISMATCH:
            raise CollectiveMismatch(f"{message}; every rank must make the same calls in order")
        raise CommunicatorError(f"the native collective refused its arguments (status {status})")


def _check_segment(segment: SharedSegment, size: int, slot_bytes: int) -> None:
    needed = segment_bytes(size, slot_bytes)
    if segment.size_bytes < needed:
        raise CommunicatorError(
            f"got a segment of {segment.size_bytes:,} bytes; {size} ranks with slots of {slot_bytes:,} bytes "
            f"need {needed:,}: create it with segment_bytes({size}, {slot_bytes})"
        )


def _check_dense(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        how = "" if tensor.is_contiguous() else ", not contiguous"
        raise CommunicatorError(
            f"got a {name} of {tensor.dtype} {tuple(tensor.shape)}{how}; expected {dtype} {tuple(shape)}, contiguous"
        )
