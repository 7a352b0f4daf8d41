"""The shapes of a run: chosen by name, and cut to a model's context."""

import pytest

from benchmarks.serve.workloads import all_workloads, choose, fitted
from interlace.cli.bench.workload import FULL, QUICK, ServeWorkload
from interlace.errors import BenchError


def test_a_run_has_the_shapes_of_interlace_bench_a_long_prompt_and_a_large_batch() -> None:
    names = [workload.name for workload in all_workloads(is_quick=False)]
    assert {workload.name for workload in FULL} < set(names)
    assert names.index("prefill 8192") < names.index("decode batch 32") < names.index("job 32 x 256+64")
    assert all_workloads(is_quick=True) == QUICK


def test_workloads_are_chosen_by_name_in_the_tables_order() -> None:
    chosen = choose(("decode batch 1", "prefill 512"), is_quick=False)
    assert [workload.name for workload in chosen] == ["prefill 512", "decode batch 1"]
    with pytest.raises(BenchError, match=r"got workloads \['prefill 3'\]; expected some of .*prefill 512"):
        choose(("prefill 3",), is_quick=False)


def test_a_prompt_that_the_context_cannot_hold_is_cut_to_whole_blocks() -> None:
    workloads = (ServeWorkload("prefill", 1, 8192, 1), ServeWorkload("decode", 8, 128, 64))
    cut, kept = fitted(workloads, context=8192)
    assert (cut.prompt_tokens, cut.name) == (8176, "prefill 8176")
    assert kept is not None
    assert kept == workloads[1]


def test_two_prompts_cut_to_one_length_are_one_workload() -> None:
    prompts = (ServeWorkload("prefill", 1, 512, 1), ServeWorkload("prefill", 1, 2048, 1))
    assert fitted(prompts, context=129) == (ServeWorkload("prefill", 1, 128, 1),)


def test_a_context_without_room_for_a_prompt_is_told() -> None:
    with pytest.raises(BenchError, match="decode batch 1 generates 64 tokens; the model's context is 70"):
        fitted((ServeWorkload("decode", 1, 128, 64),), context=70)
