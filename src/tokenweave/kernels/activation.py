"""SwiGLU's gate (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.kernels.base import Tolerance

TOLERANCE = {torch.float32: Tolerance(1e-5, 1e-6), torch.bfloat16: Tolerance(1.6e-2, 1e-3)}


def reference_silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)
