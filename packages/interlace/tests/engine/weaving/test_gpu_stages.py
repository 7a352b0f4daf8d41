"""Stages on GPUs, played by the processor: whose clock is asked, what CTAs are taken, what the table says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from interlace.engine.weaving.gpu_stages import CudaGpus, GpuStages, measure_gpus
from interlace.engine.weaving.this_machine import table_key
from interlace.models.config import ModelConfig
from support.configs import SMOLLM2
from support.fake_gpus import ISSUE_S, REDUCE_S, ROW_S, FakeGpus
from tokenweave.errors import TuneError
from tokenweave.kernels import ReferenceKernels
from tokenweave.tune import measure_table
from tokenweave.wave_table import CURVES

SMALL = replace(SMOLLM2, hidden_size=144, intermediate_size=112, head_dim=16, num_layers=2, vocab_size=331)
SPARSE = replace(
    SMALL, family="mixtral", num_experts=4, experts_per_token=2, biases=("q", "k", "v", "o"), qk_norm=True
)


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


def test_a_script_measures_a_table_in_one_call() -> None:
    said: list[str] = []
    table = measure_gpus(
        SMALL, FakeGpus(2, num_sms=132), torch.float32, 4, 0.0, lambda done, what: said.append(what)
    )
    assert table.key.kernels.startswith("reference")
    assert table.sharing is not None
    assert [each.num_ctas for each in table.sharing.beside] == [2, 4, 8, 16]
    assert said[-1] == ""


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three devices, of which the first and the last do not reach each other."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.Stream", lambda device: device)
    sms = {0: 132, 1: 114, 2: 132}
    monkeypatch.setattr(
        "torch.cuda.get_device_properties",
        lambda device: SimpleNamespace(multi_processor_count=sms[device.index]),
    )
    monkeypatch.setattr("interlace.engine.weaving.gpu_stages.separate_pairs", lambda: ((0, 2),))


@pytest.mark.usefixtures("three_gpus")
def test_ranks_are_on_devices_of_their_own_or_take_turns() -> None:
    two, four = CudaGpus(2), CudaGpus(4, devices=[0, 1])
    assert (two.num_devices, two.num_sms) == (2, 114)
    assert (four.size, four.num_devices) == (4, 2)
    assert CudaGpus(2, devices=[2]).num_sms == 132


@pytest.mark.usefixtures("three_gpus")
def test_devices_that_do_not_reach_each_other_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TuneError, match="devices 0 and 2 do not reach each other's memory"):
        CudaGpus(3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(TuneError, match="no CUDA device"):
        CudaGpus(1)


def test_a_device_without_sms_to_spare_is_refused() -> None:
    with pytest.raises(TuneError, match="16 CTAs on a device of 10 SMs"):
        GpuStages(SMALL, FakeGpus(2), torch.float32, 12)
