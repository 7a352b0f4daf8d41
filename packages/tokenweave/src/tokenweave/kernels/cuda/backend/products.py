"""Products of rows with weights in Triton: with one weight in blocks, or with each expert's own, dense or in blocks.

A product is taken as weights times rows, tile by tile. So few rows fill the matrix units with outputs and not with rows
that are absent, and weights that are dequantised go to the units out of registers. Nothing here was measured: tiles are
what fits registers and 99 KiB of shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.cuda.backend.activation import activated
from tokenweave.kernels.cuda.backend.placing import Tiles
from tokenweave.kernels.cuda.backend.planes import PLANE_FORMATS, STEP_BYTES, PlaneLayout
from tokenweave.kernels.cuda.backend.rounding import rounded
from tokenweave.kernels.cuda.backend.start import start
from tokenweave.kernels.cuda.backend.steps import multiply
from tokenweave.kernels.cuda.backend.weights import load_tile_codes, row_scales, tile_values

FEW_ROWS, SOME_ROWS, MANY_ROWS = 16, 64, 128  # of a tile
HALVED = tuple(name for name, form in PLANE_FORMATS.items() if form.code_bits == 4)
TILES_TOGETHER = 8  # take their turns with one block of weights, which is in the L2 cache then


@dataclass(frozen=True)
class WeightShape:
    """How products read a weight (n, k): dense, or in planes from some value of their rows on."""

    n: int
    k: int
    planes: PlaneLayout | None = None
    first_column: int = 0

    @property
    def format(self) -> str:
        return "dense" if self.planes is None else self.planes.format.name

    @property
    def width(self) -> int:
        """Values of a row in memory."""
        return self.k if self.planes is None else self.planes.width

    @property
    def plane_places(self) -> tuple[int, ...]:
        """Where the planes behind the codes begin, in bytes, and the factors and parts of a row."""
        if self.planes is None:
            return (0,) * 6
        return (*self.planes.starts[1:5], self.planes.num_factors, self.planes.num_parts)


def multiply_rows(
    x: Tensor,
    shape: WeightShape,
    first: Tensor,
    second: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    tiles: Tiles | None = None,
    per_row: int = 1,
    is_silu: bool = False,
) -> None:
    """x (m, k) times a weight (n, k) transposed, plus bias, into `out` (m, n); all rows may be parts of wider ones.

    With a `second` weight of the same shape, activation(x through the first) * x through the second. With `tiles`,
    `first` and `second` are tables (num_experts,) of addresses; a row of
    `out` is a choice, `per_row` to a row of x.
    """
    if tiles is None:
        rows = rows_of_tile(out.shape[0], x.dtype, second is not None, shape.format)
        num_tiles = triton.cdiv(out.shape[0], rows)
    else:
        num_tiles, rows = tiles.choices.shape
    options = product_options(x.dtype, rows, second is not None, shape.format)
    num_blocks = triton.cdiv(shape.n, options["COLUMNS"])
    start(
        product_of_rows,
        (num_tiles * num_blocks,),
        x.device,
        x,
        first,
        first if second is None else second,
        first if bias is None else bias,
        out,
        first if tiles is None else tiles.choices,
        first if tiles is None else tiles.experts,
        num_tiles,
        num_blocks,
        out.shape[0],
        per_row,
        x.stride(0),
        out.stride(0),
        shape.n,
        shape.k,
        shape.first_column,
        shape.width,
        *shape.plane_places,
        IS_GROUPED=tiles is not None,
        IS_SILU=is_silu,
        HAS_BIAS=bias is not None,
        **options,
    )


def rows_of_tile(mean: float, dtype: torch.dtype, is_gated: bool, format: str) -> int:
    """For `mean` rows of a weight as many, or more: of a tile that is not full the matrix units do the rest in vain."""
    most = MANY_ROWS  # that fit the registers
    if dtype is torch.float32:
        most = SOME_ROWS if format == "dense" else FEW_ROWS
    elif is_gated and format != "dense":
        most = SOME_ROWS
    return next(rows for rows in (FEW_ROWS, SOME_ROWS, MANY_ROWS) if mean <= rows or rows == most)


def product_options(dtype: torch.dtype, rows: int, is_gated: bool, format: str) -> dict[str, Any]:
    """How `product_of_rows` is compiled for tiles that `rows_of_tile` gives."""
    shape: dict[str, Any]
    if dtype is torch.float32:
        shape = {"COLUMNS": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 3}
    elif rows == FEW_ROWS:
        shape = {"COLUMNS": 32, "DEPTH": 128, "num_warps": 4, "num_stages": 4}
    elif rows == SOME_ROWS:
        shape = {"COLUMNS": 64, "DEPTH": 64, "num_warps": 4, "num_stages": 3}
    else:
        shape = {"COLUMNS": 64 if is_gated else 128, "DEPTH": 64, "num_warps": 8, "num_stages": 3}
    is_halved = format in HALVED
    if format != "dense":  # values take registers on their way, twice as many where a byte has two
        shape["DEPTH"] = 32 if dtype is torch.float32 or (rows > FEW_ROWS and is_halved) else STEP_BYTES
    return {
        "FORMAT": format,
        "HALVES": 2 if is_halved else 1,
        "STEP": STEP_BYTES,
        "IS_GATED": is_gated,
        "ROWS": rows,
        "TILES_TOGETHER": TILES_TOGETHER,
        "PRECISION": "tf32x3" if dtype is torch.float32 else "ieee",
        **shape,
        "enable_fp_fusion": format in ("dense", "fp8"),  # a scaled code is rounded before a minimum is added
    }


@triton.jit(do_not_specialize=["num_tiles", "num_blocks", "num_rows"])
def product_of_rows(
    x,  # rows of k values, `x_stride` apart
    first,  # the weight; or if IS_GROUPED *int64 (num_experts,), the addresses of weights
    second,  # likewise; read if IS_GATED
    bias,  # *float32 (n,); read if HAS_BIAS
    out,  # (num_rows, n), rows `out_stride` apart
    choices,  # *int32 (num_tiles, ROWS); read if IS_GROUPED
    experts,  # *int32 (num_tiles,); likewise
    num_tiles,
    num_blocks,
    num_rows,
    per_row,  # rows of `out` for a row of x
    x_stride,
    out_stride,
    n,
    k,
    first_column,  # where in a weight's rows its values begin
    width,  # values of a weight's row in memory
    scales_start,  # of `WeightShape.plane_places`
    minima_start,
    parts_start,
    minimum_parts_start,
    num_factors,
    num_parts,
    FORMAT: tl.constexpr,
    HALVES: tl.constexpr,  # two values share a byte, or one has it
    STEP: tl.constexpr,  # bytes of codes, if two values share one
    IS_GROUPED: tl.constexpr,
    IS_SILU: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    DTYPE: tl.constexpr = x.dtype.element_ty
    places = (scales_start, minima_start, parts_start, minimum_parts_start, num_factors, num_parts)
    tile, block = tile_and_block(num_tiles, num_blocks, TILES_TOGETHER)
    if IS_GROUPED:
        expert = tl.load(experts + tile)
        if expert < 0:
            return
        row = tl.load(choices + tile * ROWS + tl.arange(0, ROWS))
        is_row = row >= 0
        address = tl.load(first + expert)
        other = tl.load(second + expert)
    else:
        row = tile * ROWS + tl.arange(0, ROWS)
        is_row = row < num_rows
        address = first.to(tl.int64)
        other = second.to(tl.int64)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < n
    weight_row, is_weight = column.to(tl.int64)[:, None], is_column[:, None]
    source = x + (row // per_row).to(tl.int64)[:, None] * x_stride
    product = tl.zeros((COLUMNS, ROWS), tl.float32)
    factor = tl.zeros((COLUMNS, ROWS), tl.float32)
    for begin in range(0, width // HALVES, DEPTH):
        codes = load_tile_codes(address, weight_row, is_weight, begin, width, FORMAT, DTYPE, DEPTH)
        if IS_GATED:
            others = load_tile_codes(other, weight_row, is_weight, begin, width, FORMAT, DTYPE, DEPTH)
        for half in tl.static_range(HALVES):
            place = begin
            if HALVES == 2:
                place = begin // STEP * (2 * STEP) + half * STEP + begin % STEP
            at = place - first_column + tl.arange(0, DEPTH)[None, :]
            rows = tl.trans(tl.load(source + at, mask=is_row[:, None] & (at >= 0) & (at < k), other=0.0))
            values = tile_values(
                codes, half, address, places, weight_row, is_weight, place, width, FORMAT, DTYPE
            )
            product = multiply(values, rows, product, PRECISION)
            if IS_GATED:
                values = tile_values(
                    others, half, other, places, weight_row, is_weight, place, width, FORMAT, DTYPE
                )
                factor = multiply(values, rows, factor, PRECISION)
    if FORMAT == "fp8":
        product *= row_scales(address, places, weight_row, is_weight)
        if IS_GATED:
            factor *= row_scales(other, places, weight_row, is_weight)
    if HAS_BIAS:
        product += tl.load(bias + column, mask=is_column, other=0.0)[:, None]
    if IS_GATED:
        product = activated(product, IS_SILU) * factor
    target = out + row.to(tl.int64)[None, :] * out_stride + column[:, None]
    tl.store(target, rounded(product, out.dtype.element_ty), mask=is_row[None, :] & is_column[:, None])


@triton.jit
def tile_and_block(num_tiles, num_blocks, TILES_TOGETHER: tl.constexpr):
    """This program's tile, and its block of the weights' rows: neighbours take one block through several tiles."""
    together = TILES_TOGETHER * num_blocks
    first = tl.program_id(0) // together * TILES_TOGETHER
    width = tl.minimum(num_tiles - first, TILES_TOGETHER)
    within = tl.program_id(0) % together
    return first + within % width, within // width
