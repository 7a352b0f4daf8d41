"""The stages that a wave table is measured with are those that the engine runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interlace.engine.weaving.stage_timing import HostStages, row_tile, table_key
from interlace.models.config import ModelConfig
from support.configs import SMOLLM2
from tokenweave.errors import TuneError
from tokenweave.kernels import make_kernels
from tokenweave.tune import measure_table
from tokenweave.wave_table import CURVES

SMALL = replace(SMOLLM2, hidden_size=144, intermediate_size=112, head_dim=16, num_layers=2, vocab_size=331)
SPARSE = replace(
    SMALL, family="mixtral", num_experts=4, experts_per_token=2, biases=("q", "k", "v", "o"), qk_norm=True
)
WINDOWED = replace(SMALL, family="mistral", sliding_window=24)


@pytest.mark.parametrize("config", [SMALL, SPARSE, WINDOWED], ids=["dense", "sparse", "windowed"])
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_every_stage_of_every_rank_can_be_timed(config: ModelConfig, kernels: str) -> None:
    with HostStages(config, 2, kernels, 1, torch.float32, 40) as stages:
        for stage in CURVES:
            for num_tokens in (1, 40):
                assert all(seconds > 0 for seconds in stages.time(stage, num_tokens, 2))
        assert all(seconds > 0 for seconds in stages.time_attention(8, 2, 20, 1))
        assert all(seconds > 0 for seconds in stages.time_pass(40))
        assert stages.num_layers == config.num_layers
        assert stages.pairs(3, 10) == 8 + 9 + 10


def test_one_rank_is_measured_too() -> None:
    with HostStages(SMALL, 1, "native", 1, torch.float32, 12) as stages:
        assert len(stages.time("reduce", 12, 1)) == 1


def test_a_small_model_is_measured_in_a_moment() -> None:
    kernels = make_kernels("native", 1)
    key = table_key(SMALL, 2, kernels, torch.float32)
    with HostStages(SMALL, 2, "native", 1, torch.float32, 100) as stages:
        table = measure_table(stages, key, max_tokens=100, row_tile=row_tile(kernels), budget_s=0.1)
    assert table.key == key
    assert table.mlp(96) > table.mlp(1)


def test_more_ranks_than_cores_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with pytest.raises(TuneError, match="2 ranks on 1 cores"):
        HostStages(SMALL, 2, "native", 1, torch.float32, 12)


def test_a_key_tells_machines_shapes_and_kernels_apart() -> None:
    native, reference = make_kernels("native", 1), make_kernels("reference", 1)
    keys = {
        table_key(config, size, kernels, dtype)
        for config in (SMOLLM2, SPARSE, WINDOWED)
        for size in (1, 2, 3)
        for kernels in (native, reference)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(keys) == 36
    assert [(rank.heads, rank.kv_heads) for rank in table_key(SMOLLM2, 2, native, torch.float32).ranks] == [
        (4, 2),
        (5, 2),
    ]
