"""The descriptions that kernels take: a batch's attention, a layer's attention, and the norms of a residual."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels import calls, checks
from tokenweave.kernels.values import HeadLayout


@dataclass(frozen=True, eq=False)
class AttentionBatch:
    """The new tokens of the sequences of one forward pass: how they rotate, where they are stored, what they see.

    Sequence `s` owns the rows `query_start[s]:query_start[s + 1]` of q, the last of its `seq_lens[s]` tokens. Its key
    `t` is in block `block_tables[s, t // 16]` of the cache. All layers of a pass take the same batch; where layers
    differ in their rotations, there is a batch for each kind.

    Shapes are checked here, once, and that all tensors lie on one device, that of `rotations`. On the CPU indices are
    checked before they are used: by the reference once, by the native library in every call, where that costs next to
    nothing. On other devices they are not, for reading them there makes the host wait: whoever makes the batch answers
    for them. The tensors must not change afterwards.
    """

    rotations: (
        Tensor  # (max_position, head_dim) float32 = [cos | sin], for the two halves of a head (as GPT-NeoX)
    )
    rotation_rows: Tensor  # (m,) int32: each token's row of `rotations`
    slots: Tensor  # (m,) int32: where K and V of each token go, block * 16 + offset
    block_tables: Tensor  # (num_seqs, max_blocks) int32
    query_start: Tensor  # (num_seqs + 1,) int32
    seq_lens: Tensor  # (num_seqs,) int32
    _checked: set[int] = field(
        default_factory=set, init=False, repr=False
    )  # sizes of caches that the indices fit

    def __post_init__(self) -> None:
        num_seqs, tokens = self.seq_lens.numel(), (self.rotation_rows.numel(),)
        device = checks.device_of(self.rotations)
        checks.check_dense("rotations", self.rotations, torch.float32, _matrix(self.rotations), device)
        checks.check_dense("rotation_rows", self.rotation_rows, torch.int32, tokens, device)
        checks.check_dense("slots", self.slots, torch.int32, tokens, device)
        checks.check_dense("seq_lens", self.seq_lens, torch.int32, (num_seqs,), device)
        checks.check_dense("query_start", self.query_start, torch.int32, (num_seqs + 1,), device)
        tables = (num_seqs, _matrix(self.block_tables)[1])
        checks.check_dense("block_tables", self.block_tables, torch.int32, tables, device)

    @property
    def device(self) -> torch.device:
        """Where all of its tensors lie."""
        return self.rotations.device

    @property
    def num_tokens(self) -> int:
        return self.rotation_rows.shape[0]

    def check_indices(self, num_blocks: int) -> None:
        """Raises KernelError unless every index lies in its table or in a cache of `num_blocks`.

        It reads the indices: on another device than the CPU, it waits for all that was asked of that device before.
        """
        if num_blocks in self._checked:
            return
        checks.check_rope_indices(self.rotation_rows, self.slots, len(self.rotations), num_blocks)
        tables, starts, lens = self.block_tables, self.query_start, self.seq_lens
        checks.check_sequences(tables, starts, lens, self.num_tokens, num_blocks)
        self._checked.add(num_blocks)

    @cached_property
    def native(self) -> calls.AttentionBatchStruct:
        """The batch as the native library reads it: addresses, valid as long as this object."""
        checks.check_device("the batch", self.device, checks.CPU)
        return calls.AttentionBatchStruct(
            cos_sin=self.rotations.data_ptr(),
            max_position=len(self.rotations),
            positions=self.rotation_rows.data_ptr(),
            slots=self.slots.data_ptr(),
            block_tables=self.block_tables.data_ptr(),
            max_blocks=self.block_tables.shape[1],
            query_start=self.query_start.data_ptr(),
            seq_lens=self.seq_lens.data_ptr(),
            num_seqs=self.seq_lens.shape[0],
            m=self.num_tokens,
        )


def _matrix(tensor: Tensor) -> tuple[int, int]:
    """The shape of a matrix; of anything else, one that it does not have."""
    return (tensor.shape[0], tensor.shape[1]) if tensor.dim() == 2 else (0, 0)


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """How one layer attends: its heads, and what is done to their scores."""

    heads: HeadLayout
    scale: float  # of a query times a key
    sliding_window: int | None = None  # keys that a token sees, itself included; None: all before it
    softcap: float | None = (
        None  # bounds scores (Gemma 2, arXiv 2408.00118): softcap * tanh(scaled / softcap)
    )
    q_norm: Tensor | None = None  # (head_dim,): heads of q are rms_normed before they are rotated (as Qwen3)
    k_norm: Tensor | None = None  # (head_dim,)
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise KernelError(f"scale is {self.scale}, expected more than 0")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise KernelError(
                f"sliding_window is {self.sliding_window}, expected at least 1, or None for no window"
            )
        if self.softcap is not None and not self.softcap > 0:
            raise KernelError(f"softcap is {self.softcap}, expected more than 0, or None for no cap")
        if (self.q_norm is None) != (self.k_norm is None):
            raise KernelError("q_norm and k_norm go together; got only one of them")
        if self.q_norm is not None and self.k_norm is not None:
            device = checks.device_of(self.q_norm)
            for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
                checks.check_dtype(name, norm.dtype)
                checks.check_dense(name, norm, norm.dtype, (self.heads.head_dim,), device)

    @cached_property
    def native(self) -> calls.AttentionLayerStruct:
        """The layer as the native library reads it: addresses, valid as long as this object."""
        if self.q_norm is not None:
            checks.check_device("q_norm", self.q_norm.device, checks.CPU)
        return calls.AttentionLayerStruct(
            group_start=calls.group_start_array(self.heads),
            num_heads=self.heads.num_heads,
            num_kv_heads=self.heads.num_kv_heads,
            head_dim=self.heads.head_dim,
            scale=self.scale,
            sliding_window=self.sliding_window or 0,
            softcap=self.softcap or 0.0,
            q_norm=None if self.q_norm is None else self.q_norm.data_ptr(),
            k_norm=None if self.k_norm is None else self.k_norm.data_ptr(),
            norm_eps=self.norm_eps,
        )


@dataclass(frozen=True, eq=False)
class ResidualNorms:
    """The norms where a sublayer's output joins the residual: one after the sublayer, one before the next.

    Most models have only the second. Gemma 2 has both. OLMo 2 has only the first: the next sublayer reads the residual.
    """

    weight: (
        Tensor | None
    )  # (hidden_size,): of the residual's norm, before the next sublayer; None: there is none
    eps: float
    post_weight: Tensor | None = (
        None  # (hidden_size,): of the norm of what is added to the residual; None: as it is
    )

    def __post_init__(self) -> None:
        if self.weight is not None and self.post_weight is not None:
            checks.check_device("post_weight", self.post_weight.device, self.weight.device)

    @cached_property
    def native(self) -> calls.ResidualNormsStruct:
        """The norms as the native library reads them: addresses, valid as long as this object."""
        return calls.ResidualNormsStruct(
            weight=None if self.weight is None else self.weight.data_ptr(),
            post_weight=None if self.post_weight is None else self.post_weight.data_ptr(),
            eps=self.eps,
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that are there, by name."""
        both = {"weight": self.weight, "post_weight": self.post_weight}
        return {name: weight for name, weight in both.items() if weight is not None}


