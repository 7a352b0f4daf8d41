"""The rule by which `auto` takes one of two dtypes, on figures that are given."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from interlace.engine.dtypes.products import EXAMPLE, TIE, Comparison, Products, ProductTimes
from interlace.models.shard import Shard
from support.configs import SMOLLM2

FLOAT32 = ProductTimes(prompt_s=2e-11, decode_s=4e-10, batch_s=6e-10)


def compared(prompt: float, decode: float, batch: float) -> Comparison:
    """bfloat16 is so many times as fast as float32."""
    times = ProductTimes(FLOAT32.prompt_s / prompt, FLOAT32.decode_s / decode, FLOAT32.batch_s / batch)
    return Comparison(EXAMPLE, FLOAT32, times)


def test_the_example_is_smollm2_on_one_rank() -> None:
    assert Products.of(SMOLLM2, Shard.of(SMOLLM2, 0, 1)) == EXAMPLE


def test_ranks_have_their_own_matrices_and_one_without_heads_has_no_product_for_them() -> None:
    first, second = (Products.of(SMOLLM2, shard) for shard in Shard.all_of(SMOLLM2, 2))
    assert first.matrices == (
        (512, 576),
        (576, 256),
        (1536, 576),
        (576, 768),
    )  # heads 0 to 3 read two KV heads
    assert second.matrices[0] == (576, 576)  # heads 4 to 8 read two as well
    assert first.head_weights + second.head_weights == EXAMPLE.head_weights
    one_head = replace(SMOLLM2, num_heads=1, num_kv_heads=1)
    assert Products.of(one_head, Shard.of(one_head, 0, 2)).matrices == ((1536, 576), (576, 768))


def test_a_token_is_multiplied_with_the_experts_that_it_runs_through() -> None:
    sparse = replace(SMOLLM2, num_experts=8, experts_per_token=2)
    found = Products.of(sparse, Shard.of(sparse, 0, 1))
    assert found.matrices == EXAMPLE.matrices
    assert found.layer_weights == EXAMPLE.layer_weights + 30 * 3 * 576 * 1536


@pytest.mark.parametrize(
    ("prompt", "decode", "batch", "faster"),
    [
        (8.0, 1.9, 1.8, "bfloat16"),  # tiles
        (1.0, 1.0, 1.0, "bfloat16"),  # half of the memory
        (0.77, 1.62, 1.49, "bfloat16"),  # decoding gains more than prompts lose
        (0.5, 1.6, 1.1, "float32"),  # prompts lose more
        (0.6, 0.7, 0.6, "float32"),
        (1 / (TIE - 0.01), 1 / (TIE - 0.01), 1 / (TIE - 0.01), "bfloat16"),
        (1 / (TIE + 0.01), 1 / (TIE + 0.01), 1 / (TIE + 0.01), "float32"),
    ],
)
def test_bfloat16_is_taken_unless_a_job_is_slower(
    prompt: float, decode: float, batch: float, faster: str
) -> None:
    assert compared(prompt, decode, batch).faster == faster


def test_a_job_is_its_prompts_and_the_steps_behind_them() -> None:
    """Eight sequences have eight prompts, and as many steps as one."""
    products = Products(((1, 1),), layer_weights=1000, head_weights=500)
    times = ProductTimes(prompt_s=1.0, decode_s=10.0, batch_s=20.0)
    assert times.job_s(products, 1) == 512 * 1000 + 128 * 1500 * 10
    assert times.job_s(products, 8) == 8 * 512 * 1000 + 128 * 1500 * 20
    slower = Comparison(products, times, ProductTimes(2.0, 10.0, 20.0))
    alone, together = (512e3 * 2 + 1.92e6) / (512e3 + 1.92e6), (4.096e6 * 2 + 3.84e6) / (4.096e6 + 3.84e6)
    assert slower.slowdown == pytest.approx(math.sqrt(alone * together))


def test_the_figures_are_told_as_ratios() -> None:
    text = compared(0.5, 1.6, 1.25).text
    assert "prompts are 0.50 x as fast as in float32, decoding 1.60 x, 8 sequences at a time 1.25 x" in text


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite positive"):
        ProductTimes(1.0, seconds, 1.0)
