"""RMSNorm, alone and with the residual add before it: a program for each row."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.calls import row_stride
from tokenweave.kernels.cuda.backend.rounding import rounded
from tokenweave.kernels.cuda.backend.start import start

MAX_ROW = 8192  # values of a row that a program holds in registers; of a longer one it holds some at a time
PIECE = 4096  # of those
VALUES_PER_THREAD = 16
MAX_WARPS = 16


def rms_norm(
    x: Tensor, residual: Tensor | None, norms: ResidualNorms, out: Tensor | None, device: torch.device
) -> Tensor:
    """Both kernels: with a residual, x is added to it first."""
    m, hidden_size = x.shape
    if out is None:
        out = torch.empty((m, hidden_size), dtype=x.dtype, device=device)
    start(
        norm_long_row if hidden_size > MAX_ROW else norm_row,
        (m,),
        device,
        x,
        x if residual is None else residual,
        out,
        x if norms.weight is None else norms.weight,
        x if norms.post_weight is None else norms.post_weight,
        row_stride(x),
        0 if residual is None else row_stride(residual),
        row_stride(out),
        norms.eps,
        HAS_RESIDUAL=residual is not None,
        HAS_WEIGHT=norms.weight is not None,
        HAS_POST=norms.post_weight is not None,
        **norm_options(hidden_size),
    )
    return out


def norm_options(hidden_size: int) -> dict[str, Any]:
    """How rows of that size are shared out among threads. Nothing else decides it, so a row's bits are its own."""
    block = triton.next_power_of_2(hidden_size) if hidden_size <= MAX_ROW else PIECE
    warps = min(max(block // (32 * VALUES_PER_THREAD), 1), MAX_WARPS)
    return {"HIDDEN": hidden_size, "BLOCK": block, "num_warps": warps, "enable_fp_fusion": True}


@triton.jit
def norm_row(
    x,  # (m, HIDDEN)
    residual,  # *float32 (m, HIDDEN), read and written if HAS_RESIDUAL
    out,  # (m, HIDDEN)
    weight,  # (HIDDEN,), read if HAS_WEIGHT
    post_weight,  # (HIDDEN,), read if HAS_POST
    x_stride,
    residual_stride,
    out_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POST: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_column = columns < HIDDEN
    wide = tl.load(x + row * x_stride + columns, mask=is_column, other=0.0).to(tl.float32)
    if HAS_POST:
        scale = tl.load(post_weight + columns, mask=is_column, other=0.0).to(tl.float32)
        wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / HIDDEN + eps) * scale
    if HAS_RESIDUAL:
        place = residual + row * residual_stride + columns
        wide = tl.load(place, mask=is_column, other=0.0) + wide
        tl.store(place, wide, mask=is_column)
    if HAS_WEIGHT:
        scale = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
        wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / HIDDEN + eps) * scale
    tl.store(out + row * out_stride + columns, rounded(wide, out.dtype.element_ty), mask=is_column)


@triton.jit
def norm_long_row(
    x,
    residual,
    out,
    weight,
    post_weight,
    x_stride,
    residual_stride,
    out_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POST: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `norm_row`, for rows that registers do not hold: a row is read again for each norm, from a cache by then."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    residual += row * residual_stride
    out += row * out_stride
    post_scale = 1.0
    if HAS_POST:
        squares = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, HIDDEN, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            wide = tl.load(x + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
            squares += wide * wide
        post_scale = tl.rsqrt(tl.sum(squares, 0) / HIDDEN + eps)
    squares = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, HIDDEN, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        is_column = columns < HIDDEN
        wide = tl.load(x + columns, mask=is_column, other=0.0).to(tl.float32)
        if HAS_POST:
            scale = tl.load(post_weight + columns, mask=is_column, other=0.0).to(tl.float32)
            wide = wide * post_scale * scale
        if HAS_RESIDUAL:
            wide = tl.load(residual + columns, mask=is_column, other=0.0) + wide
            tl.store(residual + columns, wide, mask=is_column)
        squares += wide * wide
        if not HAS_WEIGHT:
            tl.store(out + columns, rounded(wide, out.dtype.element_ty), mask=is_column)
    if HAS_WEIGHT:
        tl.debug_barrier()  # what was just added to the residual may be read by another thread
        norm_scale = tl.rsqrt(tl.sum(squares, 0) / HIDDEN + eps)
        for begin in range(0, HIDDEN, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            is_column = columns < HIDDEN
            if HAS_RESIDUAL:
                wide = tl.load(residual + columns, mask=is_column, other=0.0)
            else:
                wide = tl.load(x + columns, mask=is_column, other=0.0).to(tl.float32)
            scale = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
            tl.store(out + columns, rounded(wide * norm_scale * scale, out.dtype.element_ty), mask=is_column)
