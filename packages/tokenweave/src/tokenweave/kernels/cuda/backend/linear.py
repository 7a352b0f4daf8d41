"""Linear layers and embeddings by torch's products, over a weight (n, k) as it is, on the device.

cuBLAS chooses its kernel by the number of rows among other things. So a row's last bits may depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenweave.kernels.lazy import DEVICE_PIECE_VALUES, LazyWeight, pieces_of
from tokenweave.kernels.values import PackedLinear

# Since torch 2.8, and on GPUs alone, a product of bfloat16 can be float32 without a float32 copy of its factors.
WIDENS = "dtype_out" in torch.ops.aten.mm.overloads()


@dataclass(frozen=True, eq=False)
class DeviceLinear(PackedLinear):
    """`data` is the weight, (n, k) of `dtype`."""

    exact_bias: Tensor | None = (
        None  # the bias as `dtype`, if that holds its values: it can go with the product
    )


def pack(
    weight: Tensor | LazyWeight, bias: Tensor | None, dtype: torch.dtype, device: torch.device, layout: str
) -> DeviceLinear:
    n, k = weight.shape
    data = torch.empty((n, k), dtype=dtype, device=device)
    for first, piece in pieces_of(weight, DEVICE_PIECE_VALUES):
        data[first : first + len(piece)] = piece
    if bias is None:
        return DeviceLinear(n, k, dtype, layout, data, None)
    bias = bias.to(device, torch.float32, copy=True)
    rounded = bias.to(dtype)
    is_exact = torch.equal(rounded.float(), bias)
    return DeviceLinear(n, k, dtype, layout, data, bias, exact_bias=rounded if is_exact else None)


def linear(x: Tensor, packed: PackedLinear, out: Tensor | None) -> Tensor:
    if out is None:
        out = torch.empty((x.shape[0], packed.n), dtype=packed.dtype, device=x.device)
    if out.dtype is not packed.dtype:
        return wide_product(x, packed, out)
    if packed.bias is None:
        return torch.mm(x, packed.data.t(), out=out)
    if isinstance(packed, DeviceLinear) and packed.exact_bias is not None:
        return torch.addmm(packed.exact_bias, x, packed.data.t(), out=out)
    wide = torch.empty(out.shape, dtype=torch.float32, device=x.device)
    return out.copy_(wide_product(x, packed, wide))


def wide_product(x: Tensor, packed: PackedLinear, out: Tensor) -> Tensor:
    """x times the weight transposed, plus bias, into float32 `out` (m, n): a product before it is rounded."""
    if x.dtype is torch.float32:
        torch.mm(x, packed.data.t(), out=out)
    elif x.is_cuda and WIDENS:
        torch.mm(x, packed.data.t(), out_dtype=torch.float32, out=out)
    else:
        torch.mm(x.float(), packed.data.float().t(), out=out)
    return out if packed.bias is None else out.add_(packed.bias)
