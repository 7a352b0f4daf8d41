"""The reference of every path of `all_reduce_rms_norm` here, and how far from it each may be."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.norms import reference_reduce_rms_norm
from tokenweave.kernels.values import Tolerance

# Of the normed rows. The paths through pointers keep a sum in float32, as the reference does; the switch rounds it to
# the tensor's dtype, which is what the tolerance of the 16-bit dtypes has room for.
TOLERANCE = {
    torch.float32: Tolerance(1e-5, 1e-6),
    torch.bfloat16: Tolerance(1.6e-2, 1e-3),
    torch.float16: Tolerance(2e-3, 1e-3),
}


def reference_all_reduce_rms_norm(
    parts: list[Tensor], residual: Tensor, norms: ResidualNorms
) -> tuple[Tensor, Tensor]:
    """The normed rows, and the new residual, of the ranks' `parts` (num_tokens, hidden_size), in rank order."""
    summed = residual.clone()
    return reference_reduce_rms_norm(parts, summed, norms), summed
