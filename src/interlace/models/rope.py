"""Rotary position embedding tables: cos and sin of every position, as the kernels read them.

Frequencies are computed in float32, step by step as transformers does, so that the tables agree bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interlace.models.config import RopeConfig


def cos_sin_table(rope: RopeConfig, head_dim: int, max_position: int) -> Tensor:
    """The rotations of positions 0 .. max_position - 1: float32 (max_position, head_dim) as [cos | sin].

    Column j and head_dim / 2 + j belong to the pair (j, head_dim / 2 + j) of a head ("neox" halves).
    """
    positions = torch.arange(max_position, dtype=torch.float32)
    angles = torch.outer(positions, frequencies(rope, head_dim))
    table = torch.cat([angles.cos(), angles.sin()], dim=1)
    return table * rope.attention_factor


def frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair: float32 (head_dim / 2,)."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return _llama3(rope, plain)
    if rope.scaling == "yarn":
        return _yarn(rope, head_dim)
    if rope.scaling == "divisors":
        return plain / torch.tensor(rope.divisors, dtype=torch.float32)
    return plain


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between blended smoothly."""
    wavelength = 2 * math.pi / plain
    longest = rope.original_max_position / rope.low_freq_factor
    shortest = rope.original_max_position / rope.high_freq_factor
    smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelength > longest, plain / rope.factor, plain)
    return torch.where((wavelength >= shortest) & (wavelength <= longest), blended, scaled)


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """Frequencies that turn often in the original context are kept, slow ones interpolated."""
    powers = rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    low, high = _yarn_range(rope, head_dim)
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    return (1.0 / (rope.factor * powers)) * (1 - keep) + (1.0 / powers) * keep


def _yarn_range(rope: RopeConfig, head_dim: int) -> tuple[float, float]:
    """The dimensions between which YaRN passes from extrapolation to interpolation."""

    def dimension(rotations: float) -> float:
        turns = rope.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high  # never an empty range: it divides
