"""RMSNorm, alone and with the residual add before it (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.kernels.base import Tolerance

TOLERANCE = {torch.float32: Tolerance(1e-5, 1e-6), torch.bfloat16: Tolerance(1.6e-2, 1e-3)}


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def reference_add_rms_norm(hidden: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual.copy_(residual.float() + hidden.float())
    return reference_rms_norm(residual, weight, eps)
