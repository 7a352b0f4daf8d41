"""The gates of gated MLPs: a program for some columns of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.activation import Activation
from tokenweave.kernels.calls import row_stride
from tokenweave.kernels.cuda.backend.rounding import rounded
from tokenweave.kernels.cuda.backend.start import start

COLUMNS = 1024  # of a program
OPTIONS = {"COLUMNS": COLUMNS, "num_warps": 4, "enable_fp_fusion": True}


def activate_and_mul(
    gate: Tensor, up: Tensor, activation: Activation, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """activation(gate) * up, (m, n) of `dtype`. Both have rows equally far apart."""
    m, width = gate.shape
    out = torch.empty((m, width), dtype=dtype, device=device)
    start(
        gate_rows,
        (m, triton.cdiv(width, COLUMNS)),
        device,
        gate,
        up,
        out,
        row_stride(gate),
        width,
        IS_SILU=activation == "silu",
        **OPTIONS,
    )
    return out


@triton.jit
def gate_rows(
    gate,  # (m, width), rows `stride` apart
    up,  # (m, width), rows `stride` apart
    out,  # (m, width)
    stride,
    width,
    IS_SILU: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < width
    x = tl.load(gate + row * stride + columns, mask=is_column, other=0.0).to(tl.float32)
    factor = tl.load(up + row * stride + columns, mask=is_column, other=0.0).to(tl.float32)
    gated = activated(x, IS_SILU) * factor
    tl.store(out + row * width + columns, rounded(gated, out.dtype.element_ty), mask=is_column)


@triton.jit
def activated(x, IS_SILU: tl.constexpr):
    """The activation of float32 values."""
    argument = x
    if not IS_SILU:
        # Half of 1 + tanh(u) is sigmoid(2 u), which takes no difference of near values.
        argument = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x * sigmoid(argument)


@triton.jit
def sigmoid(x):
    """Takes the exponential of what is not positive, so that it never overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)
