"""NativeKernels: the library's kernels, compiled for several instruction sets and chosen at run time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenweave.kernels import arguments, checks
from tokenweave.kernels.activation import Activation, native_gelu_tanh_and_mul, native_silu_and_mul
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer, ResidualNorms
from tokenweave.kernels.attention import native_paged_attention
from tokenweave.kernels.base import Kernels, ZerosFactory
from tokenweave.kernels.calls import DTYPE_CODE, check_native_dtype
from tokenweave.kernels.gated_linear import native_gated_linear
from tokenweave.kernels.lazy import LazyWeight
from tokenweave.kernels.linear import check_pack, native_gather_rows, native_linear, native_pack
from tokenweave.kernels.memory import Arena, zeros_on
from tokenweave.kernels.norms import native_rms_norm
from tokenweave.kernels.rotary import native_rope_and_store
from tokenweave.kernels.stored.linear import (
    PackedStack,
    Stored,
    as_sequence,
    check_gated_stacks,
    check_pack_stored,
    native_pack_stored,
    native_stored_gated_linear,
    native_stored_gather_rows,
    native_stored_linear,
)
from tokenweave.kernels.values import HeadLayout, PackedLinear
from tokenweave.native import ThreadPool


class NativeKernels(Kernels):
    """Batch invariant: a row's result is the same bit for bit whatever is beside it, on any number of threads."""

    name = "native"
    dtypes = tuple(DTYPE_CODE)
    head_alignment = checks.NATIVE_HEAD_ALIGNMENT

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        self.threads = threads
        self._pool = ThreadPool(threads, isa)
        self._arena = Arena()

    def close(self) -> None:
        self._pool.close()

    @property
    def pool(self) -> ThreadPool:
        """The workers, for native code that shares its own rows out among them."""
        return self._pool

    @property
    def isa(self) -> str:
        return self._pool.isa

    def pack(
        self, weight: Tensor | LazyWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> PackedLinear:
        dtype = check_pack(weight, bias, dtype)
        return native_pack(self._pool, self._arena, weight, bias, dtype, self.name)

    def pack_stored(
        self,
        weights: Stored | Sequence[Stored],
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PackedLinear:
        weights = as_sequence(weights)
        check_pack_stored(weights, bias, dtype)
        check_native_dtype(dtype)
        return native_pack_stored(self._pool, self._arena, weights, bias, dtype, self.name)

    def linear(self, x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
        checks.check_linear(x, packed, out, self.name)
        if isinstance(packed, PackedStack):
            return native_stored_linear(self._pool, x, packed, out)
        return native_linear(self._pool, x, packed, out)

    def gated_linear(
        self, x: Tensor, gate: PackedLinear, up: PackedLinear, activation: Activation = "silu"
    ) -> Tensor:
        checks.check_gated_linear(x, gate, up, activation, self.name)
        if isinstance(gate, PackedStack) and isinstance(up, PackedStack):
            check_gated_stacks(gate, up)
            return native_stored_gated_linear(self._pool, x, gate, up, activation)
        return native_gated_linear(self._pool, x, gate, up, activation)

    def gather_rows(self, packed: PackedLinear, ids: Tensor, first_row: int = 0) -> Tensor:
        checks.check_layout(packed, self.name)
        checks.check_ids(ids)
        if isinstance(packed, PackedStack):
            return native_stored_gather_rows(self._pool, packed, ids, first_row)
        return native_gather_rows(self._pool, packed, ids, first_row)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        checks.check_norm(x, weight)
        return native_rms_norm(self._pool, x, None, ResidualNorms(weight, eps), None)

    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor, norms: ResidualNorms, out: Tensor | None = None
    ) -> Tensor:
        arguments.check_residual_norms(hidden, residual, norms, out)
        return native_rms_norm(self._pool, hidden, residual, norms, out)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        checks.check_gate_up(gate_up)
        return native_silu_and_mul(self._pool, gate_up)

    def gelu_tanh_and_mul(self, gate_up: Tensor) -> Tensor:
        checks.check_gate_up(gate_up)
        return native_gelu_tanh_and_mul(self._pool, gate_up)

    def rope_and_store(
        self, qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        arguments.check_rope(qkv, cache_layer, batch, layer)
        return native_rope_and_store(self._pool, qkv, cache_layer, batch, layer)

    def paged_attention(
        self, q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        arguments.check_attention(q, cache_layer, batch, layer)
        return native_paged_attention(self._pool, q, cache_layer, batch, layer)

    def new_kv_cache(
        self,
        num_layers: int,
        num_blocks: int,
        heads: HeadLayout,
        dtype: torch.dtype,
        zeros: ZerosFactory | None = None,
    ) -> Tensor:
        check_native_dtype(dtype)
        checks.check_native_heads(heads)
        zeros = zeros or zeros_on(self.device)
        return zeros((num_layers, num_blocks, *heads.block_shape), dtype)
