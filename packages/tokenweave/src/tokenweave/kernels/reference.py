"""ReferenceKernels: every kernel in a few lines of torch, float32 inside. The oracle of the native ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenweave.kernels import arguments, checks
from tokenweave.kernels.activation import Activation, reference_gelu_tanh_and_mul, reference_silu_and_mul
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer, ResidualNorms
from tokenweave.kernels.attention import reference_masked_attention, reference_paged_attention
from tokenweave.kernels.base import Kernels, ZerosFactory
from tokenweave.kernels.gated_linear import reference_gated_linear
from tokenweave.kernels.lazy import LazyWeight
from tokenweave.kernels.linear import check_pack, reference_gather_rows, reference_linear, reference_pack
from tokenweave.kernels.memory import zeros_on
from tokenweave.kernels.norms import reference_add_rms_norm, reference_rms_norm
from tokenweave.kernels.rotary import reference_rope_and_store
from tokenweave.kernels.stored.linear import Stored, as_sequence, check_pack_stored, reference_pack_stored
from tokenweave.kernels.values import HeadLayout, PackedLinear


class ReferenceKernels(Kernels):
    """Runs wherever torch does, on torch's own threads. A row's last bits may depend on its neighbours.

    On a device other than the CPU the host never waits for it: no index is read there, so none is checked. That also
    holds for torch's device "meta", whose tensors have shapes and no values: what runs there leaves nothing elsewhere.
    """

    name = "reference"
    head_alignment = 2

    def __init__(self, threads: int = 1, device: str | torch.device = "cpu") -> None:
        self.threads = threads
        self.device = checks.device_called(device)

    def pack(
        self, weight: Tensor | LazyWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> PackedLinear:
        dtype = check_pack(weight, bias, dtype)
        return reference_pack(weight, bias, dtype, self.name, self.device)

    def pack_stored(
        self,
        weights: Stored | Sequence[Stored],
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PackedLinear:
        weights = as_sequence(weights)
        check_pack_stored(weights, bias, dtype)
        return reference_pack_stored(weights, bias, dtype, self.name, self.device)

    def linear(self, x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
        checks.check_linear(x, packed, out, self.name, self.device)
        return reference_linear(x, packed, out)

    def gated_linear(
        self, x: Tensor, gate: PackedLinear, up: PackedLinear, activation: Activation = "silu"
    ) -> Tensor:
        checks.check_gated_linear(x, gate, up, activation, self.name, self.device)
        return reference_gated_linear(x, gate, up, activation)

    def gather_rows(self, packed: PackedLinear, ids: Tensor, first_row: int = 0) -> Tensor:
        checks.check_layout(packed, self.name)
        checks.check_ids(ids, self.device)
        return reference_gather_rows(packed, ids, first_row)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        checks.check_norm(x, weight, self.device)
        return reference_rms_norm(x, weight, eps)

    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor, norms: ResidualNorms, out: Tensor | None = None
    ) -> Tensor:
        arguments.check_residual_norms(hidden, residual, norms, out, self.device)
        normed = reference_add_rms_norm(hidden, residual, norms)
        return normed if out is None else out.copy_(normed)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        checks.check_gate_up(gate_up, self.device)
        return reference_silu_and_mul(gate_up)

    def gelu_tanh_and_mul(self, gate_up: Tensor) -> Tensor:
        checks.check_gate_up(gate_up, self.device)
        return reference_gelu_tanh_and_mul(gate_up)

    def rope_and_store(
        self, qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        arguments.check_rope(qkv, cache_layer, batch, layer, self.device)
        if self.device.type == "cpu":
            batch.check_indices(cache_layer.shape[0])
        return reference_rope_and_store(qkv, cache_layer, batch, layer)

    def paged_attention(
        self, q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        arguments.check_attention(q, cache_layer, batch, layer, self.device)
        if self.device.type != "cpu":
            return reference_masked_attention(q, cache_layer, batch, layer)
        batch.check_indices(cache_layer.shape[0])
        return reference_paged_attention(q, cache_layer, batch, layer)

    def new_kv_cache(
        self,
        num_layers: int,
        num_blocks: int,
        heads: HeadLayout,
        dtype: torch.dtype,
        zeros: ZerosFactory | None = None,
    ) -> Tensor:
        checks.check_dtype("dtype", dtype)
        zeros = zeros or zeros_on(self.device)
        return zeros((num_layers, num_blocks, *heads.block_shape), dtype)
