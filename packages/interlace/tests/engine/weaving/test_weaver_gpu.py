"""The weaver of ranks on GPUs: from the machine's table and the group's own reductions, or a model of the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from interlace.engine.weaving import gpu_prices
from interlace.engine.weaving.gpu_prices import GpuJob, GpuPrices, PassCtas, prepare_gpus
from interlace.engine.weaving.this_machine import table_directory
from interlace.engine.weaving.weaver import Weaver
from interlace.models.batch import ForwardBatch
from support.configs import SMOLLM2
from support.rank_groups import ThreadRanks
from support.wave_tables import gpu_table
from tokenweave.communicators import NullCommunicator, thread_group
from tokenweave.communicators.thread import Rendezvous, ThreadCommunicator
from tokenweave.cost import Peaks
from tokenweave.curves import Curve
from tokenweave.geometry import BatchGeometry
from tokenweave.host_costs import STREAMS, HostCosts
from tokenweave.kernels import ReferenceKernels
from tokenweave.kernels.cuda.sharing import CtaTable

REDUCE_US = {2: 3.0, 8: 2.0}
TABLE = gpu_table(REDUCE_US, {2: 1.01, 8: 1.05}).taking(((4096, 8),), ((256, 8), (4096, 2)))
WHOLE, WOVEN = CtaTable(((4096, 8),)), CtaTable(((256, 8), (4096, 2)))
H100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", multi_processor_count=132, major=9, minor=0)


class CountingThreads(ThreadCommunicator):
    """Remembers which CTAs it is to take."""

    told: CtaTable | None = None

    def use_ctas(self, num_ctas: CtaTable) -> None:
        self.told = num_ctas


CTAS = PassCtas(CountingThreads(Rendezvous(2), 0), WHOLE, WOVEN)


class KernelsOfAGpu(ReferenceKernels):
    """As far as a decision is concerned."""

    def __init__(self) -> None:
        super().__init__(1)
        self.device = torch.device("cuda:0")


def runner(prices: GpuPrices | None, **options: Any) -> Any:
    """Rank 0 of two."""
    config = SimpleNamespace(
        **{"weave": "auto", "executor": "lanes", "max_num_batched_tokens": 2048, **options}
    )
    return SimpleNamespace(
        config=config,
        communicator=SimpleNamespace(size=2, rank=0),
        kernels=KernelsOfAGpu(),
        model_config=SMOLLM2,
        dtype=torch.bfloat16,
        weights_name="none",
        streams=object(),
        graphs=None,
        gpu_prices=prices,
    )


def slow(us_per_token: float) -> Curve:
    return Curve((1, 4096), (1e-6 * us_per_token, 4096e-6 * us_per_token))


def job(communicator: Any, **options: Any) -> GpuJob:
    """The same job, before it has prices."""
    there = runner(None, **options)
    return GpuJob(there.config, SMOLLM2, communicator, there.kernels, there.dtype, "none")


@pytest.fixture(autouse=True)
def h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: H100)


@pytest.mark.parametrize("executor", ["lanes", "sequential"])
def test_without_times_of_reductions_nothing_is_woven_unless_asked(executor: str) -> None:
    batch = ForwardBatch.prefill(2000, 100)
    assert Weaver.of(runner(None, executor=executor)).split(batch) is None
    assert Weaver.of(runner(None, executor=executor, weave="never")).split(batch) is None
    split = Weaver.of(runner(None, executor=executor, weave="always")).split(batch)
    assert split == 1024


def test_a_single_rank_never_weaves() -> None:
    single = runner(GpuPrices(CTAS, slow(2.0), slow(2.0), TABLE), weave="always")
    single.communicator.size = 1
    assert Weaver.of(single).mode == "never"


def test_stages_are_the_tables_and_reductions_the_groups_own() -> None:
    found = Weaver.of(runner(GpuPrices(CTAS, slow(5.0), slow(6.0), TABLE)))
    assert found.costs is not None
    table = found.costs.table
    assert table.reduce(1000) == pytest.approx(5e-3)
    assert table.beside_reduction(512).reduce(1000) == pytest.approx(6e-3)
    assert table.projections == TABLE.projections
    assert table.sharing is not None
    assert (table.sharing.whole, table.sharing.woven) == (WHOLE.rows, WOVEN.rows)
    assert not found.shared_core
    assert found.alignment == 128
    split = found.split(ForwardBatch.prefill(2048, 100))
    assert split is not None
    assert split % 128 == 0


def test_the_guard_leaves_batches_whole_whose_reductions_are_short() -> None:
    found = Weaver.of(runner(GpuPrices(CTAS, slow(0.1), slow(0.1), TABLE)))
    assert found.split(ForwardBatch.prefill(2048, 100)) is None


def test_without_a_table_the_device_is_modelled_with_what_it_reaches() -> None:
    found = Weaver.of(runner(GpuPrices(None, slow(0.02), slow(0.02), peaks=Peaks(500e12, 3e12))))
    assert found.costs is not None
    table = found.costs.table
    assert not table.is_measured
    assert table.host == STREAMS
    assert table.sharing is not None
    assert (table.sharing.num_sms, table.sharing.in_part(512).num_ctas) == (132, 16)
    batch = ForwardBatch.prefill(2048, 100)
    assert found.split(batch) is None  # a small model's steps: the host could not issue twice as many in time
    found.costs = replace(found.costs, table=replace(table, host=HostCosts()))
    assert found.choose(batch.geometry).split is not None


@pytest.mark.parametrize(("refusal", "is_woven"), [(None, True), ("the group has none", False)])
def test_passes_that_decode_cost_the_host_nothing_where_they_are_graphs(
    refusal: str | None, is_woven: bool
) -> None:
    """1024 sequences whose next token is wanted. Issued one by one, 30 layers of twice the steps would take 1.2 s."""
    there = runner(GpuPrices(CTAS, slow(5.0), slow(5.0), replace(TABLE, host=HostCosts(issue_s=5e-3))))
    there.graphs = SimpleNamespace(refusal=refusal)
    found = Weaver.of(there)
    ends = np.arange(1025, dtype=np.int32)
    decoding = BatchGeometry(ends, np.full(1024, 64, dtype=np.int32), ends[1:] - 1)
    assert (found.choose(decoding).split is not None) is is_woven
    assert found.choose(BatchGeometry.prefill(1024)).split is None


def test_where_nobody_takes_the_tables_ctas_reductions_are_taken_to_take_the_most() -> None:
    found = Weaver.of(runner(GpuPrices(None, slow(5.0), slow(5.0), TABLE)))
    assert found.costs is not None
    assert found.costs.table.sharing is not None
    assert [found.costs.table.sharing.in_part(tokens).num_ctas for tokens in (16, 256, 4096)] == [8, 8, 8]


def test_ranks_on_processors_and_single_ones_have_nothing_to_prepare() -> None:
    assert prepare_gpus(job(NullCommunicator())) is None
    there = replace(job(CountingThreads(Rendezvous(2), 0)), kernels=ReferenceKernels(1))
    assert prepare_gpus(there) is None


@pytest.mark.parametrize("is_woven", [False, True])
def test_all_ranks_take_the_ctas_of_rank_0s_table_for_the_pass(is_woven: bool) -> None:
    rendezvous = Rendezvous(2)
    group = ThreadRanks([CountingThreads(rendezvous, rank, timeout_s=10) for rank in range(2)])
    assert group.run("gpu_rank_programs.agreed", TABLE, is_woven) == [True, True]
    for communicator in group.communicators:
        assert isinstance(communicator, CountingThreads)
        assert communicator.told == (WOVEN if is_woven else WHOLE)
    group.close()


@pytest.mark.parametrize("table", [None, replace(TABLE, sharing=None), TABLE])
def test_where_there_are_no_ctas_or_nobody_takes_them_there_is_nothing_to_agree_on(table: Any) -> None:
    group = ThreadRanks(list(thread_group(2, timeout_s=10)))
    assert group.run("gpu_rank_programs.agreed", table, True) == [False, False]
    group.close()


@pytest.fixture
def first() -> CountingThreads:
    """Rank 0 of two: it is told what it says itself, and waits for nobody."""
    communicator = CountingThreads(Rendezvous(1), 0)
    communicator.size = 2
    return communicator


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a device would be timed for."""
    monkeypatch.setattr(gpu_prices, "CudaEvents", lambda wait: None)
    monkeypatch.setattr(gpu_prices, "measure_reductions", lambda *_: slow(2.0))
    monkeypatch.setattr(gpu_prices, "measure_peaks", lambda *_: Peaks(500e12, 3e12))


@pytest.mark.parametrize(("weave", "is_timed"), [("auto", True), ("never", False), ("always", False)])
def test_reductions_are_timed_as_they_will_run_where_weaving_depends_on_them(
    weave: str, is_timed: bool, first: CountingThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = job(first, weave=weave)
    table = replace(TABLE, key=there.key)
    table.save(table_directory())
    us = {WHOLE: 2.0, WOVEN: 3.0}
    monkeypatch.setattr(gpu_prices, "measure_reductions", lambda *_: slow(us[first.told]))
    found, ctas = prepare_gpus(there), PassCtas(first, WHOLE, WOVEN)
    assert found == (GpuPrices(ctas, slow(2.0), slow(3.0), table) if is_timed else GpuPrices(ctas))
    assert ctas.left_sms == 2


def test_without_a_table_rank_0_measures_what_the_device_reaches(
    first: CountingThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = Peaks(500e12, 3e12)
    assert prepare_gpus(job(first)) == GpuPrices(None, slow(2.0), slow(2.0), None, peaks)
    assert first.told is None
    first.rank = 1
    monkeypatch.setattr(first, "broadcast_bytes", lambda own: b"[]")
    assert prepare_gpus(job(first)) == GpuPrices(None, slow(2.0), slow(2.0))
