"""The gates of gated MLPs: SwiGLU's and GEGLU's (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import gelu

from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.values import Tolerance
from tokenweave.native import ThreadPool, check_status

Activation = Literal["silu", "gelu_tanh"]  # in the order of tw_activation
ACTIVATION_CODE: dict[str, int] = {name: code for code, name in enumerate(get_args(Activation))}

TOLERANCE = {
    torch.float32: Tolerance(1e-5, 1e-6),
    torch.bfloat16: Tolerance(1.6e-2, 1e-3),
    torch.float16: Tolerance(2e-3, 1.5e-4),
}


def activated(gate: Tensor, activation: Activation) -> Tensor:
    """The activation of float32 values."""
    return gate * torch.sigmoid(gate) if activation == "silu" else gelu(gate, approximate="tanh")


def reference_silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (activated(gate, "silu") * up).to(gate_up.dtype)


def reference_gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (activated(gate, "gelu_tanh") * up).to(gate_up.dtype)


def native_silu_and_mul(pool: ThreadPool, gate_up: Tensor) -> Tensor:
    return _native(pool, "silu_and_mul", gate_up)


def native_gelu_tanh_and_mul(pool: ThreadPool, gate_up: Tensor) -> Tensor:
    return _native(pool, "gelu_tanh_and_mul", gate_up)


def _native(pool: ThreadPool, name: str, gate_up: Tensor) -> Tensor:
    m, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((m, width), dtype=gate_up.dtype)
    source, dtype = gate_up.data_ptr(), DTYPE_CODE[gate_up.dtype]
    function = getattr(pool.library, f"tw_{name}")
    status = function(pool.handle, source, row_stride(gate_up), out.data_ptr(), m, width, dtype)
    if status:
        check_status(status, name)
    return out
