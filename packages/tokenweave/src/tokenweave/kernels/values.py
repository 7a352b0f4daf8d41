"""The values of kernels: a rank's heads, a packed weight, and how far a result may be from its reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels.paging import BLOCK_SIZE

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of kernels; the native ones lack the last


@dataclass(frozen=True)
class HeadLayout:
    """The attention heads of one rank. Query heads of one KV head are neighbours; groups may differ in size.

    `kv_of_head[h]` is the local KV head that query head `h` reads; it never decreases. There may be no heads.
    """

    num_heads: int
    kv_of_head: tuple[int, ...]
    head_dim: int

    def __post_init__(self) -> None:
        if len(self.kv_of_head) != self.num_heads:
            raise KernelError(
                f"kv_of_head names {len(self.kv_of_head)} heads, expected num_heads={self.num_heads}"
            )
        if list(self.kv_of_head) != sorted(self.kv_of_head) or min(self.kv_of_head, default=0) < 0:
            raise KernelError(f"kv_of_head must be nondecreasing from 0 on, got {self.kv_of_head}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise KernelError(f"head_dim must be even and positive, got {self.head_dim}")

    @cached_property
    def num_kv_heads(self) -> int:
        return self.kv_of_head[-1] + 1 if self.kv_of_head else 0

    @cached_property
    def block_shape(self) -> tuple[int, int, int]:
        """Keys and values of one block in one layer. Where a token's lie inside is the kernels' own affair."""
        return (2, self.num_kv_heads, BLOCK_SIZE * self.head_dim)

    @cached_property
    def group_start(self) -> tuple[int, ...]:
        """(num_kv_heads + 1,): KV head `j` serves the query heads `group_start[j]:group_start[j + 1]`."""
        return tuple(sum(kv < j for kv in self.kv_of_head) for j in range(self.num_kv_heads + 1))


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A weight (n, k) and perhaps a bias (n,), in the private layout of the backend that packed it.

    On the CPU `dataclasses.replace(packed, data=other)` is the same weight wherever `other` has the bytes of `data`.
    """

    n: int
    k: int
    dtype: torch.dtype  # of the activations, and of a dense weight
    layout: str
    data: Tensor
    bias: Tensor | None  # (n,) float32
    format: str | None = None  # of a stored weight, "q4_1" or "q4_k+q6_k"; None: the weight is dense

    @property
    def size_bytes(self) -> int:
        return self.data.nbytes + (self.bias.nbytes if self.bias is not None else 0)


@dataclass(frozen=True)
class Tolerance:
    """How far a native kernel may be from its reference, per element: `atol + rtol * |reference|`."""

    rtol: float
    atol: float
