"""CudaKernels: a decoder layer's arithmetic on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels import arguments, checks
from tokenweave.kernels.activation import Activation
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer, ResidualNorms
from tokenweave.kernels.base import Kernels, ZerosFactory
from tokenweave.kernels.cuda.available import unavailable_reason
from tokenweave.kernels.cuda.backend.activation import activate_and_mul
from tokenweave.kernels.cuda.backend.attention import group_start_on, paged_attention
from tokenweave.kernels.cuda.backend.blocks import (
    DeviceBlocks,
    are_multiplied_together,
    gated_linear_of_blocks,
    gather_rows_of_blocks,
    linear_of_blocks,
    pack_blocks,
    pack_fp8,
)
from tokenweave.kernels.cuda.backend.experts import ExpertTable
from tokenweave.kernels.cuda.backend.gather import gather_rows
from tokenweave.kernels.cuda.backend.grouped import grouped_mixture
from tokenweave.kernels.cuda.backend.linear import linear, pack, wide_product
from tokenweave.kernels.cuda.backend.norms import rms_norm
from tokenweave.kernels.cuda.backend.rotary import rope_and_store
from tokenweave.kernels.cuda.clock import is_interpreted
from tokenweave.kernels.lazy import LazyWeight
from tokenweave.kernels.linear import check_pack
from tokenweave.kernels.memory import zeros_on
from tokenweave.kernels.mixture import E, Expert, check_mixture, mixture_of_all_rows
from tokenweave.kernels.stored.linear import Stored, as_sequence, check_pack_stored
from tokenweave.kernels.values import HeadLayout, PackedLinear

INTERPRETED_SMS = 4  # what the interpreter stands for: few programs fill it, as few tokens do in tests


class CudaKernels(Kernels):
    """Products by torch, everything else by Triton, on torch's current stream of `device`.

    No call waits for the device, reads an index on the host, or allocates by one, save those that pack and
    `new_kv_cache`. Indices are not checked: `gather_rows` gives zeros for rows that it does not hold, `rope_and_store`
    stores nothing for a slot outside the cache, `paged_attention` takes keys in blocks outside it for zeros. Nothing is
    written outside the cache.

    Results of Triton's kernels have the same bits whatever is beside a row; those of products may not (see `linear`).

    On the CPU it runs under Triton's interpreter, slowly, for tests: set TRITON_INTERPRET=1 before triton is imported.

    Raises:
        KernelError: the device cannot run them; the message says why.
    """

    name = "cuda"
    threads = 1
    head_alignment = 2  # what a product of matrices needs more is added inside

    def __init__(self, device: str | torch.device = "cuda") -> None:
        reason = _reason(torch.device(device))
        if reason is not None:
            raise KernelError(f'kernels "cuda" cannot be had here: {reason}')
        self.device = checks.device_called(device)
        self._num_sms = INTERPRETED_SMS
        if self.device.type == "cuda":
            self._num_sms = torch.cuda.get_device_properties(self.device).multi_processor_count

    def pack(
        self, weight: Tensor | LazyWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> PackedLinear:
        dtype = check_pack(weight, bias, dtype)
        return pack(weight, bias, dtype, self.device, self.name)

    def pack_stored(
        self,
        weights: Stored | Sequence[Stored],
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PackedLinear:
        """Keeps codes and scales apart, with the values of the blocks (see `planes`)."""
        weights = as_sequence(weights)
        check_pack_stored(weights, bias, dtype)
        return pack_blocks(weights, bias, dtype, self.device, self.name)

    def pack_fp8(
        self, weight: Tensor | LazyWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> PackedLinear:
        dtype = check_pack(weight, bias, dtype)
        return pack_fp8(weight, bias, dtype, self.device, self.name)

    def linear(self, x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
        checks.check_linear(x, packed, out, self.name, self.device)
        if isinstance(packed, DeviceBlocks):
            return linear_of_blocks(x, packed, out)
        return linear(x, packed, out)

    def gated_linear(
        self, x: Tensor, gate: PackedLinear, up: PackedLinear, activation: Activation = "silu"
    ) -> Tensor:
        checks.check_gated_linear(x, gate, up, activation, self.name, self.device)
        if (
            isinstance(gate, DeviceBlocks)
            and isinstance(up, DeviceBlocks)
            and are_multiplied_together(gate, up)
        ):
            return gated_linear_of_blocks(x, gate, up, activation)
        products = torch.empty((2, x.shape[0], gate.n), dtype=torch.float32, device=self.device)
        for packed, product in zip((gate, up), products, strict=True):
            if isinstance(packed, DeviceBlocks):
                linear_of_blocks(x, packed, product)
            else:
                wide_product(x, packed, product)
        return activate_and_mul(products[0], products[1], activation, x.dtype, self.device)

    def group_experts(self, experts: Sequence[E]) -> Sequence[E]:
        """A table of them, for grouped products; as they are where no grouped product takes them (`ExpertTable.of`)."""
        return ExpertTable.of(experts, self.device) or tuple(experts)

    def mixture(self, x: Tensor, experts: Sequence[Expert], chosen: Tensor, weights: Tensor) -> Tensor:
        if not isinstance(experts, ExpertTable):
            return mixture_of_all_rows(self, x, experts, chosen, weights)
        check_mixture(x, experts, chosen, weights, self.name, self.device)
        return grouped_mixture(x, experts, chosen, weights, self.device)

    def gather_rows(self, packed: PackedLinear, ids: Tensor, first_row: int = 0) -> Tensor:
        checks.check_layout(packed, self.name)
        checks.check_ids(ids, self.device)
        if isinstance(packed, DeviceBlocks):
            return gather_rows_of_blocks(packed, ids, first_row)
        return gather_rows(packed.data, ids, first_row, self.device)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        checks.check_norm(x, weight, self.device)
        return rms_norm(x, None, ResidualNorms(weight, eps), None, self.device)

    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor, norms: ResidualNorms, out: Tensor | None = None
    ) -> Tensor:
        arguments.check_residual_norms(hidden, residual, norms, out, self.device)
        return rms_norm(hidden, residual, norms, out, self.device)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return self._gate_and_mul(gate_up, "silu")

    def gelu_tanh_and_mul(self, gate_up: Tensor) -> Tensor:
        return self._gate_and_mul(gate_up, "gelu_tanh")

    def _gate_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        checks.check_gate_up(gate_up, self.device)
        gate, up = gate_up.chunk(2, dim=1)
        return activate_and_mul(gate, up, activation, gate_up.dtype, self.device)

    def rope_and_store(
        self, qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        arguments.check_rope(qkv, cache_layer, batch, layer, self.device)
        return rope_and_store(qkv, cache_layer, batch, layer, self.device)

    def paged_attention(
        self, q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        arguments.check_attention(q, cache_layer, batch, layer, self.device)
        return paged_attention(q, cache_layer, batch, layer, self.device, self._num_sms)

    def new_kv_cache(
        self,
        num_layers: int,
        num_blocks: int,
        heads: HeadLayout,
        dtype: torch.dtype,
        zeros: ZerosFactory | None = None,
    ) -> Tensor:
        checks.check_dtype("dtype", dtype)
        group_start_on(heads, self.device)  # so that no later call has to bring it there
        zeros = zeros or zeros_on(self.device)
        return zeros((num_layers, num_blocks, *heads.block_shape), dtype)


def _reason(device: torch.device) -> str | None:
    """Why these kernels cannot run on `device`, or None."""
    if device.type == "cuda":
        return unavailable_reason()
    if device.type != "cpu":
        return f"they run on CUDA devices, got {str(device)!r}"
    if is_interpreted:
        return None
    return "on the CPU they run under Triton's interpreter alone: set TRITON_INTERPRET=1 before triton is imported"
