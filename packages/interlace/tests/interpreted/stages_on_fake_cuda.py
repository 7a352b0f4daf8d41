"""Stages of a rank on fake CUDA: what is timed are calls that the kernels take. Run by test_fake_cuda_engine.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interlace.engine.weaving.fused_threads import fused_thread_group
from interlace.engine.weaving.gpu_stages import GpuStages
from support.configs import SMOLLM2
from support.fake_gpus import FakeGpus
from tokenweave.kernels import Kernels, ReferenceKernels, ResidualNorms
from tokenweave.kernels.cuda.backend.cuda_kernels import CudaKernels
from tokenweave.kernels.norms import reference_add_rms_norm
from tokenweave.wave_table import CURVES

CPU = torch.device("cpu")


class InterpretedGpus(FakeGpus):
    """The CUDA kernels, whose time is not counted."""

    def kernels(self, rank: int) -> Kernels:
        return CudaKernels("cpu")


def test_every_stage_is_a_call_that_the_kernels_take() -> None:
    small = replace(SMOLLM2, hidden_size=64, intermediate_size=48, head_dim=16, num_layers=1, vocab_size=51)
    with GpuStages(small, InterpretedGpus(1), torch.float32, 4, ctas=(2,)) as stages:
        for stage in CURVES:
            assert stages.time(stage, 3, 1) == (0.0,)
        assert (
            stages.time_mlp(0, 3, 1) == stages.time_attention(0, 2, 1, 3, 1) == stages.time_pass(3) == (0.0,)
        )


@pytest.mark.parametrize("num_tokens", [1, 16, 17])
def test_a_rank_that_meets_itself_has_the_normed_sum(num_tokens: int) -> None:
    (rank,) = fused_thread_group(1)
    rank.kernels = ReferenceKernels(1)
    rank.open(CPU, 4)
    rank.reserve_activations(20, 32, torch.float32)
    hidden = torch.randn(num_tokens, 32)
    norms = ResidualNorms(torch.full((32,), 1.5), 1e-5)
    summed = torch.zeros(num_tokens, 32)
    expected = reference_add_rms_norm(hidden, summed, norms)
    residual = rank.new_residual(num_tokens, 32, torch.float32)
    for num_ctas in (4, 2):
        rank.use_ctas(num_ctas)
        residual.zero_()
        found = rank.all_reduce_rms_norm(
            rank.new_partial(num_tokens, 32, torch.float32).copy_(hidden), residual, norms
        )
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(residual, summed)
    rank.close()
