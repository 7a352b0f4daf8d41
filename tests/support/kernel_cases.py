"""Helpers of the kernel tests: backends for every instruction set that this CPU has and for CUDA, paged sequences,
comparisons.

Under Triton's interpreter (see `support.fake_cuda`) CUDA is the only backend, on the CPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from support.moved_kernels import MovedKernels
from tokenweave import native
from tokenweave.kernels import (
    BLOCK_SIZE,
    AttentionBatch,
    AttentionLayer,
    HeadLayout,
    Kernels,
    NativeKernels,
    Tolerance,
    make_kernels,
)
from tokenweave.kernels.cuda.available import unavailable_reason

DTYPES = [torch.float32, torch.bfloat16]
AVAILABLE_ISAS = native.available_isas()
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def contract_backends() -> list[Any]:
    """Returns what the contract is tested on here: names for `contract_kernels`, as the parameters of a test."""
    if IS_INTERPRETED:
        return ["cuda"]
    devices = [] if unavailable_reason() is not None else [pytest.param("cuda", marks=pytest.mark.gpu)]
    return [*AVAILABLE_ISAS, *devices]


@cache
def contract_kernels(name: str) -> Any:
    """The kernels of an instruction set, or those of CUDA, for tensors on the CPU."""
    if name != "cuda":
        return native_kernels(name)
    return MovedKernels(make_kernels("cuda", device="cpu" if IS_INTERPRETED else "cuda"))


@cache
def native_kernels(isa: str, threads: int = 2) -> NativeKernels:
    return NativeKernels(threads, isa)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within(got: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.float(), expected.float(), rtol=tolerance.rtol, atol=tolerance.atol)


@dataclass
class PagedSequences:
    """Sequences of random tokens whose K and V lie in scattered blocks of one cache layer."""

    kernels: Kernels
    heads: HeadLayout
    lengths: list[int]
    dtype: torch.dtype
    seed: int = 0
    head_norms: bool = False

    def __post_init__(self) -> None:
        heads, d = self.heads, self.heads.head_dim
        blocks = [-(-length // BLOCK_SIZE) for length in self.lengths]
        spare = 3
        self.cache = self.kernels.new_kv_cache(1, sum(blocks) + spare, heads, self.dtype)[0]
        self.cache.fill_(float("nan"))  # stale slots may hold anything
        order = torch.randperm(sum(blocks) + spare, generator=torch.Generator().manual_seed(self.seed))
        self.tables = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
        for s, count in enumerate(blocks):
            taken = sum(blocks[:s])
            self.tables[s, :count] = order[taken : taken + count]
        self.cos_sin = randn(self.seed + 1, max(self.lengths), d).clamp(-1, 1)
        self.q_norm, self.k_norm = (
            (randn(self.seed + i, d, dtype=self.dtype) if self.head_norms else None) for i in (2, 3)
        )
        width = (heads.num_heads + 2 * heads.num_kv_heads) * d
        self.qkv = [randn(self.seed + 10 + s, n, width, dtype=self.dtype) for s, n in enumerate(self.lengths)]

    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        block = self.tables[sequence][(positions // BLOCK_SIZE).long()]
        return (block * BLOCK_SIZE + positions % BLOCK_SIZE).int()

    def layer(self, sliding_window: int | None = None, softcap: float | None = None) -> AttentionLayer:
        scale = self.heads.head_dim**-0.5
        return AttentionLayer(self.heads, scale, sliding_window, softcap, self.q_norm, self.k_norm)

    def batch(self, chunks: list[tuple[int, int, int]]) -> AttentionBatch:
        """Tokens first:last of each (sequence, first, last)."""
        positions = [torch.arange(first, last, dtype=torch.int32) for _, first, last in chunks]
        slots = [self.slots(s, at) for (s, _, _), at in zip(chunks, positions, strict=True)]
        counts = torch.tensor([0] + [last - first for _, first, last in chunks])
        return AttentionBatch(
            rotations=self.cos_sin,
            rotation_rows=torch.cat(positions),
            slots=torch.cat(slots),
            block_tables=self.tables[[s for s, _, _ in chunks]],
            query_start=counts.cumsum(0).int(),
            seq_lens=ints(*(last for _, _, last in chunks)),
        )

    def forward(
        self,
        chunks: list[tuple[int, int, int]],
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """One batch, stored and attended."""
        qkv = torch.cat([self.qkv[s][first:last] for s, first, last in chunks])
        batch, layer = self.batch(chunks), self.layer(sliding_window, softcap)
        q = self.kernels.rope_and_store(qkv, self.cache, batch, layer)
        return self.kernels.paged_attention(q, self.cache, batch, layer)
