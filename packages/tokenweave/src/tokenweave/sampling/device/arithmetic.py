"""The reference's arithmetic on single numbers and single tokens, as operations of torch on any device.

Invariant: the bits are those of `tokenweave.sampling.reference`. Each operation of torch rounds once, as NumPy's do, so
nothing here may be fused into another operation (`addcmul`, `torch.compile`): a fused product and sum rounds once less.
No divisor is a number of Python: of those CUDA takes the inverse first, which rounds once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.sampling.reference import EXP_COEFFICIENTS, LOG2_HIGH, LOG2_LOW, ROUNDING, quanta_of_one

GOLDEN = (
    0x9E3779B97F4A7C15 - 2**64
)  # of SplitMix64; as int64, whose products and sums wrap around as uint64's do
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
LOWEST = -87.0  # what is below weighs 0


def mix64(value: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64, with the bits of uint64."""
    value = (value ^ _shifted(value, 30)) * FIRST
    value = (value ^ _shifted(value, 27)) * SECOND
    return value ^ _shifted(value, 31)


def uniform(seed: Tensor, index: Tensor) -> Tensor:
    """The random float64 in [0, 1) of output `index` under `seed`, both int64 with the bits of uint64."""
    mixed = mix64(mix64(seed) + (index + 1) * GOLDEN)
    return _shifted(mixed, 11).to(torch.float64) * 2.0**-53


def _shifted(value: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in: int64's own shift repeats the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def exp_of_negative(x: Tensor) -> Tensor:
    """exp(x) for float32 x <= 0: exactly 1 at 0, exactly 0 below -87 and for a NaN."""
    is_weighed = x >= LOWEST
    x = torch.where(is_weighed, x, 0.0)
    whole = (x * 1.44269504 + float(ROUNDING)) - float(ROUNDING)
    r = (x - whole * float(LOG2_HIGH)) - whole * float(LOG2_LOW)
    p = torch.full_like(x, EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        p = p * r + coefficient
    fraction = (p * (r * r) + r) + 1.0
    # 2^whole by its bits: of numbers from -126 to 0 that is no subnormal, and the product with it is exact.
    power = ((whole.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(is_weighed, fraction * power, 0.0)


def masses(weights: Tensor, vocab_size: int) -> Tensor:
    """Weights (float32) as integers (int64), whose sums no order changes."""
    return (weights.to(torch.float64) * float(quanta_of_one(vocab_size))).round_().to(torch.int64)


def ordered(scores: Tensor) -> Tensor:
    """int32 that order as the float32 `scores` do; of -0 and 0 the former is the lower."""
    bits = scores.view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def scores_of(order: Tensor) -> Tensor:
    """The inverse of `ordered`."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).view(torch.float32)
