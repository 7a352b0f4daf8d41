"""Stages on a GPU: two ranks share one, as threads. These tests run where there is one, and assert no time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from interlace.engine.weaving.gpu_stages import CudaGpus, GpuStages, measure_gpus
from support.configs import SMOLLM2
from tokenweave.kernels import ResidualNorms
from tokenweave.kernels.cuda.available import unavailable_reason
from tokenweave.kernels.norms import reference_add_rms_norm
from tokenweave.stage_clock import CudaEvents, EventClock
from tokenweave.wave_table import CURVES, WaveTable

reason = unavailable_reason()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=f"CUDA kernels: {reason}")]

SMALL = replace(SMOLLM2, hidden_size=512, intermediate_size=512, head_dim=64, num_layers=2, vocab_size=512)
CTAS = (2, 4)


def test_a_kernel_is_timed_without_its_launch() -> None:
    """Twice as many cycles take twice as long; a launch would add as much to both."""
    clock = EventClock(CudaEvents())
    few, many = (
        clock.seconds(lambda cycles=cycles: torch.cuda._sleep(cycles), 8)  # type: ignore[misc]
        for cycles in (20_000, 200_000)
    )
    assert many / few == pytest.approx(10, rel=0.3)


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 100])
def test_two_ranks_on_one_gpu_have_the_normed_sum(num_tokens: int) -> None:
    gpus = CudaGpus(2, devices=[0])
    group = gpus.group()
    parts = [torch.randn(num_tokens, 512, generator=torch.Generator().manual_seed(rank)) for rank in range(2)]
    residual = torch.zeros(num_tokens, 512)
    expected = reference_add_rms_norm(
        torch.stack(parts).sum(0), residual, ResidualNorms(torch.ones(512), 1e-5)
    )

    def run(rank: int) -> torch.Tensor:
        communicator = group[rank]
        with torch.inference_mode(), gpus.on(rank):
            communicator.kernels = gpus.kernels(rank)
            gpus.join(communicator, 4)
            communicator.reserve_activations(128, 512, torch.float32)
            partial = communicator.new_partial(num_tokens, 512, torch.float32).copy_(parts[rank])
            own = communicator.new_residual(num_tokens, 512, torch.float32)
            norms = ResidualNorms(torch.ones(512, device=partial.device), 1e-5)
            return communicator.all_reduce_rms_norm(partial, own, norms).cpu()

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(run, range(2)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for communicator in group:
        communicator.close()


def test_every_stage_of_two_ranks_on_one_gpu_can_be_timed() -> None:
    with GpuStages(SMALL, CudaGpus(2, devices=[0]), torch.bfloat16, 256, ctas=CTAS) as stages:
        for stage in CURVES:
            for ctas in (0, *CTAS):
                assert all(seconds > 0 for seconds in stages.time(stage, 128, 2, ctas))
        assert all(seconds > 0 for seconds in stages.time_mlp(0, 128, 2))
        assert all(seconds > 0 for seconds in stages.time_attention(0, 8, 1, 64, 2))
        assert all(seconds > 0 for seconds in stages.time_pass(128))
        costs = stages.host_costs()
    assert costs.issue_s > 0


def test_a_small_model_is_measured_and_its_table_survives() -> None:
    table = measure_gpus(SMALL, CudaGpus(2, devices=[0]), torch.bfloat16, max_tokens=256, budget_s=1.0)
    assert table.sharing is not None
    assert {num_ctas for _, num_ctas in table.sharing.ctas} <= {
        each.num_ctas for each in table.sharing.beside
    }
    assert WaveTable.from_json(table.to_json()).sharing == table.sharing
