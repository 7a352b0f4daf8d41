"""Mixtures of experts by grouped products: every expert's rows through its own weights, in one call for all experts.

Four kernels: rows are placed by expert (`placing`), tiles of them go through gate, up and activation, then through
down, and each row's products are weighed and added in the order in which its experts were chosen. Products are taken
as weight times rows, so that a step that decodes fills the matrix units with outputs and not with rows that are absent.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.calls import row_stride
from tokenweave.kernels.cuda.backend.activation import activated
from tokenweave.kernels.cuda.backend.experts import E, ExpertTable
from tokenweave.kernels.cuda.backend.placing import Tiles, place
from tokenweave.kernels.cuda.backend.rounding import rounded
from tokenweave.kernels.cuda.backend.start import start
from tokenweave.kernels.cuda.backend.steps import multiply

FEW_ROWS, SOME_ROWS = 16, 64  # of a tile where experts have so many on average, or fewer
MANY_ROWS = 128
TILES_TOGETHER = 8  # take their turns with one block of weights, which is in the L2 cache then
SUM_COLUMNS = 1024
SUM_OPTIONS = {"COLUMNS": SUM_COLUMNS, "num_warps": 4, "enable_fp_fusion": True}


def grouped_mixture(
    x: Tensor, experts: ExpertTable[E], chosen: Tensor, weights: Tensor, device: torch.device
) -> Tensor:
    """`Kernels.mixture`. A choice of an expert that is not there adds nothing."""
    (m, per_row), num_experts = chosen.shape, len(experts)
    rows = rows_of_tile(m * per_row, num_experts, x.dtype)
    tiles = place(chosen, num_experts, rows, device)
    inner = torch.empty((m * per_row, experts.inner_size), dtype=x.dtype, device=device)
    products = torch.empty((m * per_row, experts.hidden_size), dtype=x.dtype, device=device)
    out = torch.empty((m, experts.hidden_size), dtype=torch.float32, device=device)
    is_silu = experts.activation == "silu"
    _multiply(x, per_row, experts.gates, experts.ups, inner, tiles, is_silu)
    _multiply(inner, 1, experts.downs, None, products, tiles, is_silu)
    start(
        sum_choices,
        (m, triton.cdiv(experts.hidden_size, SUM_COLUMNS)),
        device,
        products,
        chosen,
        weights,
        out,
        num_experts,
        per_row,
        experts.hidden_size,
        **SUM_OPTIONS,
    )
    return out


def _multiply(
    x: Tensor, per_row: int, first: Tensor, second: Tensor | None, out: Tensor, tiles: Tiles, is_silu: bool
) -> None:
    """Each choice's row of x (rows, k) through its expert's weights (n, k) into its row of `out` (choices, n).

    With a `second` table of weights, activation(row through the first) * row through the second.
    """
    num_tiles, rows = tiles.choices.shape
    n, k = out.shape[1], x.shape[1]
    options = product_options(x.dtype, rows, second is not None)
    num_blocks = triton.cdiv(n, options["COLUMNS"])
    start(
        grouped_product,
        (num_tiles * num_blocks,),
        x.device,
        x,
        first,
        first if second is None else second,
        out,
        tiles.choices,
        tiles.experts,
        num_tiles,
        num_blocks,
        per_row,
        row_stride(x),
        n,
        k,
        IS_SILU=is_silu,
        **options,
    )


def rows_of_tile(num_choices: int, num_experts: int, dtype: torch.dtype) -> int:
    """As many as an expert has on average, or more: of a tile that is not full the matrix units do the rest in vain."""
    mean = num_choices / num_experts
    if mean <= FEW_ROWS:
        return FEW_ROWS
    return SOME_ROWS if mean <= SOME_ROWS or dtype is torch.float32 else MANY_ROWS


def product_options(dtype: torch.dtype, rows: int, is_gated: bool) -> dict[str, Any]:
    """How `grouped_product` is compiled. Nothing here was measured: it is what fits registers and 99 KiB."""
    shape: dict[str, Any]
    if dtype is torch.float32:
        shape = {"COLUMNS": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 3}
    elif rows == FEW_ROWS:
        shape = {"COLUMNS": 32, "DEPTH": 128, "num_warps": 4, "num_stages": 4}
    elif rows == SOME_ROWS:
        shape = {"COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    else:
        shape = {"COLUMNS": 64 if is_gated else 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3}
    return {
        "IS_GATED": is_gated,
        "ROWS": rows,
        "TILES_TOGETHER": TILES_TOGETHER,
        "PRECISION": "tf32x3" if dtype is torch.float32 else "ieee",
        **shape,
        "enable_fp_fusion": True,
    }


@triton.jit(do_not_specialize=["num_tiles", "num_blocks"])
def grouped_product(
    x,  # rows of k values, `x_stride` apart
    first_table,  # *int64 (num_experts,): addresses of weights (n, k), as x
    second_table,  # likewise; read if IS_GATED
    out,  # (choices, n)
    choices,  # *int32 (num_tiles, ROWS)
    experts,  # *int32 (num_tiles,)
    num_tiles,
    num_blocks,
    per_row,  # choices of a row of x
    x_stride,
    n,
    k,
    IS_SILU: tl.constexpr,
    IS_GATED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, block = tile_and_block(num_tiles, num_blocks, TILES_TOGETHER)
    expert = tl.load(experts + tile)
    if expert < 0:
        return
    choice = tl.load(choices + tile * ROWS + tl.arange(0, ROWS))
    is_row = choice >= 0
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < n
    source = x + (choice // per_row).to(tl.int64)[:, None] * x_stride
    offset = column.to(tl.int64)[:, None] * k
    first = expert_weight(first_table, expert, x.dtype.element_ty) + offset
    second = expert_weight(second_table, expert, x.dtype.element_ty) + offset
    product = tl.zeros((COLUMNS, ROWS), tl.float32)
    factor = tl.zeros((COLUMNS, ROWS), tl.float32)
    for begin in range(0, k, DEPTH):
        at = begin + tl.arange(0, DEPTH)[None, :]
        rows = tl.load(source + at, mask=is_row[:, None] & (at < k), other=0.0)
        is_weight = is_column[:, None] & (at < k)
        product = multiply(tl.load(first + at, mask=is_weight, other=0.0), tl.trans(rows), product, PRECISION)
        if IS_GATED:
            factor = multiply(
                tl.load(second + at, mask=is_weight, other=0.0), tl.trans(rows), factor, PRECISION
            )
    if IS_GATED:
        product = activated(product, IS_SILU) * factor
    target = out + choice.to(tl.int64)[None, :] * n + column[:, None]
    tl.store(target, rounded(product, out.dtype.element_ty), mask=is_row[None, :] & is_column[:, None])


@triton.jit
def tile_and_block(num_tiles, num_blocks, TILES_TOGETHER: tl.constexpr):
    """This program's tile, and its block of the weights' rows: neighbours take one block through several tiles."""
    together = TILES_TOGETHER * num_blocks
    first = tl.program_id(0) // together * TILES_TOGETHER
    width = tl.minimum(num_tiles - first, TILES_TOGETHER)
    within = tl.program_id(0) % together
    return first + within % width, within // width


@triton.jit
def expert_weight(table, expert, DTYPE: tl.constexpr):
    return tl.multiple_of(tl.load(table + expert).to(tl.pointer_type(DTYPE)), 16)


@triton.jit(do_not_specialize=["num_experts"])
def sum_choices(
    products,  # (m * per_row, n)
    chosen,  # *int64 (m, per_row)
    weights,  # *float32 (m, per_row)
    out,  # *float32 (m, n)
    num_experts,
    per_row,
    n,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for each in range(per_row):
        choice = row * per_row + each
        expert = tl.load(chosen + choice)
        num_there = tl.where((expert >= 0) & (expert < num_experts), n, 0)
        product = tl.load(products + choice * n + column, mask=column < num_there, other=0.0)
        total += product.to(tl.float32) * tl.load(weights + choice)
    tl.store(out + row * n + column, total, mask=column < n)
