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
    hidden_size: int
    inner_size: int
    dtype: torch.dtype
    activation: Activation

    @classmethod
    def of(cls, experts: Sequence[E], device: torch.device) -> ExpertTable[E] | None:
        """None: they have biases or differ in shape, dtype or activation, and no grouped product takes them."""
        members = tuple(experts)
        if not members or len({_kind(each) for each in members}) > 1 or _has_bias(members):
            return None
        first = members[0]
        gates, ups, downs = (
            torch.tensor([packed.data.data_ptr() for packed in matrices], dtype=torch.int64).to(device)
            for matrices in zip(*(_matrices(each) for each in members), strict=True)
        )
        return cls(members, gates, ups, downs, first.gate.k, first.gate.n, first.gate.dtype, first.activation)

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


def _has_bias(experts: Sequence[Expert]) -> bool:
    return any(packed.bias is not None for expert in experts for packed in _matrices(expert))


def _kind(expert: Expert) -> tuple[object, ...]:
    """The properties that all experts of a table share."""
    shapes = ((packed.n, packed.k, packed.dtype, packed.layout) for packed in _matrices(expert))
    return expert.activation, *shapes
