"""Ranks joined by torch.distributed: any number of hosts over gloo, CUDA tensors over nccl.

Thread safety: one thread at a time per rank; `abort` may be called from any thread.

Invariants:
  1. CPU tensors are summed in rank order (`host_group`).
  2. Every wait is one of `waits.Waits`: an abort or a dead peer ends it, also one without bound.
  3. `all_reduce_rms_norm` shares the rows of all but small tensors out: each rank is sent its rows of every rank's
     partial sum, adds and norms them (the residual stays where it is), and the normed rows are gathered. Its bits are
     those of an all-reduce and a norm.
  4. CUDA tensors are summed by the group's own all_reduce (nccl): its order is fixed for a given size and topology,
     but it is not the rank order. The host never waits for them: the current stream does (`device_group`).
  5. CUDA tensors of the last calls are kept (`kept_tensors`).
"""

from __future__ import annotations

import threading
from contextlib import suppress
from copy import copy
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from tokenweave.communicators.base import DEFAULT_TIMEOUT_S, Communicator
from tokenweave.communicators.bulletin import SLICE_S, Bulletin
from tokenweave.communicators.call_check import compare_calls
from tokenweave.communicators.device_group import DeviceGroup
from tokenweave.communicators.device_wait import happens
from tokenweave.communicators.host_group import HostGroup
from tokenweave.communicators.rendezvous import (
    default_group,
    default_store,
    end_later,
    forgotten_on_failure,
    join,
    nccl_of,
    own_store,
    serves_cpu,
)
from tokenweave.communicators.sums import run_phases
from tokenweave.communicators.waits import Waits
from tokenweave.environment import TorchrunEnvironment, torchrun_environment
from tokenweave.errors import CommunicatorError, CommunicatorTimeout, RankError
from tokenweave.replay.records import CallSites
from tokenweave.traffic import ONE_EXCHANGE_BYTES, Traffic, exchanges_of_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Self

    from tokenweave.communicators.device_wait import DeviceEvent
    from tokenweave.kernels import Kernels, ResidualNorms

GOODBYE_S = 2.0


