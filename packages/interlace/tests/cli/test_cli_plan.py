from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.cli.plan_work import Gemm, Work, Workload
from interlace.cli.timeline import _bar, draw
from interlace.models.config import ModelConfig, weight_shapes
from interlace.models.shard import Shard
from interlace.models.sources import load_model
from support.added_step import plan_with_peek
from support.configs import SMOLLM2
from support.tiny_models import make_gguf
from tokenweave.plan import Lane, Moves, Op, Step, plan_forward
from tokenweave.simulate import Phase, Resource, simulate

MIXTRAL = replace(SMOLLM2, family="mixtral", num_experts=8, experts_per_token=2, tie_word_embeddings=False)
QWEN2_MOE = replace(
    MIXTRAL, family="qwen2_moe", shared_intermediate_size=320, dense_layers=(1,), dense_intermediate_size=640
)
OLMO2 = replace(SMOLLM2, family="olmo2", norms="after", qk_norm=True, qk_norm_over_heads=True)


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


@pytest.mark.parametrize("config", [SMOLLM2, MIXTRAL, QWEN2_MOE, OLMO2])
def test_weight_bytes_are_those_of_the_matrices(config: ModelConfig) -> None:
    matrices = [shape for shape in weight_shapes(config).values() if len(shape) == 2]
    assert workload(config, 0, 1).weights_bytes == 2 * sum(rows * columns for rows, columns in matrices)


def test_attention_counts_each_key_that_a_query_sees() -> None:
    step = Step(Op.ATTENTION, layer=0)
    for window in (None, 3):
        config = replace(SMOLLM2, sliding_window=window)
        seen = sum(min(position + 1, window or 7) for position in range(7))
        assert workload(config, 0, 1, 7).of(step).other_flops == 4 * 9 * 64 * seen


def test_a_layer_without_the_window_of_the_others_sees_all_keys() -> None:
    of = workload(replace(SMOLLM2, sliding_window=3, full_layers=(1,)), 0, 1, 7).of
    notes = [of(Step(Op.ATTENTION, layer=layer)).note for layer in (0, 1)]
    assert [note.partition("up to ")[2] for note in notes] == ["3 keys", "7 keys"]


def test_layers_may_be_dense_between_experts_and_all_tokens_share_one() -> None:
    of = workload(QWEN2_MOE, 0, 1).of
    sparse, dense = (of(Step(Op.MLP, layer=layer)).gemms for layer in (0, 1))
    assert dense == (Gemm("gate,up", 512, 576, 1280), Gemm("down", 512, 640, 576))
    assert sparse[-3:] == (
        Gemm("gate of shared", 512, 576, 1), Gemm("gate,up", 512, 576, 640), Gemm("down", 512, 320, 576),
    )  # fmt: skip


def test_a_rank_computes_all_of_q_and_k_where_they_are_normed_as_wholes() -> None:
    assert workload(OLMO2, 1, 2).of(Step(Op.ATTENTION, layer=0)).gemms[0].n == (9 + 3 + 2) * 64


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


def test_a_rank_without_a_share_is_said_to_do_nothing() -> None:
    idle = workload(replace(SMOLLM2, num_heads=2, num_kv_heads=1), 0, 3)
    assert idle.of(Step(Op.ATTENTION, layer=0)).text.splitlines()[0] == "nothing: no share of the weights"


def test_small_figures_are_shown_in_small_units(invoke: Any, tiny_model: Path) -> None:
    shown = invoke("plan", "show", str(tiny_model), "--tokens", "1", "--tp", "4").stdout
    assert " 0.0 " not in shown
    assert re.search(r"in all: \d+ steps, [\d,]+ FLOP, \d+ reductions of [\d.]+ KB together", shown), shown


def test_the_middle_layers_are_folded(invoke: Any, tiny_model: Path) -> None:
    from support.tiny_models import make_model

    deep = make_model(tiny_model.parent / "deep", "llama", num_hidden_layers=5)
    folded = invoke("plan", "show", str(deep), "--tp", "2")
    assert folded.exit_code == 0
    assert "3 more layers, 12 steps" in folded.stdout
    assert "attention[4]" in folded.stdout
    assert "attention[2]" not in folded.stdout
    assert "attention[2]" in invoke("plan", "show", str(deep), "--tp", "2", "--all").stdout


