"""Stages on GPUs, played by the processor: whose clock is asked, what CTAs are taken, what the table says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from interlace.engine.weaving.gpu_stages import GpuStages
from interlace.engine.weaving.this_machine import table_key
from interlace.models.config import ModelConfig
from support.configs import SMOLLM2
from support.fake_events import FakeDevice, OneFakeStream
from tokenweave.communicators import Communicator, NullCommunicator
from tokenweave.communicators.thread import Rendezvous, ThreadCommunicator
from tokenweave.errors import TuneError
from tokenweave.kernels import Kernels, PackedLinear, ReferenceKernels, ResidualNorms
from tokenweave.stage_clock import EventClock
from tokenweave.tune import measure_table
from tokenweave.wave_table import CURVES

SMALL = replace(SMOLLM2, hidden_size=144, intermediate_size=112, head_dim=16, num_layers=2, vocab_size=331)
SPARSE = replace(
    SMALL, family="mixtral", num_experts=4, experts_per_token=2, biases=("q", "k", "v", "o"), qk_norm=True
)
ISSUE_S, ROW_S, REDUCE_S = 10e-6, 5e-3, {0: 4e-3, 2: 4e-3, 4: 1e-3}  # of a call; of a row; by CTAs


class FakeGpus:
    """Ranks on devices of 10 SMs each, whose work takes what is said here."""

    num_sms = 10

    def __init__(self, size: int) -> None:
        self.size = self.num_devices = size
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


@pytest.mark.parametrize("config", [SMALL, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("size", [1, 2])
def test_every_stage_is_timed_by_the_clock_of_its_ranks_device(config: ModelConfig, size: int) -> None:
    gpus = FakeGpus(size)
    with GpuStages(config, gpus, torch.float32, 40, ctas=(2, 4)) as stages:
        assert stages.ctas == ((2, 4) if size > 1 else ())
        for stage in CURVES:
            for ctas in (0, *stages.ctas):
                assert len(stages.time(stage, 8, 1, ctas)) == size
        assert stages.time("logits", 8, 2) == pytest.approx((8 * ROW_S,) * size)
        assert stages.time("projections", 8, 2) == pytest.approx((2 * 8 * ROW_S,) * size)
        for kind in set(stages.layers):
            assert len(stages.time_mlp(kind, 8, 2)) == size
            assert stages.time_attention(kind, 8, 2, 20, 1) == (0.0,) * size  # no product of these kernels
        assert all(seconds > 2 * 2 * 8 * ROW_S for seconds in stages.time_pass(8))


def test_reductions_take_the_ctas_and_products_leave_as_many_sms() -> None:
    gpus = FakeGpus(2)
    with GpuStages(SMALL, gpus, torch.float32, 40, ctas=(2, 4)) as stages:
        for ctas, left in ((2, 0.8), (4, 0.6)):
            assert stages.time("reduce", 20, 3, ctas) == pytest.approx((20 * REDUCE_S[ctas],) * 2)
            assert stages.time("projections", 20, 3, ctas) == pytest.approx((40 * ROW_S / left,) * 2)
            assert gpus.carved == 0
        assert stages.time("reduce", 20, 3) == pytest.approx((20 * REDUCE_S[4],) * 2)  # the most, unless told


def test_the_hosts_part_is_timed_apart() -> None:
    gpus = FakeGpus(2)
    with GpuStages(SMALL, gpus, torch.float32, 40, ctas=(2, 4)) as stages:
        costs = stages.host_costs()
    assert (costs.call_s, costs.wake_s) == (0, 0)
    assert costs.switch_s == pytest.approx(2 * 2e-6, rel=0.1)
    assert ISSUE_S < costs.issue_s < 10 * ISSUE_S


def test_a_table_of_fake_gpus_says_what_they_do() -> None:
    gpus, kernels = FakeGpus(2), ReferenceKernels(1)
    key = table_key(SMALL, 2, kernels, torch.float32)
    with GpuStages(SMALL, gpus, torch.float32, 32, ctas=(2, 4)) as stages:
        table = measure_table(stages, key, max_tokens=32, row_tile=16, budget_s=0.0)
    assert table.sharing is not None
    assert table.sharing.num_sms == 10
    two, four = table.sharing.beside
    assert table.projections(32) == pytest.approx(2 * 32 * ROW_S)
    assert two.projections(32) == pytest.approx(table.projections(32) / 0.8)
    assert four.mlps[0](32) == pytest.approx(table.kinds[0].mlp(32) / 0.6)
    assert (two.reduce(32), four.reduce(32)) == pytest.approx((32 * REDUCE_S[2], 32 * REDUCE_S[4]))
    assert table.pace(32) == pytest.approx(
        1.0, rel=0.1
    )  # these products take the rows' time, whatever their columns


def test_a_device_without_sms_to_spare_is_refused() -> None:
    with pytest.raises(TuneError, match="16 CTAs on a device of 10 SMs"):
        GpuStages(SMALL, FakeGpus(2), torch.float32, 12)
