"""The communicator contract: what every backend gives, and the checks and staging they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenweave.communicators.activation_ring import BuffersTaken
from tokenweave.communicators.bulletin import SLICE_S
from tokenweave.communicators.device_wait import happens
from tokenweave.communicators.kept_tensors import KeptTensors
from tokenweave.errors import CommunicatorError, CommunicatorTimeout
from tokenweave.traffic import exchanges_of_sum

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import TracebackType
    from typing import Self

    from tokenweave.communicators.device_wait import DeviceEvent
    from tokenweave.kernels import Kernels, ResidualNorms
    from tokenweave.replay.records import CallSites
    from tokenweave.traffic import Traffic

DTYPES = frozenset(
    {torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.uint8},
)
DEFAULT_TIMEOUT_S = 60.0


class Communicator(ABC):
    """One rank's end of a group of `size` ranks that call the same collectives in the same order.

    Thread safety: one thread at a time per rank; only `abort` may be called from any thread at any time.

    Invariants:
      1. A sum is accumulated in float32 (integers: in their own type, wrapping), in rank order, and rounded
         once. So its bits are the same on every rank and depend on nothing else in the tensor.
      2. Every wait ends: with the result, `RankError` (a rank died or aborted), `CommunicatorTimeout` (a rank
         did not come within `timeout_s`) or `CollectiveMismatch` (the ranks called different things).
      3. After any of these three the group is aborted: every later call on any rank raises `RankError`
         (`CollectiveMismatch` after a mismatch).

    Tensors may have any shape, also an empty one, and any size. A tensor that is not contiguous is staged
    through a contiguous copy.
    """

    name: str

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        if size < 1 or not 0 <= rank < size:
            raise CommunicatorError(f"got rank {rank} of {size}; expected 0 <= rank < size")
        if not timeout_s > 0:
            raise CommunicatorError(f"got timeout_s={timeout_s}; expected a positive number of seconds")
        self.rank = rank
        self.size = size
        self.timeout_s = timeout_s
        self._kernels = kernels
        self._kept = KeptTensors()

    @property
    def kernels(self) -> Kernels:
        """The kernels of the fused operations; the reference ones unless the constructor was given others."""
        if self._kernels is None:
            from tokenweave.kernels import make_kernels

            self._kernels = make_kernels("reference")
        return self._kernels

    @kernels.setter
    def kernels(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def all_reduce(self, tensor: Tensor) -> None:
        """Sums `tensor` over the ranks, in place.

        After it, every rank's tensor holds the same bits; no rank reads another's memory any more.
        """
        self._check(tensor)
        if tensor.is_contiguous():
            self._all_reduce(tensor)
        else:
            staged = tensor.contiguous()
            self._all_reduce(staged)
            tensor.copy_(staged)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors, each (n, ...), stacked in rank order: (size * n, ...), a new tensor.

        After it, the result holds what each rank's tensor held when that rank called.
        """
        self._check(tensor)
        if tensor.dim() == 0:
            raise CommunicatorError(
                "all_gather got a tensor of no dimensions; expected (n, ...): use tensor.view(1)"
            )
        gathered = tensor.new_empty((self.size * tensor.shape[0], *tensor.shape[1:]))
        self._all_gather(tensor.contiguous(), gathered)
        self._kept.keep(tensor, gathered)
        return gathered

    def gather_columns(self, tensor: Tensor, widths: Sequence[int], root: int = 0) -> Tensor | None:
        """The ranks' tensors, (n, widths[rank]), side by side on the root: (n, sum(widths)); None on the others.

        After it, the root's result holds what each rank's tensor held when that rank called. The others may
        return before the root has it. A group of one gets its own tensor back.
        """
        self._check(tensor)
        self._check_root(root)
        if len(widths) != self.size or tensor.dim() != 2 or tensor.shape[1] != widths[self.rank]:
            raise CommunicatorError(
                f"gather_columns got a tensor of shape {tuple(tensor.shape)} and widths {list(widths)}; expected "
                f"(n, widths[{self.rank}]) and {self.size} widths, one a rank"
            )
        if self.size == 1:
            return tensor
        gathered = tensor.new_empty((tensor.shape[0], sum(widths))) if self.rank == root else None
        self._gather_columns(tensor.contiguous(), widths, root, gathered)
        self._kept.keep(tensor, gathered)
        return gathered

    def broadcast(self, tensor: Tensor, root: int = 0) -> None:
        """Fills `tensor`, of one shape and dtype on every rank, with the root's.

        After it, the tensor holds what the root's held when the root called. The root may return earlier.
        """
        self._check(tensor)
        self._check_root(root)
        if tensor.is_contiguous():
            self._broadcast(tensor, root)
        else:
            staged = tensor.contiguous()
            self._broadcast(staged, root)
            if self.rank != root:
                tensor.copy_(staged)

    @abstractmethod
    def barrier(self) -> None:
        """Returns once every rank has called it: what any wrote to shared memory before is visible after."""

    def broadcast_bytes(self, data: bytes | None, root: int = 0, idle: bool = False) -> bytes:
        """The root's `data` on every rank; only the root passes any. The channel of commands and batches.

        With `idle` a receiver waits without bound for the root (asleep, not spinning) and still raises within
        about a second when the job is aborted. The root does not wait for the receivers to have read.
        """
        self._check_root(root)
        if (data is None) == (self.rank == root):
            raise CommunicatorError(
                f"broadcast_bytes got data={'None' if data is None else 'bytes'} on rank {self.rank}; "
                f"expected bytes on the root, rank {root}, and None on the others"
            )
        return self._broadcast_bytes(data, root, idle)

    def reserve_activations(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
        """Makes room for partial sums of up to (num_tokens, hidden_size), where the backend has memory for them.

        A collective call: every rank makes it, with the same arguments, before its first `new_partial`.
        """
        if num_tokens < 1 or hidden_size < 1:
            raise CommunicatorError(
                f"got activations of ({num_tokens}, {hidden_size}); expected at least 1 of each"
            )

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """Where the computation before a reduction puts its partial sum: (num_tokens, hidden_size), uninitialised, on
        the kernels' device.

        `all_reduce_rms_norm` takes such a tensor without copying it where the backend has memory that the ranks share.
        Every rank must ask in the same order. The tensor is valid until its reduction.
        """
        return torch.empty((num_tokens, hidden_size), dtype=dtype, device=self.kernels.device)

    def new_residual(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """Zeros, float32 on the kernels' device: the residual of `num_tokens` before its first `all_reduce_rms_norm`.

        (num_tokens, hidden_size), or the rows `owned_rows` alone where the backend needs no others. dtype: that of the
        partial sums.
        """
        return torch.zeros((num_tokens, hidden_size), dtype=torch.float32, device=self.kernels.device)

    def prepare(  # noqa: B027 - a backend may have nothing to make ready
        self, hidden_size: int, dtype: torch.dtype, max_tokens: int, *norms: ResidualNorms
    ) -> None:
        """Makes ready what reductions of up to `max_tokens` rows need, due before a CUDA graph captures any.

        A collective call, after `reserve_activations`. `norms` are examples of those of the calls to come, such as all
        of a model's.
        """

    def all_reduce_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        """Sums `hidden` over the ranks, adds it into `residual`, and normalises (TokenWeave, section 3).

        With a `post_weight` the sum is normed before it is added; without a `weight` the residual goes on as it is.
        hidden: (num_tokens, hidden_size) float32, bfloat16 or float16, whose rows the reference norms where the kernels
        do not take it; residual: what `new_residual` gave, or float32 of hidden's shape; the norms' weights:
        (hidden_size,), of hidden's dtype. Returns the rows for the next sublayer, of hidden's shape and dtype, valid on
        every rank, until the second reduction after this one of the same tokens. `residual` is updated in place and
        belongs to the communicator between calls: only the rows `owned_rows` of it are valid. `hidden` is spent.
        """
        self.all_reduce(hidden)
        normed = self._add_rms_norm(hidden, residual, norms)
        self._kept.keep(hidden, residual, normed)
        return normed

    def reduce_norm_phases(
        self, hidden: Tensor, residual: Tensor, norms: ResidualNorms
    ) -> Generator[Traffic, None, Tensor]:
        """`all_reduce_rms_norm` piece by piece, for whoever has to wait for a modelled link between the pieces.

        Yields what this rank sends and receives in each exchange, when it could begin: all ranks have come, or this
        rank's rows are normed. What is exchanged is used only after the generator has been resumed.
        """
        self.all_reduce(hidden)
        first, *second = exchanges_of_sum(self.size, hidden.nbytes)
        yield first
        normed = self._add_rms_norm(hidden, residual, norms)
        yield from second
        return normed

    def owned_rows(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> range:
        """The rows of the residual that are valid on this rank after `all_reduce_rms_norm`."""
        return range(num_tokens)

    def is_residual_sharded(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        """Whether `owned_rows` may be fewer than all. The same on every rank."""
        return False

    def select_residual(self, residual: Tensor, rows: Tensor, num_tokens: int, dtype: torch.dtype) -> Tensor:
        """These rows of the residual alone, so that later reductions can do without the others.

        residual: that of `num_tokens`, as `all_reduce_rms_norm` of tensors of `dtype` left it; rows: (n,) integers, the
        same on every rank. Returns (n, hidden_size) float32, every row valid on every rank: what `all_reduce_rms_norm`
        takes beside n rows. A collective call; of few rows, one exchange of n * hidden_size * 4 bytes, and none where
        every rank has all rows.
        """
        hidden_size = residual.shape[1]
        rows = rows.long()
        if not self.is_residual_sharded(num_tokens, hidden_size, dtype):
            return residual[rows]
        own = self.owned_rows(num_tokens, hidden_size, dtype)
        is_foreign = (rows < own.start) | (rows >= own.stop)
        # Every row has one owner, and a sum with zeros is exact. Rows that a rank does not own are zeroed: they may be
        # NaN. They are read before, for to leave them out the host would have to wait to know how many they are.
        if len(residual) == num_tokens:
            selected = residual[rows].masked_fill_(is_foreign.unsqueeze(1), 0.0)
        elif len(residual):  # in the place of a foreign row, the nearest of its own is read
            nearest = (rows - own.start).clamp_(0, len(residual) - 1)
            selected = residual[nearest].masked_fill_(is_foreign.unsqueeze(1), 0.0)
        else:
            selected = residual.new_zeros(len(rows), hidden_size)
        self.all_reduce(selected)
        return selected

    def call_sites(self) -> CallSites | None:
        """Returns all by which this communicator calls the native library or meets others; None if that is not known.

        A pass can be captured where it is known (`tokenweave.replay`).
        """
        return None

    @property
    def no_graph_reason(self) -> str | None:
        """Why a CUDA graph cannot hold calls on CUDA tensors; None where it can, as where they only queue work."""
        return f"the ranks of communicator {self.name!r} meet on the host"

    def begin_pass(self) -> None:  # noqa: B027 - a backend may have no buffers
        """Every rank calls it before a pass, all before each pass that may be captured or replayed."""

    @property
    def buffers_taken(self) -> BuffersTaken:
        """How many buffers passes have taken so far."""
        return BuffersTaken()

    def take_buffers(self, num: BuffersTaken) -> None:  # noqa: B027 - a backend may have no buffers
        """Counts the buffers of a pass that was replayed, which did not ask for them."""

    def wait_for(self, event: DeviceEvent) -> None:
        """Returns once `event` has happened on a device: what was queued before it is done, and its calls count.

        To be used instead of the event's own `synchronize`, which would not return where a call on the device waits for
        a rank that is gone.

        Raises:
            RankError: a rank died or aborted.
            CommunicatorTimeout: it took longer than `timeout_s`.
        """
        if not happens(event, self.timeout_s, self.check, SLICE_S):
            message = f"rank {self.rank} waited {self.timeout_s:g} s for its device"
            self.abort(message)
            raise CommunicatorTimeout(f"{message}; raise timeout_s where a pass takes longer")
        self.check()

    def share_core(self, is_shared: bool) -> None:  # noqa: B027 - a backend may never spin
        """Says whether another thread of this rank has use for the core while a call waits: then waits sleep at once.

        Holds until it is said again. No collective call.
        """

    def check(self) -> None:  # noqa: B027 - a backend may have nothing to look at
        """Raises what the next call would, if the group was aborted. Waits for nobody.

        A backend that cannot look without waiting says nothing.
        """

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Makes every rank's current and later call raise a `RankError` that names this rank and `reason`."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what this rank holds; a second call does nothing. The group must be done with it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes; where the block ends by an exception, the other ranks are told first and wait for nothing."""
        if value is not None:
            self.abort(f"{type(value).__name__}: {value}")
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} rank {self.rank} of {self.size}>"

    # What a backend supplies. Tensors are contiguous and of a dtype in DTYPES.

    @abstractmethod
    def _all_reduce(self, tensor: Tensor) -> None: ...

    @abstractmethod
    def _all_gather(self, tensor: Tensor, gathered: Tensor) -> None: ...

    def _gather_columns(
        self, tensor: Tensor, widths: Sequence[int], root: int, gathered: Tensor | None
    ) -> None:
        """Unless a backend has better: an all-gather of tensors padded to one width."""
        padded = torch.nn.functional.pad(tensor, (0, max(widths) - tensor.shape[1]))
        parts = self.all_gather(padded).view(self.size, *padded.shape)
        if gathered is not None:
            columns = [part[:, :width] for part, width in zip(parts, widths, strict=True)]
            torch.cat(columns, dim=1, out=gathered)

    @abstractmethod
    def _broadcast(self, tensor: Tensor, root: int) -> None: ...

    @abstractmethod
    def _broadcast_bytes(self, data: bytes | None, root: int, idle: bool) -> bytes: ...

    def _add_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        """The norm after a sum: the kernels', or the reference where they do not take the dtype."""
        if hidden.dtype in self.kernels.dtypes:
            return self.kernels.add_rms_norm(hidden, residual, norms)
        from tokenweave.kernels.norms import reference_add_rms_norm

        return reference_add_rms_norm(hidden, residual, norms)

    def _check(self, tensor: Tensor) -> None:
        if tensor.dtype not in DTYPES:
            expected = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))
            raise CommunicatorError(
                f"got a tensor of {tensor.dtype}; expected one of {expected}: convert it first"
            )

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise CommunicatorError(f"got root={root}; expected a rank, 0 to {self.size - 1}")
