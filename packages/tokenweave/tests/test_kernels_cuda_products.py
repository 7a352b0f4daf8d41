"""The products of CudaKernels in Triton, compiled for sm_80 and sm_90 without a GPU: what they need, what comes out."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.cubins import CAPABILITIES, Compile, Compiled, assert_holds, some_fast
from tokenweave.kernels.cuda.backend import grouped, placing

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
TILE_ROWS = [grouped.FEW_ROWS, grouped.SOME_ROWS, grouped.MANY_ROWS]


def compile_grouped(
    compiled: Compile, dtype: torch.dtype, rows: int, is_gated: bool, capability: int
) -> Compiled:
    """For sizes that are multiples of 16, as those of Mixtral's and of Qwen's experts on 1 to 8 ranks are."""
    element = f"*{NAMES[dtype]}"
    types = {"x": element, "first_table": "*i64", "second_table": "*i64", "out": element}
    types |= {"choices": "*i32", "experts": "*i32"}
    numbers = ("num_tiles", "num_blocks", "per_row", "x_stride", "n", "k")
    types |= dict.fromkeys(numbers, "i32")
    options = grouped.product_options(dtype, rows, is_gated) | {"IS_SILU": True}
    return compiled(
        grouped.grouped_product, types, options, capability=capability, multiples=["x_stride", "n", "k"]
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("rows", some_fast(TILE_ROWS, grouped.FEW_ROWS, grouped.MANY_ROWS))
def test_grouped_products_multiply_on_matrix_units_and_do_not_spill(
    compiled: Compile, rows: int, is_gated: bool, capability: int
) -> None:
    code = compile_grouped(compiled, torch.bfloat16, rows, is_gated, capability)
    assert_holds(code, capability)
    warp_groups, warps = code.count_sass(r"HGMMA\..*"), code.count_sass(r"HMMA\..*")
    by_warp_groups = capability == 90 and rows != grouped.FEW_ROWS  # they take 64 outputs at least
    assert (warp_groups > 0, warps > 0) == (by_warp_groups, not by_warp_groups)
    assert code.count_sass(r"LDGSTS\.E.*128") > 0  # weights come 16 bytes at a time, past the registers
    assert code.count_sass(r"LDG\.E\.U?16(\..*)?") == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("rows", some_fast(TILE_ROWS[:2], TILE_ROWS[0]))
def test_grouped_products_in_float32_keep_three_parts_of_each_factor_and_do_not_spill(
    compiled: Compile, rows: int, capability: int
) -> None:
    code = compile_grouped(compiled, torch.float32, rows, True, capability)
    assert_holds(code, capability)
    assert code.count_sass(r"H?G?MMA.*TF32.*") > 0


@pytest.mark.parametrize(
    "num_experts", some_fast([8, 60, 128], 128)
)  # Mixtral's, Qwen1.5-MoE's, Qwen3-30B-A3B's
def test_rows_are_placed_without_spills(compiled: Compile, num_experts: int) -> None:
    types = {"chosen": "*i64", "choices": "*i32", "experts": "*i32", "num_choices": "i32", "num_tiles": "i32"}
    code = compiled(placing.place_choices, types, placing.place_options(num_experts, grouped.FEW_ROWS))
    assert_holds(code, 90)


def test_weighted_sums_read_and_write_16_bytes_at_a_time(compiled: Compile) -> None:
    types = {"products": "*bf16", "chosen": "*i64", "weights": "*fp32", "out": "*fp32"}
    types |= dict.fromkeys(("num_experts", "per_row", "n"), "i32")
    code = compiled(grouped.sum_choices, types, grouped.SUM_OPTIONS, multiples=["n"])
    assert_holds(code, 90)
    assert code.count_sass(r"LDG\.E\.128(\..*)?") > 0
    assert code.count_sass(r"STG\.E\.128") > 0
