"""Gated linear units, SwiGLU and GEGLU (Shazeer, arXiv 2002.05202), over two weights packed once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from tokenweave.kernels.activation import ACTIVATION_CODE, Activation, activated
from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.values import PackedLinear, Tolerance
from tokenweave.native import ThreadPool, check_status

# Products of variance 1. Each may be off by what a linear layer's may, times the other one: rarely more than 4. In
# bfloat16 only the result is rounded.
TOLERANCE = {
    torch.float32: Tolerance(1e-4, 1e-4),
    torch.bfloat16: Tolerance(1.6e-2, 1e-3),
    torch.float16: Tolerance(2e-3, 2e-4),
}


def reference_gated_linear(x: Tensor, gate: PackedLinear, up: PackedLinear, activation: Activation) -> Tensor:
    products = (linear(x.float(), packed.data, packed.bias) for packed in (gate, up))
    return (activated(next(products), activation) * next(products)).to(x.dtype)


def native_gated_linear(
    pool: ThreadPool, x: Tensor, gate: PackedLinear, up: PackedLinear, activation: Activation
) -> Tensor:
    m, n, dtype = x.shape[0], gate.n, DTYPE_CODE[gate.dtype]
    out = torch.empty((m, n), dtype=gate.dtype)
    status = pool.library.tw_gated_linear(
        pool.handle,
        x.data_ptr(),
        row_stride(x),
        gate.data.data_ptr(),
        None if gate.bias is None else gate.bias.data_ptr(),
        up.data.data_ptr(),
        None if up.bias is None else up.bias.data_ptr(),
        out.data_ptr(),
        n,
        m,
        n,
        gate.k,
        ACTIVATION_CODE[activation],
        dtype,
    )
    if status:
        check_status(status, "gated_linear")
    return out
