"""RMSNorm, alone and with the residual add before it (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from ctypes import byref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.values import Tolerance
from tokenweave.native import ThreadPool, check_status

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE = {
    torch.float32: Tolerance(1e-5, 1e-6),
    torch.bfloat16: Tolerance(1.6e-2, 1e-3),
    torch.float16: Tolerance(2e-3, 1.5e-4),
}
# Of the fused operation's normed rows (native/comm/fused.cpp). Its residual has none: the additions are the same.
REDUCE_NORM_TOLERANCE = TOLERANCE


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def reference_add_rms_norm(hidden: Tensor, residual: Tensor, norms: ResidualNorms) -> Tensor:
    """Returns the rows for the next sublayer, of hidden's dtype; between its steps nothing is rounded."""
    added = hidden.float()
    if norms.post_weight is not None:
        added = reference_rms_norm(added, norms.post_weight, norms.eps)
    residual += added
    if norms.weight is None:
        return residual.to(hidden.dtype, copy=True)
    return reference_rms_norm(residual, norms.weight, norms.eps).to(hidden.dtype)


def reference_reduce_rms_norm(parts: Sequence[Tensor], residual: Tensor, norms: ResidualNorms) -> Tensor:
    """`add_rms_norm` of the sum of `parts`, the ranks' partial sums: in float32, in rank order, never rounded."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return reference_add_rms_norm(total, residual, norms).to(parts[0].dtype)


def native_rms_norm(
    pool: ThreadPool, x: Tensor, residual: Tensor | None, norms: ResidualNorms, out: Tensor | None
) -> Tensor:
    """Both kernels: with a residual, x is added to it first."""
    m, h = x.shape
    if out is None:
        out = torch.empty((m, h), dtype=x.dtype)
    status = pool.library.tw_rms_norm(
        pool.handle,
        x.data_ptr(),
        row_stride(x),
        None if residual is None else residual.data_ptr(),
        0 if residual is None else row_stride(residual),
        byref(norms.native),
        out.data_ptr(),
        row_stride(out),
        m,
        h,
        DTYPE_CODE[x.dtype],
    )
    if status:
        check_status(status, "rms_norm")
    return out