def test_weights_in_blocks_are_counted_and_priced_as_such(invoke: Any, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    make_gguf(model, "Q8_0", formats={"down": "Q6_K"})
    show = ("plan", "show", str(model), "--tokens", "1", "--tp", "2", "--dtype", "float32", "--quantize")
    found = {name: json.loads(invoke(*show, name, "--json").stdout) for name in ("none", "stored", "int4")}
    assert [found[name]["weight_formats"] for name in found] == [[], ["q6_k", "q8_0"], ["q6_k", "q8_0"]]
    down = 256 * 256  # a rank's half of it
    for dense, stored in zip(found["none"]["ranks"], found["stored"]["ranks"], strict=True):
        others = dense["weights_bytes"] / 4 - down
        assert stored["weights_bytes"] == pytest.approx(others * 34 / 32 + down * 210 / 256, abs=1)
    assert found["stored"]["modelled"]["compute_s"] < found["none"]["modelled"]["compute_s"]
    assert found["int4"]["ranks"] == found["stored"]["ranks"]
    assert "float32, weights in q6_k and q8_0, 2 ranks" in invoke(*show, "stored").stdout
    refused = invoke(*show, "int3")
    assert refused.exit_code == 1
    assert "quantize='int3': expected one of auto, none, stored, int8, int4" in refused.stderr.replace(
        "\n", " "
    )


def test_json_holds_every_step_of_the_plan(invoke: Any, tiny_model: Path) -> None:
    found = json.loads(
        invoke("plan", "show", str(tiny_model), "--tokens", "64", "--tp", "2", "--json").stdout
    )
    plan = plan_forward(2, 64)
    assert [step["operation"] for step in found["steps"]] == [step.name for step in plan.steps]
    assert [step["waits_for"] for step in found["steps"]] == [list(step.waits_for) for step in plan.steps]
    assert [rank["heads"] for rank in found["ranks"]] == [4, 5]
    assert found["totals"]["reductions"] == 5
    assert (
        found["totals"]["reduced_bytes"] == (3 * 64 + 2) * 144 * 2
    )  # the last layer's: of the last token alone


def test_a_step_that_no_method_describes_is_shown_and_drawn() -> None:
    plan = plan_with_peek(3, 512)
    step = plan.on(Lane.MEMORY)[0]
    assert workload(SMOLLM2, 0, 1).of(step) == Work()
    cost = lambda step: (Phase(Resource.CORE, 1e-3),)  # noqa: E731
    drawn = list(draw(simulate(plan, cost, shared_core=False), every_layer=True))
    lanes = [line for line in drawn if line.startswith("memory ")]
    assert "peek[0]" in lanes[0]
    assert _bar(step, 5) == "░pek░"


def test_layers_from_a_tier_are_planned_priced_and_drawn(invoke: Any, deep_model: Path) -> None:
    show = ("plan", "show", str(deep_model), "--tokens", "64", "--weights-tier", "cxl:1GB@1GB/s,1us")
    found = json.loads(invoke(*show, "--json").stdout)
    plan = plan_forward(5, 64, None, Moves(fetches_weights=True))
    assert [step["operation"] for step in found["steps"]] == [step.name for step in plan.steps]
    (layer_s, *others_s) = [
        step["end_s"] - step["start_s"] for step in found["steps"] if "fetch_weights[" in step["operation"]
    ]
    layer_bytes = workload(load_model(str(deep_model)).config, 0, 1).layer_bytes
    assert [layer_s, *others_s] == pytest.approx([layer_bytes * 1e-9 + 1e-6] * 5)
    drawn = invoke(*show, "--split", "none").stdout
    assert "layers from cxl:1GB@1GB/s,1us" in drawn
    assert "\nmemory    ▒" in drawn
    refused = invoke(*show, "--device", "cuda")
    assert "expected None with device='cuda'" in refused.stderr.replace("\n", " ")


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


@given(st.integers(2, 700), st.data())
def test_the_work_of_two_parts_is_that_of_the_whole(num_tokens: int, data: st.DataObject) -> None:
    split = data.draw(st.integers(1, num_tokens - 1))
    for config in (SMOLLM2, replace(SMOLLM2, sliding_window=50)):
        whole = workload(config, 1, 2, num_tokens)
        parts = replace(whole, split=split)
        for op in (Op.ATTENTION, Op.MLP, Op.LOGITS, Op.REDUCE_NORM):
            one, two = (parts.of(Step(op, layer=0, norm=1, part=part)) for part in (0, 1))
            expected = whole.of(Step(op, layer=0, norm=1))
            assert one.flops + two.flops == expected.flops
            assert one.bytes_given + two.bytes_given == expected.bytes_given


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_models import make_model

    return make_model(tmp_path_factory.mktemp("deep") / "deep", "llama", num_hidden_layers=5)


def test_without_a_split_nothing_is_simulated_for_the_reader(invoke: Any, deep_model: Path) -> None:
    assert "timeline" not in invoke("plan", "show", str(deep_model), "--tp", "2").stdout


def test_a_split_draws_both_parts_on_both_lanes_first_and_last_layer(invoke: Any, deep_model: Path) -> None:
    shown = invoke(
        "plan",
        "show",
        str(deep_model),
        "--tp",
        "2",
        "--tokens",
        "1200",
        "--split",
        "middle",
        "--link",
        "0.1GB/s,5us",
    )
    assert shown.exit_code == 0
    _, _, timeline = shown.stdout.partition("timeline, modelled: ")
    assert "link 0.1GB/s,5us" in timeline.splitlines()[0]
    assert timeline.count("\ncompute ") == timeline.count("\ntransfer ") == 2
    assert "... 3 more layers" in timeline
    for bar in ("░", "▓", "layer 0", "layer 4", "split at 600", "not split"):
        assert bar in timeline
    assert max(map(len, timeline.splitlines())) <= 120


def test_a_plan_on_gpus_is_cut_at_their_tiles_and_priced_on_their_streams(
    invoke: Any, deep_model: Path
) -> None:
    options = ("--tp", "3", "--tokens", "2000", "--split", "middle", "--device", "cuda")
    shown = invoke("plan", "show", str(deep_model), *options)
    assert shown.exit_code == 0
    _, _, timeline = shown.stdout.partition("timeline, modelled: ")
    assert (
        "GPUs of 500 TFLOP/s, 3 TB/s and 100 SMs, of which a reduction takes 16" in timeline.splitlines()[0]
    )
    assert "split at 1152" in timeline  # three tiles of 128, three times


def test_all_draws_every_layer(invoke: Any, deep_model: Path) -> None:
    shown = invoke("plan", "show", str(deep_model), "--tp", "2", "--split", "none", "--all").stdout
    assert shown.count("\ncompute ") == 5
    assert "▓ second part" in shown
    assert "split at" not in shown


def test_json_has_when_each_step_would_run(invoke: Any, deep_model: Path) -> None:
    arguments = (
        "plan",
        "show",
        str(deep_model),
        "--tp",
        "2",
        "--tokens",
        "64",
        "--link",
        "0.1GB/s,5us",
        "--json",
    )
    whole, woven = (json.loads(invoke(*arguments, "--split", split).stdout) for split in ("none", "24"))
    assert (whole["split"], woven["split"]) == (None, 24)
    for step in woven["steps"]:
        assert all(woven["steps"][other]["end_s"] <= step["start_s"] for other in step["waits_for"])
    assert {(step["part"], step["num_tokens"]) for step in woven["steps"]} == {(0, 24), (1, 40), (None, 64)}
    assert max(step["end_s"] for step in woven["steps"]) == woven["modelled"]["total_s"]
    assert whole["modelled"]["hidden_fraction"] == pytest.approx(0, abs=1e-9)
    assert woven["modelled"]["hidden_fraction"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "half"), "expected a number of tokens, middle or none"),
        (("--split", "512"), "got split=512 of 512 tokens"),
        (("--link", "fast"), "fast"),
        (("--device", "tpu"), "expected one of auto, cpu, cuda"),
        (("--tuned", "--dtype", "float32"), "interlace tune"),
    ],
)
def test_bad_splits_links_and_a_table_that_is_not_there_are_one_line(
    invoke: Any,
    deep_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path))
    result = invoke("plan", "show", str(deep_model), "--tp", "2", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
