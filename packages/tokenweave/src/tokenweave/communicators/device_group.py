"""The calls of a torch group on CUDA tensors: they are queued, and the current stream waits for them, not the host.

Thread safety: as the communicator's, one thread at a time; `end` may be called from any thread.

Invariants:
  1. The host waits for no call. nccl takes a wait with a timeout for one of the host, so none is given.
  2. A wait for a device is bounded by `Communicator.wait_for`, and what hangs on it is ended by `end`. nccl's own
     timeout is twice as long in a group that is made here (`rendezvous.join`), and spares the process.
  3. nccl connects the ranks within the first call, which knows no timeout: `meet` makes it and bounds it.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import BroadcastOptions, ReduceScatterOptions

from tokenweave.communicators.device_wait import within
from tokenweave.communicators.rendezvous import nccl_of
from tokenweave.errors import CommunicatorTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from tokenweave.communicators.waits import Waits

END_S = 5.0  # for nccl to end its kernels, or to leave a group


class DeviceGroup:
    """A group as it serves CUDA tensors."""

    def __init__(self, group: Any, waits: Waits) -> None:
        self._group, self._waits = group, waits

    @property
    def is_nccl(self) -> bool:
        return nccl_of(self._group) is not None

    def meet(self, device: torch.device, timeout_s: float, watch: Callable[[], None] | None = None) -> None:
        """Returns once all ranks have called it, each with its own device.

        Raises:
            CommunicatorTimeout: they have not within `timeout_s`.
            RankError: the group could not connect them.
            Whatever `watch` raised.
        """

        def call() -> None:
            one = torch.ones(1, device=device)
            self.all_reduce(one, "the first call")
            one.item()

        if not within(timeout_s, call, watch):
            raise CommunicatorTimeout(
                f"{self._waits.name} could not meet the others over nccl within {timeout_s:g} s; check that each has a "
                "device of its own and that they reach each other, or raise timeout_s"
            )

    def all_reduce(self, tensor: Tensor, call: str) -> None:
        with self._named(call):
            self._group.allreduce([tensor]).wait()

    def scatter_sums(self, tensor: Tensor, summed: Tensor, call: str) -> None:
        """Fills `summed` with this rank's share of the sum of `tensor`, which is size times as long."""
        with self._named(call):
            self._group._reduce_scatter_base(summed, tensor, ReduceScatterOptions()).wait()

    def all_gather(self, tensor: Tensor, gathered: Tensor, call: str) -> None:
        with self._named(call):
            self._group._allgather_base(gathered, tensor).wait()

    def broadcast(self, tensor: Tensor, root: int, call: str) -> None:
        options = BroadcastOptions()
        options.rootRank = root
        with self._named(call):
            self._group.broadcast([tensor], options).wait()

    def end(self) -> None:
        """Ends what nccl has queued, which would wait for a lost rank for ever. It is of no use after that."""
        if (nccl := nccl_of(self._group)) is not None:
            with suppress(RuntimeError):  # ended already
                within(END_S, nccl.abort)

    def destroy(self) -> None:
        """Has torch forget its default group, which this is of, and all others."""
        if self.is_nccl:
            within(END_S, dist.destroy_process_group)
        else:
            dist.destroy_process_group()

    @contextmanager
    def _named(self, call: str) -> Iterator[None]:
        """An error of the group in this block becomes a `RankError` that names who does not answer."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise  # no memory, or a kernel of before that failed
            self._waits.fail_as_lost(call, error)
