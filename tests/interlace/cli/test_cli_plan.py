from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.cli.plan_work import Gemm, Workload
from interlace.models.config import ModelConfig, weight_shapes
from interlace.models.shard import Shard
from support.configs import SMOLLM2
from tokenweave.plan import Op, Step, plan_forward

MIXTRAL = replace(SMOLLM2, family="mixtral", num_experts=8, experts_per_token=2, tie_word_embeddings=False)


def workload(config: ModelConfig, rank: int, size: int, num_tokens: int = 512) -> Workload:
    return Workload(config, Shard.of(config, rank, size), num_tokens, "bfloat16")


def test_gemm_shapes_are_those_of_the_rank() -> None:
    step = Step(Op.ATTENTION, layer=0)
    assert workload(SMOLLM2, 1, 2).of(step).gemms == (
        Gemm("qkv", 512, 576, (5 + 2 * 2) * 64),
        Gemm("o", 512, 5 * 64, 576),
    )


@given(st.integers(1, 5), st.integers(1, 700))
def test_mlp_flops_of_all_ranks_are_those_of_one(size: int, num_tokens: int) -> None:
    for config in (SMOLLM2, replace(SMOLLM2, intermediate_size=1000)):
        step = Step(Op.MLP, layer=0)
        parts = [workload(config, rank, size, num_tokens).of(step).flops for rank in range(size)]
        assert sum(parts) == workload(config, 0, 1, num_tokens).of(step).flops


@pytest.mark.parametrize("config", [SMOLLM2, MIXTRAL])
def test_weight_bytes_are_those_of_the_matrices(config: ModelConfig) -> None:
    matrices = [shape for shape in weight_shapes(config).values() if len(shape) == 2]
    assert workload(config, 0, 1).weights_bytes == 2 * sum(rows * columns for rows, columns in matrices)


def test_attention_counts_each_key_that_a_query_sees() -> None:
    step = Step(Op.ATTENTION, layer=0)
    for window in (None, 3):
        config = replace(SMOLLM2, sliding_window=window)
        seen = sum(min(position + 1, window or 7) for position in range(7))
        assert workload(config, 0, 1, 7).of(step).other_flops == 4 * 9 * 64 * seen


def test_experts_are_counted_by_the_tokens_they_get() -> None:
    work = workload(MIXTRAL, 0, 1).of(Step(Op.MLP, layer=0))
    assert work.gemms[1] == Gemm("gate,up", 128, 576, 3072, times=8)
    assert "2 of 8 experts per token" in work.text


def test_one_rank_reduces_nothing() -> None:
    steps = plan_forward(30, 512).steps
    assert all(workload(SMOLLM2, 0, 1).of(step).bytes_given == 0 for step in steps)


def test_a_rank_without_heads_has_nothing_to_attend_with() -> None:
    idle = workload(replace(SMOLLM2, num_heads=2, num_kv_heads=1), 0, 3)
    assert idle.of(Step(Op.ATTENTION, layer=0)).flops == 0
    assert idle.kv_bytes_per_token == 0


def test_the_middle_layers_are_folded(invoke: Any, tiny_model: Path) -> None:
    from support.tiny_models import make_model

    deep = make_model(tiny_model.parent / "deep", "llama", num_hidden_layers=5)
    folded = invoke("plan", "show", str(deep), "--tp", "2")
    assert folded.exit_code == 0
    assert "3 more layers, 12 steps" in folded.stdout
    assert "attention[4]" in folded.stdout
    assert "attention[2]" not in folded.stdout
    assert "attention[2]" in invoke("plan", "show", str(deep), "--tp", "2", "--all").stdout


def test_json_holds_every_step_of_the_plan(invoke: Any, tiny_model: Path) -> None:
    found = json.loads(
        invoke("plan", "show", str(tiny_model), "--tokens", "64", "--tp", "2", "--json").stdout
    )
    plan = plan_forward(2, 64)
    assert [step["operation"] for step in found["steps"]] == [step.name for step in plan.steps]
    assert [step["waits_for"] for step in found["steps"]] == [list(step.waits_for) for step in plan.steps]
    assert [rank["heads"] for rank in found["ranks"]] == [4, 5]
    assert found["totals"]["reductions"] == 5
    assert found["totals"]["reduced_bytes"] == 5 * 64 * 144 * 2


def test_uneven_heads_show_in_the_table(invoke: Any, tiny_model: Path) -> None:
    found = invoke("plan", "show", str(tiny_model), "--tp", "2").stdout
    assert "4 (0-3)" in found
    assert "5 (4-8)" in found


@pytest.mark.parametrize(
    "arguments", [("--tp", "0"), ("--tokens", "0"), ("--dtype", "int3"), ("--tp", "2", "--rank", "2")]
)
def test_bad_values_are_one_line(invoke: Any, tiny_model: Path, arguments: tuple[str, ...]) -> None:
    result = invoke("plan", "show", str(tiny_model), *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
