"""A layer's experts as grouped products read them: where each one's weights lie, in tables on the device.

Nothing is stacked or copied: a table has 8 bytes for a matrix, and the matrices stay where they were packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

import torch
from torch import Tensor

from tokenweave.kernels.activation import Activation
from tokenweave.kernels.cuda.backend.blocks import DeviceBlocks
from tokenweave.kernels.cuda.backend.products import WeightShape
from tokenweave.kernels.mixture import Expert
from tokenweave.kernels.values import PackedLinear

E = TypeVar("E", bound=Expert)


@dataclass(frozen=True, eq=False)
class ExpertTable(Sequence[E], Generic[E]):
    """Experts alike, and the addresses of their weights, which stay valid as long as this object."""

    members: tuple[E, ...]
    gates: Tensor  # (num_experts,) int64, on the device
    ups: Tensor
    downs: Tensor
    up: WeightShape  # and of gate
    down: WeightShape
    activation: Activation

    @classmethod
    def of(cls, experts: Sequence[E], device: torch.device) -> ExpertTable[E] | None:
        """None: no grouped product takes them, which have biases, or differ in shape, format, dtype or activation."""
        members = tuple(experts)
        if len({_kind(each) for each in members}) != 1:
            return None
        gate, up, down = (_shape_of(packed) for packed in _matrices(members[0]))
        if up is None or down is None or gate != up:
            return None
        gates, ups, downs = (
            torch.tensor([packed.data.data_ptr() for packed in matrices], dtype=torch.int64).to(device)
            for matrices in zip(*(_matrices(each) for each in members), strict=True)
        )
        return cls(members, gates, ups, downs, up, down, members[0].activation)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[E]: ...
    def __getitem__(self, index: int | slice) -> E | Sequence[E]:
        return self.members[index]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[E]:
        return iter(self.members)


def _matrices(expert: Expert) -> tuple[PackedLinear, PackedLinear, PackedLinear]:
    return expert.gate, expert.up, expert.down


def _shape_of(packed: PackedLinear) -> WeightShape | None:
    """How a product reads a weight from its first byte on; None: it is a stack, or has a bias."""
    if packed.bias is not None:
        return None
    if not isinstance(packed, DeviceBlocks):
        return WeightShape(packed.n, packed.k)
    return packed.parts[0].shape if len(packed.parts) == 1 else None


def _kind(expert: Expert) -> tuple[object, ...]:
    """The properties that all experts of a table share."""
    weights = ((packed.dtype, packed.layout, _shape_of(packed)) for packed in _matrices(expert))
    return expert.activation, *weights
