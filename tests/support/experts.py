"""An expert of a mixture, for tests of kernels."""

from __future__ import annotations

from dataclasses import dataclass

from tokenweave.kernels import PackedLinear
from tokenweave.kernels.activation import Activation


@dataclass(frozen=True)
class Gated:
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear
    activation: Activation = "silu"
