"""Kernels: the calls that every backend offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels.activation import Activation
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer, ResidualNorms
from tokenweave.kernels.checks import CPU
from tokenweave.kernels.lazy import LazyWeight
from tokenweave.kernels.mixture import E, Expert, mixture_of_all_rows, mixture_of_chosen_rows
from tokenweave.kernels.stored.linear import Stored
from tokenweave.kernels.values import DTYPES, HeadLayout, PackedLinear

ZerosFactory = Callable[[Sequence[int], torch.dtype], Tensor]


class Kernels(ABC):
    """The arithmetic of a decoder layer on one rank.

    Tensors are of one of `dtypes`, indices int32, all of them on `device`; weights that are packed come from the CPU.
    Sums are float32 inside. `m`, the number of token rows, may be 0. Bad shapes, dtypes and places raise KernelError,
    and on the CPU bad indices (see `AttentionBatch`).

    Thread safety: one caller at a time for each object; separate objects are independent.
    """

    name: str
    threads: int
    dtypes: tuple[torch.dtype, ...] = DTYPES
    device: torch.device = CPU  # where every tensor lies that these kernels take and give
    head_alignment: int  # `head_dim` must be a multiple of it

    @abstractmethod
    def pack(
        self, weight: Tensor | LazyWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> PackedLinear:
        """Copies weight (n, k) and bias (n,) into `linear`'s layout on `device`, as `dtype` (default: the weight's).

        A weight that is read as it is packed is never in memory as a whole, but in the layout; it needs a `dtype`.
        """

    @abstractmethod
    def pack_stored(
        self,
        weights: Stored | Sequence[Stored],
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PackedLinear:
        """Copies a stored weight, or several as one with their rows stacked, for activations of `dtype`.

        The formats of a stack may differ. `linear` and `gather_rows` take the result as any other.
        """

    def pack_fp8(
        self, weight: Tensor | LazyWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> PackedLinear:
        """As `pack`, but rounds the weight to floats of 8 bits (e4m3), with a float32 scale for each of its rows.

        Raises:
            KernelError: these kernels do not multiply such, or values are not finite.
        """
        raise KernelError(
            f'{self.name!r} kernels do not multiply weights in fp8, "cuda" ones do: quantise them to int8 instead'
        )

    @abstractmethod
    def linear(self, x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
        """x (m, k) times the weight transposed, plus bias: (m, n) of x's dtype, or float32 if `out` is."""

    @abstractmethod
    def gated_linear(
        self, x: Tensor, gate: PackedLinear, up: PackedLinear, activation: Activation = "silu"
    ) -> Tensor:
        """A gated linear unit: activation(linear(x, gate)) * linear(x, up), (m, n) of x's dtype.

        It is rounded to that dtype once, at the end. Both weights are dense, or both stored, one weight in each.
        """

    def group_experts(self, experts: Sequence[E]) -> Sequence[E]:
        """Returns the experts of a layer as `mixture` multiplies them best, on the same memory.

        Called once, when they are packed. `mixture` takes experts that were not grouped as well.
        """
        return tuple(experts)

    def mixture(self, x: Tensor, experts: Sequence[Expert], chosen: Tensor, weights: Tensor) -> Tensor:
        """x (m, k) through the experts `chosen` for each row, times its `weights`, summed: (m, n) float32.

        chosen (m, c) int64: c different experts for each row; weights (m, c) float32. Unless a backend has a product of
        groups: on the CPU each expert computes its rows alone; on another device the host would have to wait to learn
        which these are, so every expert computes all rows.
        """
        through = mixture_of_chosen_rows if self.device.type == "cpu" else mixture_of_all_rows
        return through(self, x, experts, chosen, weights)

    @abstractmethod
    def gather_rows(self, packed: PackedLinear, ids: Tensor, first_row: int = 0) -> Tensor:
        """Rows `ids - first_row` (m,) of a packed weight: (m, k). Rows it does not hold are zero."""

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (m, h) over its root mean square, times weight (h,)."""

    @abstractmethod
    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor, norms: ResidualNorms, out: Tensor | None = None
    ) -> Tensor:
        """Adds hidden (m, h) to residual (m, h), in place; returns the rows for what comes next, of hidden's dtype.

        With a `post_weight`, hidden is rms_normed before it is added. The rows returned are the sum's rms_norm, or
        without a `weight` the sum itself. The residual is float32 whatever the dtype of the rest: it sums every layer's
        output, and rounding it to bfloat16 at each would more than double the error of the logits.
        """

    @abstractmethod
    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """gate_up (m, 2i) = [gate | up] -> silu(gate) * up, (m, i)."""

    @abstractmethod
    def gelu_tanh_and_mul(self, gate_up: Tensor) -> Tensor:
        """gate_up (m, 2i) = [gate | up] -> gelu(gate) * up, (m, i), with GELU approximated by its tanh."""

    @abstractmethod
    def rope_and_store(
        self, qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        """Rotates q and k, writes k and v to the cache, returns q (m, num_heads * head_dim).

        qkv (m, (num_heads + 2 num_kv_heads) * head_dim) = [q | k | v]. Where the layer has norms of its heads, they
        come before the rotation.
        """

    @abstractmethod
    def paged_attention(
        self, q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
    ) -> Tensor:
        """Causal attention of each sequence's new tokens over its cached keys: (m, num_heads * head_dim).

        A token at position p sees keys 0..p, or the last `sliding_window` of them. Scores are scaled, then capped, then
        masked.
        """

    @abstractmethod
    def new_kv_cache(
        self,
        num_layers: int,
        num_blocks: int,
        heads: HeadLayout,
        dtype: torch.dtype,
        zeros: ZerosFactory | None = None,
    ) -> Tensor:
        """Returns a cache (num_layers, num_blocks, *heads.block_shape), zeroed.

        Its memory is what `zeros` brings, which lies on `device`; without it, `memory.zeros_on(device)`.
        """
