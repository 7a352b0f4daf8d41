"""Dequantisation: the float32 values that a stored weight stands for, in plain torch. The oracle of the native kernels.

Products and sums are rounded as the format's own definition rounds them, so the values are those of any other reader.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenweave.kernels.stored.weight import StoredWeight

# Below, `blocks` is (num_blocks, block_bytes) uint8; what a function returns is (num_blocks, block_values) float32.


def dequantise(stored: StoredWeight) -> Tensor:
    """The weight's values: (n, k) float32."""
    form = stored.format
    blocks = stored.blocks.contiguous().view(-1, form.block_bytes)
    values = _VALUES[form.name](blocks).view(stored.n, -1)
    return values[:, stored.first_column : stored.first_column + stored.k].contiguous()


def half(blocks: Tensor, first_byte: int) -> Tensor:
    """The float16 at `first_byte` of each block: (num_blocks, 1)."""
    return blocks[:, first_byte : first_byte + 2].contiguous().view(torch.float16)


def nibbles(codes: Tensor, run: int) -> Tensor:
    """Low nibbles of `run` bytes, then their high ones, and so on: (num_blocks, 2 * bytes)."""
    runs = codes.reshape(codes.shape[0], -1, 1, run)
    return torch.cat([runs & 15, runs >> 4], dim=2).reshape(codes.shape[0], -1)


def _scaled(scale: Tensor, codes: Tensor) -> Tensor:
    """Each scale times its codes: scale (num_blocks, scales), codes (num_blocks, values)."""
    num_blocks, scales = scale.shape
    return scale.unsqueeze(2) * codes.float().view(num_blocks, scales, codes.shape[1] // scales)


def _q4_0(blocks: Tensor) -> Tensor:
    codes = nibbles(blocks[:, 2:], 16).to(torch.int8) - 8
    return _scaled(half(blocks, 0).float(), codes).flatten(1)


def _q4_1(blocks: Tensor) -> Tensor:
    return _scaled(half(blocks, 0).float(), nibbles(blocks[:, 4:], 16)).flatten(1) + half(blocks, 2).float()


def _q8_0(blocks: Tensor) -> Tensor:
    return _scaled(half(blocks, 0).float(), blocks[:, 2:].contiguous().view(torch.int8)).flatten(1)


def sub_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The scales and minima of 6 bits that q4_k and q5_k keep in 12 bytes: two of (num_blocks, 8)."""
    low, minima, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        torch.cat([low & 63, (high & 15) | ((low >> 6) << 4)], dim=1),
        torch.cat([minima & 63, (high >> 4) | ((minima >> 6) << 4)], dim=1),
    )


def _with_minima(blocks: Tensor, codes: Tensor) -> Tensor:
    scales, minima = sub_scales(blocks[:, 4:16])
    values = _scaled(half(blocks, 0).float() * scales.float(), codes)
    return (values - (half(blocks, 2).float() * minima.float()).unsqueeze(2)).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _with_minima(blocks, nibbles(blocks[:, 16:], 32))


def q5_k_codes(blocks: Tensor) -> Tensor:
    """(num_blocks, 256) uint8, 0 to 31."""
    high = torch.cat([(blocks[:, 16:48] >> bit) & 1 for bit in range(8)], dim=1)
    return nibbles(blocks[:, 48:], 32) | (high << 4)


def _q5_k(blocks: Tensor) -> Tensor:
    return _with_minima(blocks, q5_k_codes(blocks))


def q6_k_codes(blocks: Tensor) -> Tensor:
    """(num_blocks, 256) int8, -32 to 31."""
    halves = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = torch.cat([(halves >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2).reshape(-1, 256)
    return (nibbles(blocks[:, :128], 64) | (high << 4)).to(torch.int8) - 32


def _q6_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return _scaled(half(blocks, 208).float() * scales, q6_k_codes(blocks)).flatten(1)


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