def check_residual_norms(
    hidden: Tensor,
    residual: Tensor,
    norms: ResidualNorms,
    out: Tensor | None,
    device: torch.device = checks.CPU,
) -> None:
    checks.check_matrix("hidden", hidden, device=device)
    checks.check_rows("residual", residual, torch.float32, hidden.shape, device)
    for name, weight in norms.weights.items():
        checks.check_dense(name, weight, hidden.dtype, hidden.shape[1:], device)
    if out is not None:
        checks.check_rows("out", out, hidden.dtype, hidden.shape, device)


def check_rope(
    qkv: Tensor,
    cache_layer: Tensor,
    batch: AttentionBatch,
    layer: AttentionLayer,
    device: torch.device = checks.CPU,
) -> None:
    heads = layer.heads
    checks.check_matrix("qkv", qkv, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim, device)
    _check_batch("qkv", qkv, batch, device)
    checks.check_heads(heads, cache_layer, qkv.dtype, device)
    if batch.rotations.shape[1] != heads.head_dim:
        raise KernelError(
            f"rotations are {batch.rotations.shape[1]} wide, expected head_dim, {heads.head_dim}: [cos | sin]"
        )
    if layer.q_norm is not None and layer.q_norm.dtype is not qkv.dtype:
        raise KernelError(f"q_norm and k_norm are {layer.q_norm.dtype}, expected {qkv.dtype} as qkv is")
    if (
        layer.q_norm is not None and device is not checks.CPU
    ):  # on the CPU, the layer's `native` checks it once
        checks.check_device("q_norm", layer.q_norm.device, device)


def check_attention(
    q: Tensor,
    cache_layer: Tensor,
    batch: AttentionBatch,
    layer: AttentionLayer,
    device: torch.device = checks.CPU,
) -> None:
    checks.check_matrix("q", q, layer.heads.num_heads * layer.heads.head_dim, device)
    _check_batch("q", q, batch, device)
    checks.check_heads(layer.heads, cache_layer, q.dtype, device)


def _check_batch(name: str, rows: Tensor, batch: AttentionBatch, device: torch.device) -> None:
    if rows.shape[0] != batch.num_tokens:
        raise KernelError(f"{name} has {rows.shape[0]} rows, expected {batch.num_tokens}, the batch's tokens")
    if device is not checks.CPU:  # on the CPU, the batch's `native` checks it once
        checks.check_device("the batch", batch.device, device)
