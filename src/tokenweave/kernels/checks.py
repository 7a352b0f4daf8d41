"""What the kernels accept: cheap checks whose errors say what was got and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.kernels.base import BLOCK_SIZE, DTYPES, HeadLayout, PackedLinear


def check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise KernelError(f"{name} is {dtype}, expected torch.float32 or torch.bfloat16; convert it first")


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    """Raises unless `tensor` is on the CPU, of `dtype` and `shape` (None: any), with contiguous rows.

    Only the first of two dimensions may be strided: rows of a wider matrix are accepted.
    """
    got = tensor.shape
    if len(got) != len(shape) or any(
        want is not None and want != size for want, size in zip(shape, got, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelError(f"{name} has shape {tuple(got)}, expected ({wanted})")
    if tensor.dtype != dtype:
        raise KernelError(f"{name} is {tensor.dtype}, expected {dtype}")
    if tensor.device.type != "cpu":
        raise KernelError(f"{name} is on {tensor.device}, expected the CPU")
    if tensor.is_contiguous():
        return
    if len(got) != 2 or (tensor.stride(1) != 1 and got[1] > 1) or tensor.stride(0) < got[1]:
        raise KernelError(
            f"{name} has strides {tensor.stride()}, expected contiguous rows; call .contiguous() first"
        )


def check_dense(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    """As `check_tensor`, and wholly contiguous."""
    check_tensor(name, tensor, dtype, *shape)
    if not tensor.is_contiguous():
        raise KernelError(
            f"{name} has strides {tensor.stride()}, expected contiguous; call .contiguous() first"
        )


def check_pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
    check_dtype("weight", weight.dtype)
    check_dtype("dtype", dtype)
    check_tensor("weight", weight, weight.dtype, None, None)
    if bias is not None:
        check_dtype("bias", bias.dtype)
        check_dense("bias", bias, bias.dtype, weight.shape[0])


def check_layout(packed: PackedLinear, layout: str) -> None:
    if packed.layout != layout:
        raise KernelError(
            f"weight is packed as {packed.layout!r}, expected {layout!r}; pack it with these kernels"
        )


def check_linear(x: Tensor, packed: PackedLinear, out: Tensor | None, layout: str) -> None:
    check_layout(packed, layout)
    check_tensor("x", x, packed.dtype, None, packed.k)
    if out is not None:
        check_dtype("out", out.dtype)
        expected = torch.float32 if out.dtype == torch.float32 else x.dtype
        check_tensor("out", out, expected, x.shape[0], packed.n)


def check_norm(x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor | None) -> None:
    check_dtype("x", x.dtype)
    check_tensor("x", x, x.dtype, None, None)
    check_dense("weight", weight, x.dtype, x.shape[1])
    if residual is not None:
        check_tensor("residual", residual, x.dtype, *x.shape)
    if out is not None:
        check_tensor("out", out, x.dtype, *x.shape)


def check_gate_up(gate_up: Tensor) -> None:
    check_dtype("gate_up", gate_up.dtype)
    check_tensor("gate_up", gate_up, gate_up.dtype, None, None)
    if gate_up.shape[1] % 2:
        raise KernelError(f"gate_up has {gate_up.shape[1]} columns, expected an even number, [gate | up]")


def check_heads(heads: HeadLayout, cache_layer: Tensor, dtype: torch.dtype) -> None:
    check_dense("cache_layer", cache_layer, dtype, None, 2, heads.num_kv_heads, BLOCK_SIZE * heads.head_dim)


def check_native_heads(heads: HeadLayout) -> None:
    if heads.head_dim % 16:
        raise KernelError(f'head_dim is {heads.head_dim}, expected a multiple of 16; use kernels="reference"')


def check_rope(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    cache_layer: Tensor,
    heads: HeadLayout,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
) -> None:
    check_dtype("qkv", qkv.dtype)
    check_tensor("qkv", qkv, qkv.dtype, None, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim)
    check_dense("positions", positions, torch.int32, qkv.shape[0])
    check_dense("slots", slots, torch.int32, qkv.shape[0])
    check_dense("cos_sin", cos_sin, torch.float32, None, heads.head_dim)
    check_heads(heads, cache_layer, qkv.dtype)
    if (q_norm is None) != (k_norm is None):
        raise KernelError("q_norm and k_norm go together; got only one of them")
    if q_norm is not None and k_norm is not None:
        check_dense("q_norm", q_norm, qkv.dtype, heads.head_dim)
        check_dense("k_norm", k_norm, qkv.dtype, heads.head_dim)


def check_attention(
    q: Tensor,
    cache_layer: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    heads: HeadLayout,
    scale: float,
    sliding_window: int | None,
) -> None:
    check_dtype("q", q.dtype)
    check_tensor("q", q, q.dtype, None, heads.num_heads * heads.head_dim)
    check_heads(heads, cache_layer, q.dtype)
    num_seqs = seq_lens.shape[0] if seq_lens.dim() else 0
    check_dense("seq_lens", seq_lens, torch.int32, None)
    check_dense("query_start", query_start, torch.int32, num_seqs + 1)
    check_dense("block_tables", block_tables, torch.int32, num_seqs, None)
    if not scale > 0:
        raise KernelError(f"scale is {scale}, expected more than 0")
    if sliding_window is not None and sliding_window < 1:
        raise KernelError(f"sliding_window is {sliding_window}, expected at least 1, or None for no window")


def check_rope_indices(positions: Tensor, slots: Tensor, num_positions: int, num_slots: int) -> None:
    """Raises unless every position has its row of cos_sin and every slot lies in the cache."""
    for name, index, size in (("positions", positions, num_positions), ("slots", slots, num_slots)):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise KernelError(f"{name} span {int(index.min())}..{int(index.max())}, expected 0..{size - 1}")


def check_sequences(
    block_tables: Tensor, query_start: Tensor, seq_lens: Tensor, num_rows: int, num_blocks: int
) -> None:
    """Raises unless the sequences own all rows in order and every key lies in a block of the cache."""
    starts, lens = query_start.tolist(), seq_lens.tolist()
    if starts[0] != 0 or starts[-1] != num_rows or starts != sorted(starts):
        raise KernelError(f"query_start is {starts}, expected to rise from 0 to the {num_rows} rows of q")
    for s, (first, last, length) in enumerate(zip(starts[:-1], starts[1:], lens, strict=True)):
        if length < last - first or length > block_tables.shape[1] * BLOCK_SIZE:
            raise KernelError(
                f"sequence {s} has {length} keys, expected at least its {last - first} new tokens "
                f"and at most the {block_tables.shape[1] * BLOCK_SIZE} slots of its block table"
            )
        used = block_tables[s, : -(-length // BLOCK_SIZE)]
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < num_blocks:
            raise KernelError(
                f"block table of sequence {s} names blocks {int(used.min())}..{int(used.max())}, "
                f"expected 0..{num_blocks - 1}"
            )