class TorchCommunicator(Communicator):
    """One rank of a torch.distributed group. Channel: the group (tensors), a gloo group of its own (commands).

    Where the group serves CUDA tensors alone, as one of "nccl" does, CPU tensors go over the gloo group too.

    With `check_calls`, each collective on CPU tensors first compares what the ranks call, for one more round trip, and
    raises `CollectiveMismatch`. Turn it off where the ranks are known to make the same calls, as those of one plan do:
    a mismatch is then not noticed as such. It may end in a timeout, in wrong sums, or in gloo ending the process. Calls
    on CUDA tensors are not compared.
    """

    name = "torch"

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        control_group: dist.ProcessGroup | None = None,
        *,
        store: Store | None = None,
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        check_calls: bool = True,
    ) -> None:
        """Joins ranks that torch.distributed has joined already; `close` leaves `group` as it is.

        `group` is the default group unless given, `control_group` a new one of the same ranks over gloo. `store`
        is where the ranks tell each other of failures: the default group's unless given.
        """
        if not dist.is_initialized():
            raise CommunicatorError(
                "torch.distributed is not initialised; use TorchCommunicator.from_environment() or .connect()"
            )
        data_group = group if group is not None else default_group()
        super().__init__(data_group.rank(), data_group.size(), kernels=kernels, timeout_s=timeout_s)
        self._data = data_group
        own = own_store(store or default_store(), data_group)
        # Not dist.new_group: it names a later group of the same ranks as it did an earlier one, and finds that one's
        # addresses in the store.
        self._control: Any = control_group or ProcessGroupGloo(
            PrefixStore("control", own), self.rank, self.size, timedelta(seconds=timeout_s)
        )
        bulletin = Bulletin(PrefixStore("bulletin", own), self.rank, self.size)
        self._waits = Waits(bulletin, self.rank, timeout_s)
        self._device_group = DeviceGroup(data_group, self._waits)
        self._commands = HostGroup(self._control, self._waits, self.size)
        serves_host = serves_cpu(data_group)
        self._host_group = HostGroup(data_group, self._waits, self.size) if serves_host else self._commands
        self._check_calls = check_calls
        self._aborted_here = False
        self._abort_lock = threading.Lock()
        self._owns_everything = False
        self._closed = False

    @classmethod
    def connect(
        cls,
        rank: int,
        size: int,
        address: str,
        port: int,
        *,
        backend: str = "gloo",
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        check_calls: bool = True,
        watch: Callable[[], None] | None = None,
    ) -> Self:
        """Initialises torch.distributed for this process, with rank 0 serving the store at `address`:`port`.

        `watch` is called again and again while ranks are missing, and may raise: whoever started them knows of a death
        before a timeout does.

        Raises:
            CommunicatorError: torch.distributed is initialised already.
            CommunicatorTimeout: not all ranks came within `timeout_s`; it names those that did not.
            Whatever `watch` raised.
        """
        return cls.join(
            TorchrunEnvironment(rank, size, address, port),
            backend,
            kernels=kernels,
            timeout_s=timeout_s,
            check_calls=check_calls,
            watch=watch,
        )

    @classmethod
    def from_environment(
        cls,
        backend: str = "gloo",
        *,
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        check_calls: bool = True,
    ) -> Self:
        """As `connect`, from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, set by torchrun or by hand."""
        return cls.join(
            torchrun_environment(), backend, kernels=kernels, timeout_s=timeout_s, check_calls=check_calls
        )

    @classmethod
    def join(
        cls,
        where: TorchrunEnvironment,
        backend: str = "gloo",
        *,
        kernels: Kernels | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        check_calls: bool = True,
        watch: Callable[[], None] | None = None,
    ) -> Self:
        """As `connect`, at a place that is known."""
        if dist.is_initialized():
            raise CommunicatorError("torch.distributed is initialised already; use TorchCommunicator(group)")
        with forgotten_on_failure(where, timeout_s):
            communicator = cls(
                store=join(where, backend, timeout_s, watch),
                kernels=kernels,
                timeout_s=timeout_s,
                check_calls=check_calls,
            )
        return communicator.owning(watch)

    def owning(self, watch: Callable[[], None] | None = None) -> Self:
        """Has `close` leave the group too. A collective call where that is of nccl, which connects the ranks by it.

        Raises:
            CommunicatorTimeout, RankError: nccl could not connect them.
            Whatever `watch` raised.
        """
        self._owns_everything = True
        if not self._device_group.is_nccl:
            return self
        device = self._place if self._place.type == "cuda" else torch.device("cuda")
        try:
            self._device_group.meet(device, self.timeout_s, watch)
        except BaseException as error:
            self.abort(f"{type(error).__name__}: {error}")
            self.close()
            raise
        return self

    def call_sites(self) -> CallSites | None:
        names = ("_start", "_all_reduce", "_scatter_rows", "_gather_rows")
        return CallSites(python=tuple((self, name) for name in names))

    @property
    def no_graph_reason(self) -> str | None:
        return None if nccl_of(self._data) is not None else "the group's calls on CUDA tensors are not nccl's"

    def barrier(self) -> None:
        self._start("barrier")
        self._host_group.gather_bytes(torch.zeros(1, dtype=torch.uint8), "barrier")

    def owned_rows(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> range:
        """Each rank's share, in rank order, the last ones' smaller; all rows where the tensor is small."""
        return self._rows_of(self.rank, num_tokens, hidden_size * dtype.itemsize)

    def is_residual_sharded(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        return self._shares_rows(num_tokens * hidden_size * dtype.itemsize)

    def new_residual(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows that this rank owns, and no others."""
        own = self.owned_rows(num_tokens, hidden_size, dtype)
        return torch.zeros((len(own), hidden_size), device=self._place)

    def prepare(self, hidden_size: int, dtype: torch.dtype, max_tokens: int, *norms: ResidualNorms) -> None:
        """Has nccl connect the ranks for the calls that a reduction makes, of few rows and of many."""
        if self._device_group.is_nccl:
            for num_tokens in (1, max_tokens):
                self._reduce_zeros(num_tokens, hidden_size, dtype, norms[0])
            self.wait_for(torch.cuda.current_stream(self._place).record_event())

    def _reduce_zeros(
        self, num_tokens: int, hidden_size: int, dtype: torch.dtype, norms: ResidualNorms
    ) -> None:
        partial = self.new_partial(num_tokens, hidden_size, dtype).zero_()
        self.all_reduce_rms_norm(partial, self.new_residual(num_tokens, hidden_size, dtype), norms)

    def all_reduce_rms_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, norms: ResidualNorms
    ) -> torch.Tensor:
        normed = run_phases(self.reduce_norm_phases(hidden, residual, norms))
        self._kept.keep(hidden, residual, normed)
        return normed

    def reduce_norm_phases(
        self, hidden: torch.Tensor, residual: torch.Tensor, norms: ResidualNorms
    ) -> Generator[Traffic, None, torch.Tensor]:
        num_tokens, hidden_size = hidden.shape
        row_bytes = hidden_size * hidden.itemsize
        if not self._shares_rows(num_tokens * row_bytes):
            return (yield from super().reduce_norm_phases(hidden, residual, norms))
        self._check(hidden)
        self._start(f"all_reduce_rms_norm of {_describe(hidden)}", hidden)
        own = self._rows_of(self.rank, num_tokens, row_bytes)
        scatter, gather = exchanges_of_rows(self.size, num_tokens, len(own), row_bytes)
        summed = self._scatter_rows(hidden.contiguous(), own)
        yield scatter
        owned = residual[own.start : own.stop] if len(residual) == num_tokens else residual
        normed = self._add_rms_norm(summed, owned, norms)
        yield gather
        return self._gather_rows(normed, num_tokens)

    def check(self) -> None:
        """As for every communicator; what another rank did is noticed within `bulletin.SLICE_S`."""
        self._check_usable()
        self._waits.check()

    def wait_for(self, event: DeviceEvent) -> None:
        """As for every communicator; a timeout names the ranks that do not answer."""
        self._check_usable()
        try:
            if not happens(event, self._device_timeout_s, self._look, SLICE_S):
                self._waits.give_up_on_device(self._device_timeout_s)
        except (RankError, CommunicatorTimeout):
            self._end_device_calls()
            raise
        self._check_usable()

    def abort(self, reason: str) -> None:
        """As for every communicator; the others notice within `bulletin.SLICE_S` of waiting, or at their next call."""
        failure = RankError(f"rank {self.rank} aborted the job: {reason}", self.rank)
        with self._abort_lock:
            if self._closed:
                return
            self._aborted_here = self._aborted_here or self._waits.failure is None
            self._waits.failure = self._waits.failure or failure
            with suppress(RuntimeError):  # the store may be gone with rank 0
                self._waits.bulletin.abort(str(failure), self.rank)
            self._end_device_calls()

    def close(self) -> None:
        with self._abort_lock:
            if self._closed:
                return
            self._closed = True
        patience_s = min(GOODBYE_S, self.timeout_s)
        with suppress(RuntimeError):
            if self._waits.failure is None:
                self._waits.bulletin.say_goodbye(self._waits.step, patience_s)
            elif self._aborted_here:
                self._waits.bulletin.wait_until_heard(patience_s)
        if self._owns_everything:
            self._device_group.destroy()
        # With the last reference to a group go its connections, however long this object lives.
        groups = [self._data, self._control]
        del self._data, self._control, self._device_group, self._commands, self._host_group
        self._kept.clear()
        if unfinished := self._waits.let_go():
            end_later(groups, unfinished)

    def _all_reduce(self, tensor: torch.Tensor) -> None:
        self._start(f"all_reduce of {_describe(tensor)}", tensor)
        if tensor.numel() == 0:
            return
        if tensor.is_cuda:
            self._device_group.all_reduce(tensor, "all_reduce")
        else:
            self._host_group.all_reduce(tensor)

    def _shares_rows(self, size_bytes: int) -> bool:
        return self.size > 1 and size_bytes >= ONE_EXCHANGE_BYTES

    def _rows_of(self, rank: int, num_tokens: int, row_bytes: int) -> range:
        if not self._shares_rows(num_tokens * row_bytes):
            return range(num_tokens)
        share = -(-num_tokens // self.size)
        return range(min(rank * share, num_tokens), min((rank + 1) * share, num_tokens))

    def _scatter_rows(self, hidden: torch.Tensor, own: range) -> torch.Tensor:
        """The sum of this rank's rows of every rank's `hidden`: (len(own), hidden_size)."""
        num_tokens, hidden_size = hidden.shape
        if hidden.is_cuda:
            share = -(-num_tokens // self.size)
            padded = torch.nn.functional.pad(hidden, (0, 0, 0, self.size * share - num_tokens))
            summed = hidden.new_empty(share, hidden_size)
            self._device_group.scatter_sums(padded, summed, "all_reduce_rms_norm")
            return summed[: len(own)]
        row_bytes = hidden_size * hidden.itemsize
        lengths = [len(self._rows_of(rank, num_tokens, row_bytes)) for rank in range(self.size)]
        return self._host_group.scatter_sums(hidden, lengths, len(own), "all_reduce_rms_norm")

    def _gather_rows(self, own: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Every rank's rows, (num_tokens, hidden_size); they are fewer on the last ranks where they don't divide."""
        share = -(-num_tokens // self.size)
        if own.shape[0] < share:
            own = torch.nn.functional.pad(own, (0, 0, 0, share - own.shape[0]))
        gathered = own.new_empty(self.size * share, own.shape[1])
        if own.is_cuda:
            self._device_group.all_gather(own, gathered, "all_reduce_rms_norm")
        else:
            self._host_group.all_gather(own, gathered, "all_reduce_rms_norm")
        return gathered[:num_tokens]

    def _all_gather(self, tensor: torch.Tensor, gathered: torch.Tensor) -> None:
        self._start(f"all_gather of {_describe(tensor)}", tensor)
        if tensor.is_cuda:
            self._device_group.all_gather(tensor, gathered, "all_gather")
        elif tensor.numel():
            self._host_group.all_gather(tensor, gathered, "all_gather")

    def _broadcast(self, tensor: torch.Tensor, root: int) -> None:
        self._start(f"broadcast of {_describe(tensor)} from rank {root}", tensor)
        if tensor.numel() == 0:
            return
        if tensor.is_cuda:
            self._device_group.broadcast(tensor, root, "broadcast")
        else:
            self._host_group.broadcast(tensor, root, "broadcast")

    def _broadcast_bytes(self, data: bytes | None, root: int, idle: bool) -> bytes:
        self._count_call()
        return self._commands.broadcast_bytes(data, root, idle)

    def _count_call(self) -> None:
        self._check_usable()
        self._waits.step += 1

    def _start(self, call: str, tensor: torch.Tensor | None = None) -> None:
        self._count_call()
        if self._check_calls and (tensor is None or not tensor.is_cuda):
            compare_calls(call, self.rank, self._host_group, self._waits)

    @property
    def _place(self) -> torch.device:
        """Where this rank's tensors are."""
        return self.kernels.device

    @property
    def _device_timeout_s(self) -> float:
        """How long `wait_for` waits."""
        return self.timeout_s

    def _look(self) -> None:
        self._waits.look("a wait for its device")

    def _end_device_calls(self) -> None:
        """Ends what hangs on this rank's device. A group of somebody else's is ended by its own timeout."""
        if self._owns_everything:
            self._device_group.end()

    def _check_usable(self) -> None:
        if self._closed:
            raise CommunicatorError("the communicator is closed; make a new one")
        if self._waits.failure is not None:
            raise copy(self._waits.failure)


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.numel()} x {str(tensor.dtype).removeprefix('torch.')}"
