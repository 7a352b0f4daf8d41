"""Linear layers and embeddings over a weight packed once."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.kernels.base import PackedLinear, Tolerance

# x of variance 1, weights of variance 1/k: float32 differs by the order of sums, bfloat16 by a rounding of y.
TOLERANCE = {torch.float32: Tolerance(1e-4, 2e-5), torch.bfloat16: Tolerance(1.6e-2, 4e-3)}


def reference_pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, layout: str) -> PackedLinear:
    """Keeps the values that `dtype` can hold, as float32: the reference multiplies in float32."""
    n, k = weight.shape
    data = weight.to(dtype).to(torch.float32, copy=True)
    return PackedLinear(
        n, k, dtype, layout, data, None if bias is None else bias.to(torch.float32, copy=True)
    )


def reference_linear(x: Tensor, packed: PackedLinear, out: Tensor | None) -> Tensor:
    y = torch.nn.functional.linear(x.float(), packed.data, packed.bias)
    return y.to(x.dtype) if out is None else out.copy_(y)


def reference_gather_rows(packed: PackedLinear, ids: Tensor, first_row: int) -> Tensor:
    rows = ids.long() - first_row
    held = (rows >= 0) & (rows < packed.n)
    gathered = packed.data[rows.clamp(0, packed.n - 1)] * held.unsqueeze(1)
    return gathered.to(packed.dtype)
