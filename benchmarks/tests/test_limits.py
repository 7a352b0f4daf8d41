import pytest

from benchmarks.serve.limits import Limits, Shapes
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
