"""Quantisation: stored weights made out of dense ones, the same bytes that the converters of GGUF files write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels.stored.formats import QuantFormat
from tokenweave.kernels.stored.weight import StoredWeight

# Below, `values` is (num_blocks, 32) float32; what a function returns are scales (num_blocks, 1) and bytes of codes.


def quantise(weight: Tensor, form: QuantFormat) -> StoredWeight:
    """Rounds a dense weight (n, k) to a format, q8_0 or q4_0.

    Raises:
        KernelError: another format, k that is no multiple of a block, or values whose scale a float16 cannot hold.
    """
    if form.name not in _CODES:
        raise KernelError(f"cannot quantise to {form.name}, expected one of {', '.join(_CODES)}")
    n, k = weight.shape
    if k % form.block_values:
        raise KernelError(
            f"rows have {k} values, expected a multiple of {form.block_values}, the values of a block of {form.name}; "
            "leave the weight dense"
        )
    scales, codes = _CODES[form.name](weight.float().reshape(-1, form.block_values))
    halves = scales.to(torch.float16)
    if not halves.isfinite().all():
        raise KernelError(
            f"values of up to {weight.abs().max().item():.3g} have no scale in {form.name}, whose scales are float16; "
            "leave the weight dense"
        )
    blocks = torch.cat([halves.view(torch.uint8), codes], dim=1)
    return StoredWeight.whole(form, k, blocks.view(n, form.row_bytes(k)))


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0.0, 1 / scales)


def _q8_0(values: Tensor) -> tuple[Tensor, Tensor]:
    scales = values.abs().amax(dim=1, keepdim=True) / 127
    scaled = values * _inverse(scales)
    size = scaled.abs()
    floor = size.floor()
    rounded = floor + (2 * (size - floor)).floor()  # halves go away from zero
    return scales, (scaled.sign() * rounded).to(torch.int8).view(torch.uint8)


def _q4_0(values: Tensor) -> tuple[Tensor, Tensor]:
    """The value farthest from zero has code -8, the only one without a counterpart of the other sign."""
    farthest = values.abs().argmax(dim=1, keepdim=True)
    scales = values.gather(1, farthest) / -8
    codes = (values * _inverse(scales) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return scales, codes[:, :16] | (codes[:, 16:] << 4)


_CODES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"q8_0": _q8_0, "q4_0": _q4_0}
