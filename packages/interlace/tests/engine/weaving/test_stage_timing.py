"""The stages that a wave table is measured with are those that the engine runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from interlace.engine.weaving.stage_timing import HostStages
from interlace.engine.weaving.table_key import kinds_of_layers
from interlace.engine.weaving.this_machine import row_tile, table_key
from interlace.models.config import ModelConfig
from interlace.models.shard import Shard
from support.configs import SMOLLM2
from tokenweave.errors import TuneError
from tokenweave.kernels import NativeKernels, ReferenceKernels, make_kernels
from tokenweave.tune import measure_table
from tokenweave.wave_table import CURVES, MlpShape

SMALL = replace(SMOLLM2, hidden_size=144, intermediate_size=112, head_dim=16, num_layers=2, vocab_size=331)
SPARSE = replace(
    SMALL, family="mixtral", num_experts=4, experts_per_token=2, biases=("q", "k", "v", "o"), qk_norm=True
)
WINDOWED = replace(SMALL, family="mistral", sliding_window=24)


MIXED = replace(
    SPARSE,
    num_layers=4,
    dense_layers=(0, 3),
    dense_intermediate_size=256,
    sliding_window=24,
    full_layers=(2, 3),
)
CONFIGS = {"dense": SMALL, "sparse": SPARSE, "windowed": WINDOWED, "mixed": MIXED}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_every_stage_of_every_rank_can_be_timed(config: ModelConfig, kernels: str) -> None:
    with HostStages(config, 2, kernels, 1, torch.float32, 40) as stages:
        for stage in CURVES:
            for num_tokens in (1, 40):
                assert all(seconds > 0 for seconds in stages.time(stage, num_tokens, 2))
        for kind in set(stages.layers):
            assert all(seconds > 0 for seconds in stages.time_mlp(kind, 40, 2))
            assert all(seconds > 0 for seconds in stages.time_attention(kind, 8, 2, 20, 1))
        assert all(seconds > 0 for seconds in stages.time_pass(40))
        assert len(stages.layers) == config.num_layers


def test_layers_are_of_as_many_kinds_as_they_differ() -> None:
    shards = [Shard.of(MIXED, rank, 2) for rank in range(2)]
    assert kinds_of_layers(MIXED, shards) == (0, 1, 2, 3)
    assert kinds_of_layers(replace(MIXED, sliding_window=None), shards) == (0, 1, 1, 0)
    assert kinds_of_layers(replace(MIXED, dense_layers=()), shards) == (0, 0, 1, 1)
    assert kinds_of_layers(SMALL, shards) == (0, 0)
    key = table_key(MIXED, 2, make_kernels("native", 1), torch.float32)
    dense, sparse = MlpShape((128, 128)), MlpShape((64, 48), num_experts=4, experts_per_token=2)
    assert [(kind.mlp, kind.window) for kind in key.kinds] == [
        (dense, 24),
        (sparse, 24),
        (sparse, 0),
        (dense, 0),
    ]


def test_of_each_kind_as_many_layers_are_made_as_no_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of SMALL takes 415 kB in float32."""
    monkeypatch.setattr("interlace.engine.weaving.cold_layers.COLD_BYTES", 1e6)
    deep = replace(SMALL, num_layers=20)
    with HostStages(deep, 1, "reference", 1, torch.float32, 1) as stages:
        assert stages.layers == (0,) * 3
    last_is_full = replace(deep, sliding_window=24, full_layers=(1, 3, 19))
    with HostStages(last_is_full, 1, "reference", 1, torch.float32, 1) as stages:
        assert stages.layers == (0, 1, 0, 1, 0, 1)


def test_one_rank_is_measured_too() -> None:
    with HostStages(SMALL, 1, "native", 1, torch.float32, 12) as stages:
        assert len(stages.time("reduce", 12, 1)) == 1


def test_a_small_model_is_measured_in_a_moment() -> None:
    kernels = make_kernels("native", 1)
    key = table_key(SMALL, 2, kernels, torch.float32)
    with HostStages(SMALL, 2, "native", 1, torch.float32, 100) as stages:
        table = measure_table(stages, key, max_tokens=100, row_tile=row_tile(kernels), budget_s=0.1)
    assert table.key == key
    assert table.kinds[0].mlp(96) > table.kinds[0].mlp(1)


def test_more_ranks_than_cores_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with pytest.raises(TuneError, match="2 ranks on 1 cores"):
        HostStages(SMALL, 2, "native", 1, torch.float32, 12)


def test_a_key_tells_machines_shapes_and_kernels_apart() -> None:
    native, reference = make_kernels("native", 1), make_kernels("reference", 1)
    keys = {
        table_key(config, size, kernels, dtype)
        for config in (
            SMOLLM2,
            SPARSE,
            WINDOWED,
            MIXED,
            replace(MIXED, full_layers=()),
            replace(MIXED, dense_layers=()),
            replace(SPARSE, shared_intermediate_size=64),
        )
        for size in (1, 2, 3)
        for kernels in (native, reference)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(keys) == 84
    assert [(rank.heads, rank.kv_heads) for rank in table_key(SMOLLM2, 2, native, torch.float32).ranks] == [
        (4, 2),
        (5, 2),
    ]


def test_a_key_tells_instruction_sets_builds_and_weights_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        table_key(SMOLLM2, 2, NativeKernels(threads, isa), torch.float32, quantize)
        for isa in ("baseline", "amx-emulated")
        for threads in (1, 2)
        for quantize in ("none", "int8", "int4")
    }
    assert len(keys) == 12
    monkeypatch.setattr("tokenweave.native.build", lambda: "another")
    assert table_key(SMOLLM2, 2, NativeKernels(1, "baseline"), torch.float32) not in keys


class KernelsOfAGpu(ReferenceKernels):
    """As far as a key is concerned."""

    name = "cuda"

    def __init__(self) -> None:
        super().__init__(1)
        self.device = torch.device("cuda:0")


def test_a_gpus_key_has_its_sms_and_what_loads_and_compiles_its_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = SimpleNamespace(name="NVIDIA H100 80GB HBM3", multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: found)
    monkeypatch.setattr("interlace.engine.weaving.this_machine.driver_version", lambda: "580.65.06")
    key = table_key(SMALL, 2, KernelsOfAGpu(), torch.bfloat16)
    assert key.machine == "NVIDIA H100 80GB HBM3, 132 SMs"
    assert key.kernels == "cuda sm_90"
    for part in (f"torch {torch.__version__}", "triton 3.", "driver 580.65.06"):
        assert part in key.library
    assert key.dtype == "bfloat16"
    assert row_tile(KernelsOfAGpu()) == 128
    found.multi_processor_count = 114
    assert table_key(SMALL, 2, KernelsOfAGpu(), torch.bfloat16) != key
