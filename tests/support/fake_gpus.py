"""GPUs played by the processor: reference kernels, and a made-up clock that every product and reduction moves on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from support.fake_events import FakeDevice, OneFakeStream
from tokenweave.communicators import Communicator, NullCommunicator
from tokenweave.communicators.thread import Rendezvous, ThreadCommunicator
from tokenweave.kernels import Kernels, PackedLinear, ReferenceKernels, ResidualNorms
from tokenweave.stage_clock import EventClock

ISSUE_S = 10e-6  # of the host, for each call
ROW_S = 5e-3  # of a product, for each row
REDUCE_S = {0: 4e-3, 2: 4e-3, 4: 1e-3, 8: 1e-3, 16: 1e-3}  # of a reduction, for each row, by CTAs


class FakeGpus:
    """Ranks on devices of their own, whose work takes what is said here."""

    def __init__(self, size: int, num_sms: int = 10) -> None:
        self.size = self.num_devices = size
        self.num_sms = num_sms
        self.devices = [FakeDevice() for _ in range(size)]
        self.carved = 0
        self.inside = threading.local()

    def group(self) -> list[Communicator]:
        if self.size == 1:
            return [NullCommunicator()]
        rendezvous = Rendezvous(self.size)
        return [FakeFused(rendezvous, rank, self) for rank in range(self.size)]

    def join(self, communicator: Communicator, num_ctas: int) -> None:
        assert isinstance(communicator, FakeFused)
        communicator.most = num_ctas

    @contextmanager
    def on(self, rank: int) -> Iterator[None]:
        self.inside.rank = rank
        yield
        self.inside.rank = None

    def kernels(self, rank: int) -> Kernels:
        return TimedKernels(self, rank)

    def clock(self, rank: int) -> EventClock[Any]:
        assert self.inside.rank == rank
        return EventClock(self.devices[rank], self.devices[rank].now)

    def streams(self, rank: int) -> OneFakeStream:
        return OneFakeStream(self.devices[rank], wait_s=2e-6)

    @contextmanager
    def carve_out(self, num_sms: int) -> Iterator[None]:
        self.carved = num_sms
        yield
        self.carved = 0


class TimedKernels(ReferenceKernels):
    """Products take `ROW_S` a row, on the SMs that are left."""

    def __init__(self, gpus: FakeGpus, rank: int) -> None:
        super().__init__(1)
        self._gpus, self._rank = gpus, rank

    def linear(self, x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
        gpus = self._gpus
        assert gpus.inside.rank == self._rank
        gpus.devices[self._rank].issue(ISSUE_S, ROW_S * len(x) * gpus.num_sms / (gpus.num_sms - gpus.carved))
        return super().linear(x, packed, out)


class FakeFused(ThreadCommunicator):
    """Reductions that take the time of their CTAs."""

    def __init__(self, rendezvous: Rendezvous, rank: int, gpus: FakeGpus) -> None:
        super().__init__(rendezvous, rank)
        self._gpus, self.num_ctas, self.most = gpus, 0, 0

    def use_ctas(self, num_ctas: int) -> None:
        self.num_ctas = num_ctas

    def all_reduce_rms_norm(self, hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
        assert self.num_ctas <= self.most
        self._gpus.devices[self.rank].issue(ISSUE_S, REDUCE_S[self.num_ctas] * len(hidden))
        return self._add_rms_norm(hidden, residual, norms)  # the others' part is not needed to take time
