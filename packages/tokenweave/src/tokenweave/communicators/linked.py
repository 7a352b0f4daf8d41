"""Ranks whose bytes take as long as on a slower interconnect: any communicator, and a *modelled* link (emucxl).

Each rank has a port of its own (tokenweave.link): what it sends in an exchange queues in one direction, what it
receives in the other, and the exchange takes as long as the longer of the two, and a latency. The bytes themselves go
the inner communicator's way, at memory speed.

Thread safety: as for every communicator. A port lies in shared memory: whatever else uses it, in whichever process,
queues on it too.

Invariants
1. A modelled exchange begins when every rank has come: a link cannot carry what is not there. A broadcast begins when
   its root has come; the root goes on at once, its port is occupied meanwhile.
2. Nobody sees what an exchange brings before the link has carried it.
3. A wait for the link sleeps, so that other threads have the core, never returns early, and looks for an abort every
   `SLICE_NS`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenweave.communicators.base import Communicator
from tokenweave.communicators.sums import run_phases
from tokenweave.replay.records import CallSites
from tokenweave.traffic import Traffic, exchanges_of_sum

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch
    from torch import Tensor

    from emucxl.links import Link
    from tokenweave.communicators.activation_ring import BuffersTaken
    from tokenweave.communicators.device_wait import DeviceEvent
    from tokenweave.kernels import Kernels, ResidualNorms

SLICE_NS = 50_000_000


class LinkedCommunicator(Communicator):
    """One rank of `inner`'s group behind the port `link`; both are closed with it.

    Channel: that of `inner`; after a call what `inner` says is visible. The time of each exchange is modelled.
    """

    def __init__(self, inner: Communicator, link: Link) -> None:
        super().__init__(inner.rank, inner.size, timeout_s=inner.timeout_s)
        self.inner, self.link = inner, link
        config = link.config
        self.name = f"{inner.name} over {config.read_bandwidth_gbps:g} GB/s, {config.latency_ns / 1e3:g} us (modelled)"
        self._latency_ns = int(config.latency_ns)

    @property
    def kernels(self) -> Kernels:
        return self.inner.kernels

    @kernels.setter
    def kernels(self, kernels: Kernels) -> None:
        self.inner.kernels = kernels

    def barrier(self) -> None:
        self.inner.barrier()
        self._carry(Traffic(0, 0))

    def gather_columns(self, tensor: Tensor, widths: Sequence[int], root: int = 0) -> Tensor | None:
        gathered = self.inner.gather_columns(tensor, widths, root)
        if gathered is None:
            self._carry(Traffic(tensor.nbytes, 0))
        else:
            self._carry(Traffic(0, gathered.nbytes - tensor.nbytes))
        return gathered

    def reserve_activations(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
        self.inner.reserve_activations(num_tokens, hidden_size, dtype)

    def new_partial(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        return self.inner.new_partial(num_tokens, hidden_size, dtype)

    def new_residual(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
        return self.inner.new_residual(num_tokens, hidden_size, dtype)

    def prepare(self, hidden_size: int, dtype: torch.dtype, max_tokens: int, *norms: ResidualNorms) -> None:
        self.inner.prepare(hidden_size, dtype, max_tokens, *norms)

    def owned_rows(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> range:
        return self.inner.owned_rows(num_tokens, hidden_size, dtype)

    def is_residual_sharded(self, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> bool:
        return self.inner.is_residual_sharded(num_tokens, hidden_size, dtype)

    def all_reduce_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        """The inner communicator's, with a wait for the link wherever ranks exchange rows."""
        return run_phases(self.inner.reduce_norm_phases(hidden, residual, norms), self._carry)

    def reduce_norm_phases(
        self, hidden: Tensor, residual: Tensor, norms: ResidualNorms
    ) -> Generator[Traffic, None, Tensor]:
        return self.inner.reduce_norm_phases(hidden, residual, norms)

    def call_sites(self) -> CallSites | None:
        inner = self.inner.call_sites()
        return None if inner is None else inner + CallSites(python=((self, "_carry"),))

    def begin_pass(self) -> None:
        self.inner.begin_pass()

    @property
    def buffers_taken(self) -> BuffersTaken:
        return self.inner.buffers_taken

    def take_buffers(self, num: BuffersTaken) -> None:
        self.inner.take_buffers(num)

    def wait_for(self, event: DeviceEvent) -> None:
        self.inner.wait_for(event)

    def share_core(self, is_shared: bool) -> None:
        self.inner.share_core(is_shared)

    def check(self) -> None:
        self.inner.check()

    def abort(self, reason: str) -> None:
        self.inner.abort(reason)

    def close(self) -> None:
        self.inner.close()
        self.link.close()

    def _all_reduce(self, tensor: Tensor) -> None:
        self.inner.all_reduce(tensor)
        for traffic in exchanges_of_sum(self.size, tensor.nbytes):
            self._carry(traffic)

    def _all_gather(self, tensor: Tensor, gathered: Tensor) -> None:
        gathered.copy_(self.inner.all_gather(tensor))
        others_bytes = (self.size - 1) * tensor.nbytes
        self._carry(Traffic(others_bytes, others_bytes))

    def _broadcast(self, tensor: Tensor, root: int) -> None:
        self.inner.broadcast(tensor, root)
        self._pass_on(tensor.nbytes, root)

    def _broadcast_bytes(self, data: bytes | None, root: int, idle: bool) -> bytes:
        received = self.inner.broadcast_bytes(data, root, idle)
        self._pass_on(len(received), root)
        return received

    def _check(self, tensor: Tensor) -> None:
        self.inner._check(tensor)

    def _pass_on(self, size_bytes: int, root: int) -> None:
        """The root sends a copy to each of the others, and does not wait for them."""
        if self.rank != root:
            self._carry(Traffic(0, size_bytes))
        elif self.size > 1:
            self.link.reserve("write", (self.size - 1) * size_bytes, time.monotonic_ns())

    def _carry(self, traffic: Traffic) -> None:
        """Returns when the port has carried an exchange that begins now."""
        if self.size == 1:
            return
        now_ns = time.monotonic_ns()  # CLOCK_MONOTONIC, which emucxl's links follow
        until_ns = self._latency_ns + max(
            self.link.reserve("write", traffic.sent_bytes, now_ns),
            self.link.reserve("read", traffic.received_bytes, now_ns),
        )
        # No spinning at the end, as emx_wait_until would: the core may be computing what this wait is to hide behind.
        while (left_ns := until_ns - time.monotonic_ns()) > 0:
            time.sleep(min(left_ns, SLICE_NS) / 1e9)
            if left_ns > SLICE_NS:
                self.inner.check()
