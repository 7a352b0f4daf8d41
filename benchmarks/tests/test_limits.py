from typing import Any, cast

import pytest

from benchmarks.harness.worker import Worker
from benchmarks.serve.floor import Floor, floor_of
from benchmarks.serve.limits import Limits, Shapes
from interlace.cli.bench.workload import ServeWorkload
from support.configs import SMOLLM2


def test_a_step_reads_every_matrix_once() -> None:
    shapes = Shapes.of(SMOLLM2)
    assert shapes.weight_bytes("float32") == 4 * (30 * (960 * 576 + 576 * 576 + 3 * 1536 * 576) + 49152 * 576)
    assert shapes.weight_bytes("bfloat16") * 2 == shapes.weight_bytes("float32")


def test_a_step_reads_the_keys_and_values_of_every_sequence() -> None:
    shapes = Shapes.of(SMOLLM2)
    kv_bytes = shapes.step_bytes("bfloat16", batch=8, context=100) - shapes.weight_bytes("bfloat16")
    assert kv_bytes == 8 * 100 * 30 * 2 * 192 * 2


def test_limits_are_bandwidth_over_bytes_and_the_faster_gemm() -> None:
    limits = Limits(Shapes.of(SMOLLM2), threads=2)
    assert limits.prefill_tokens_per_s("float32", 512) is None
    limits.gemm_s = {("torch", "float32", 512): [2.0, 3.0, 4.0], ("native", "float32", 512): [1.0]}
    limits.read_bytes_per_s = [20e9]
    assert limits.prefill_tokens_per_s("float32", 512) == 512
    step_bytes = limits.shapes.step_bytes("bfloat16", 8, 100)
    assert limits.decode_tokens_per_s("bfloat16", 8, 100) == pytest.approx(8 * 20e9 / step_bytes)


def test_a_pass_counts_products_attention_and_one_row_of_logits() -> None:
    shapes = Shapes(weights=((10, 4, 3),), head=(7, 4), kv_elements_per_token=0, query_elements_per_token=5)
    products, head = 2 * 6 * 10 * 4 * 3, 2 * 2 * 7 * 4
    keys = sum(9 + 1 + token for token in range(3))  # of each sequence
    assert shapes.pass_flops(batch=2, tokens=3, first_position=9) == products + head + 2 * 4 * 5 * keys


def limits_of(read_bytes_per_s: float, flops_per_s: float) -> Limits:
    shapes = Shapes(((100, 100, 1),), head=(100, 100), kv_elements_per_token=8, query_elements_per_token=8)
    rates = {"fma": [flops_per_s], "bf16": [2 * flops_per_s]}
    return Limits(shapes, 2, [read_bytes_per_s], [1.0], peak_flops_per_s=rates)


def test_the_floor_of_a_prompt_is_its_arithmetic() -> None:
    limits, workload = limits_of(1e15, 1e9), ServeWorkload("prefill", 1, 64, 1)
    flops = limits.shapes.pass_flops(1, 64)
    assert floor_of(limits, workload, "float32", None) == Floor(pytest.approx(64 * 1e9 / flops), "arithmetic")
    assert floor_of(limits, workload, "bfloat16", None) == Floor(
        pytest.approx(64 * 2e9 / flops), "arithmetic"
    )


def test_the_floor_of_a_step_is_the_bytes_it_reads() -> None:
    limits, workload = limits_of(1e6, 1e15), ServeWorkload("decode", 4, 64, 32)
    step_bytes = limits.shapes.step_bytes("float32", 4, 64 + 16)
    assert floor_of(limits, workload, "float32", None) == Floor(pytest.approx(4 * 1e6 / step_bytes), "memory")
    stored = 1000 + limits.shapes.kv_bytes("float32", 4, 80)
    assert floor_of(limits, workload, "as stored", 1000) == Floor(pytest.approx(4 * 1e6 / stored), "memory")


def test_the_floor_of_a_job_is_its_prompts_and_its_steps() -> None:
    limits, job = limits_of(1e6, 1e9), ServeWorkload("job", 2, 64, 32)
    prompts_s = max(limits.shapes.pass_flops(2, 64) / 1e9, limits.shapes.weight_bytes("float32") / 1e6)
    steps_s = 31 * limits.shapes.step_bytes("float32", 2, 80) / 1e6
    floor = floor_of(limits, job, "float32", None)
    assert floor == Floor(pytest.approx(2 * 32 / (prompts_s + steps_s)), "memory")


def test_there_is_no_floor_where_its_rate_was_not_measured() -> None:
    limits = limits_of(1e6, 1e9)
    assert floor_of(limits, ServeWorkload("prefill", 1, 64, 1), "as stored", 1000) is None
    assert floor_of(limits, ServeWorkload("decode", 1, 64, 8), "as stored", None) is None
    limits.peak_flops_per_s = {}
    assert floor_of(limits, ServeWorkload("decode", 1, 64, 8), "float32", None) is None


class AnsweringWorker:
    """A worker for which everything takes a second."""

    def resume(self) -> None: ...

    def pause(self) -> None: ...

    def ask(self, op: str, **arguments: object) -> dict[str, Any]:
        answers: dict[str, dict[str, Any]] = {
            "bandwidth": {"read_bytes_per_s": 1.0, "copy_bytes_per_s": 1.0},
            "peak": {"fma": 1.0},
            "gemm": {"backends": {"torch": {"seconds": 1.0}}},
        }
        return answers[op]


def test_each_product_is_named_before_it_is_measured() -> None:
    limits = Limits(Shapes.of(SMOLLM2), threads=2)
    told: list[tuple[float, str]] = []
    worker = cast(Worker, AnsweringWorker())
    limits.sample(worker, ["bfloat16", "float32"], (64, 512), lambda done, what: told.append((done, what)))
    assert told == [
        (0.0, "products of 64 tokens, bfloat16"),
        (0.25, "products of 512 tokens, bfloat16"),
        (0.5, "products of 64 tokens, float32"),
        (0.75, "products of 512 tokens, float32"),
    ]
    assert len(limits.gemm_s) == 4
