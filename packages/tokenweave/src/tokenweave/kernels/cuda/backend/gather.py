"""Rows of an embedding: a program for some columns of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.cuda.backend.products import WeightShape
from tokenweave.kernels.cuda.backend.rounding import rounded
from tokenweave.kernels.cuda.backend.start import start
from tokenweave.kernels.cuda.backend.weights import single_values

COLUMNS = 1024  # of a program
OPTIONS = {"COLUMNS": COLUMNS, "num_warps": 4, "enable_fp_fusion": True}


def gather_rows(data: Tensor, ids: Tensor, first_row: int, device: torch.device) -> Tensor:
    """Rows `ids - first_row` of data (n, k); rows that it does not have are zero."""
    (num_rows, k), m = data.shape, ids.shape[0]
    out = torch.empty((m, k), dtype=data.dtype, device=device)
    start(
        copy_rows,
        (m, triton.cdiv(k, COLUMNS)),
        device,
        data,
        ids,
        out,
        first_row,
        num_rows,
        k,
        **OPTIONS,
    )
    return out


def gather_values(data: Tensor, shape: WeightShape, ids: Tensor, first_row: int, out: Tensor) -> None:
    """Dequantises rows `ids - first_row` of a weight in planes into those of out (m, k) whose rows it has."""
    start(
        dequantise_rows,
        (len(out), triton.cdiv(shape.k, COLUMNS)),
        data.device,
        data,
        ids,
        out,
        first_row,
        shape.n,
        shape.k,
        shape.first_column,
        shape.width,
        *shape.plane_places,
        FORMAT=shape.format,
        **OPTIONS,
    )


@triton.jit(do_not_specialize=["first_row", "num_rows"])
def copy_rows(
    data,  # (num_rows, k)
    ids,  # *int32 (m,)
    out,  # (m, k)
    first_row,
    num_rows,
    k,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + at).to(tl.int64) - first_row
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    num_held = tl.where((row >= 0) & (row < num_rows), k, 0)  # columns of the row that are there to be read
    values = tl.load(data + row * k + columns, mask=columns < num_held, other=0.0)
    tl.store(out + at * k + columns, values, mask=columns < k)


@triton.jit(do_not_specialize=["first_row", "num_rows", "first_column"])
def dequantise_rows(
    data,  # *uint8: the planes
    ids,  # *int32 (m,)
    out,  # (m, k); rows that the weight has not are left as they are
    first_row,
    num_rows,
    k,
    first_column,
    width,
    scales_start,
    minima_start,
    parts_start,
    minimum_parts_start,
    num_factors,
    num_parts,
    FORMAT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + at).to(tl.int64) - first_row
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_held = columns < tl.where((row >= 0) & (row < num_rows), k, 0)
    places = (scales_start, minima_start, parts_start, minimum_parts_start, num_factors, num_parts)
    values = single_values(data.to(tl.int64), places, row, first_column + columns, is_held, width, FORMAT)
    tl.store(out + at * k + columns, rounded(values, out.dtype.element_ty), mask=is_held)
