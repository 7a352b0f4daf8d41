"""Rounding to a narrower dtype: to the nearest, ties to even."""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.clock import is_interpreted

INTERPRETED = tl.constexpr(is_interpreted)


@triton.jit
def rounded(wide, DTYPE: tl.constexpr):
    """float32 values as DTYPE. The interpreter cuts off what does not fit, so there the values are rounded before."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = wide.to(tl.int32, bitcast=True)
        wide = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return wide.to(DTYPE)
