"""The products of CudaKernels in Triton, compiled for sm_80 and sm_90 without a GPU: what they need, what comes out."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.cubins import (
    BLACKWELL,
    CAPABILITIES,
    SINCE_HOPPER,
    SMALLEST_SHARED_BYTES,
    Compile,
    Compiled,
    assert_holds,
    some_fast,
)
from tokenweave.kernels.cuda.backend import gather, grouped, placing, products
from tokenweave.kernels.cuda.backend.planes import PLANE_FORMATS

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TILE_ROWS = [products.FEW_ROWS, products.SOME_ROWS, products.MANY_ROWS]


def compile_product(
    compiled: Compile,
    dtype: torch.dtype,
    rows: int,
    is_gated: bool,
    capability: int,
    format: str = "dense",
    is_grouped: bool = True,
) -> Compiled:
    """For sizes that are multiples of 16, as those of Mixtral's and of Qwen's experts on 1 to 8 ranks are."""
    element, weight = f"*{NAMES[dtype]}", "*i64" if is_grouped else "*u8"
    types = {"x": element, "first": weight, "second": weight, "bias": "*fp32", "out": element}
    types |= {"choices": "*i32", "experts": "*i32"}
    types |= dict.fromkeys(("num_tiles", "num_blocks", "num_rows", "per_row"), "i32")
    aligned = ["x_stride", "out_stride", "n", "k", "first_column", "width"]
    aligned += [f"{plane}_start" for plane in ("scales", "minima", "parts", "minimum_parts")]
    aligned += ["num_factors", "num_parts"]
    types |= dict.fromkeys(aligned, "i32")
    options = products.product_options(dtype, rows, is_gated, format)
    options |= {"IS_GROUPED": is_grouped, "IS_SILU": True, "HAS_BIAS": False}
    return compiled(products.product_of_rows, types, options, capability=capability, multiples=aligned)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("rows", some_fast(TILE_ROWS, products.FEW_ROWS))
def test_grouped_products_multiply_on_matrix_units_and_do_not_spill(
    compiled: Compile, rows: int, is_gated: bool, capability: int
) -> None:
    code = compile_product(compiled, torch.bfloat16, rows, is_gated, capability)
    assert_holds(code, capability)
    warp_groups, warps = code.count_sass(r"HGMMA\..*"), code.count_sass(r"HMMA\..*")
    by_warp_groups = capability == 90 and rows != products.FEW_ROWS  # they take 64 outputs at least
    assert (warp_groups > 0, warps > 0) == (by_warp_groups, not by_warp_groups)
    assert code.count_sass(r"LDGSTS\.E.*128") > 0  # weights come 16 bytes at a time, past the registers
    assert code.count_sass(r"LDG\.E\.U?16(\..*)?") == 0


@pytest.mark.slow
@pytest.mark.parametrize("format", ["dense", "q4_0", "fp8"])
@pytest.mark.parametrize("rows", [products.FEW_ROWS, products.MANY_ROWS])
def test_products_compile_for_blackwell(compiled: Compile, rows: int, format: str) -> None:
    code = compile_product(compiled, torch.bfloat16, rows, True, BLACKWELL, format)
    assert_holds(code, BLACKWELL)
    assert code.count_sass(r"(UTC|)HMMA(\..*)?") > 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("rows", some_fast(TILE_ROWS[:2], TILE_ROWS[0]))
def test_grouped_products_in_float32_keep_three_parts_of_each_factor_and_do_not_spill(
    compiled: Compile, rows: int, capability: int
) -> None:
    code = compile_product(compiled, torch.float32, rows, True, capability)
    assert_holds(code, capability)
    assert code.count_sass(r"H?G?MMA.*TF32.*") > 0


@pytest.mark.parametrize(
    "num_experts", some_fast([8, 60, 128], 128)
)  # Mixtral's, Qwen1.5-MoE's, Qwen3-30B-A3B's
@pytest.mark.parametrize("capability", SINCE_HOPPER)
def test_rows_are_placed_without_spills(compiled: Compile, num_experts: int, capability: int) -> None:
    types = {"chosen": "*i64", "choices": "*i32", "experts": "*i32", "num_choices": "i32", "num_tiles": "i32"}
    code = compiled(
        placing.place_choices,
        types,
        placing.place_options(num_experts, products.FEW_ROWS),
        capability=capability,
    )
    assert_holds(code, capability)


@pytest.mark.parametrize("capability", SINCE_HOPPER)
def test_weighted_sums_read_and_write_16_bytes_at_a_time(compiled: Compile, capability: int) -> None:
    types = {"products": "*bf16", "chosen": "*i64", "weights": "*fp32", "out": "*fp32"}
    types |= dict.fromkeys(("num_experts", "per_row", "n"), "i32")
    code = compiled(grouped.sum_choices, types, grouped.SUM_OPTIONS, multiples=["n"], capability=capability)
    assert_holds(code, capability)
    assert code.count_sass(r"LDG\.E\.128(\..*)?") > 0
    assert code.count_sass(r"STG\.E\.128") > 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("format", ["dense", "q4_0", "fp8"])
@pytest.mark.parametrize("rows", TILE_ROWS)
def test_products_in_float16_multiply_on_matrix_units_and_do_not_spill(
    compiled: Compile, rows: int, format: str, capability: int
) -> None:
    code = compile_product(compiled, torch.float16, rows, False, capability, format)
    assert_holds(code, capability)
    assert code.count_sass(r"H?G?MMA\..*F32.*") > 0


# The format, whether gate and up are multiplied together, and the rows of a tile.
BLOCKS = [
    (format, is_gated, rows)
    for format in PLANE_FORMATS
    for is_gated in (True, False)
    for rows in TILE_ROWS
    if products.rows_of_tile(rows, torch.bfloat16, is_gated, format) == rows
]
FAST_BLOCKS = [("q4_0", True, products.FEW_ROWS), ("fp8", False, products.MANY_ROWS)]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", some_fast(BLOCKS, *FAST_BLOCKS), ids=str)
def test_products_of_blocks_dequantise_on_the_way_to_matrix_units_and_do_not_spill(
    compiled: Compile, case: tuple[str, bool, int], capability: int
) -> None:
    format, is_gated, rows = case
    code = compile_product(compiled, torch.bfloat16, rows, is_gated, capability, format, is_grouped=False)
    assert_holds(code, capability)
    warp_groups, warps = code.count_sass(r"HGMMA\..*"), code.count_sass(r"HMMA\..*")
    by_warp_groups = capability == 90 and rows != products.FEW_ROWS
    assert (warp_groups > 0, warps > 0) == (by_warp_groups, not by_warp_groups)
    assert code.count_sass(r"LDGSTS\.E.*") > 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("format", PLANE_FORMATS)
def test_products_of_blocks_in_float32_spill_next_to_nothing(
    compiled: Compile, format: str, is_gated: bool, capability: int
) -> None:
    code = compile_product(
        compiled, torch.float32, products.FEW_ROWS, is_gated, capability, format, is_grouped=False
    )
    assert code.stack_bytes <= 16  # of q8_0 on sm_90, where the assembler keeps to 96 registers
    assert code.dynamic_shared_bytes <= SMALLEST_SHARED_BYTES


@pytest.mark.parametrize("format", some_fast(PLANE_FORMATS, "q4_0"))
@pytest.mark.parametrize("capability", SINCE_HOPPER)
def test_rows_of_blocks_are_gathered_without_spills(compiled: Compile, format: str, capability: int) -> None:
    types = {"data": "*u8", "ids": "*i32", "out": "*bf16"}
    types |= dict.fromkeys(("first_row", "num_rows", "k", "first_column", "width"), "i32")
    planes = [f"{plane}_start" for plane in ("scales", "minima", "parts", "minimum_parts")]
    types |= dict.fromkeys([*planes, "num_factors", "num_parts"], "i32")
    code = compiled(
        gather.dequantise_rows,
        types,
        {"FORMAT": format, **gather.OPTIONS},
        multiples=["k", "width"],
        capability=capability,
    )
    if (format, capability) == ("q4_k", BLACKWELL):  # where the assembler keeps to 64 registers
        assert code.stack_bytes <= 8
    else:
        assert_holds(code, capability)
