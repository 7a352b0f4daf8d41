"""Causal attention over a paged KV cache (Kwon et al., arXiv 2309.06180)."""

from __future__ import annotations

from ctypes import byref
from functools import lru_cache

import torch
from torch import Tensor

from tokenweave.kernels import checks
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer
from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.paging import BLOCK_SIZE, blocks_for
from tokenweave.kernels.values import HeadLayout, Tolerance
from tokenweave.native import ThreadPool, check_status

# bfloat16: the probabilities are rounded to bfloat16 before they weigh V.
TOLERANCE = {
    torch.float32: Tolerance(1e-4, 2e-5),
    torch.bfloat16: Tolerance(2e-2, 1e-2),
    torch.float16: Tolerance(2.5e-3, 1.5e-3),
}


def visible_keys(position: Tensor, num_keys: int, sliding_window: int | None) -> Tensor:
    """(num_queries, num_keys) bool: which keys the tokens at `position` (num_queries,) see."""
    position = position.unsqueeze(1)
    key = torch.arange(num_keys, device=position.device).unsqueeze(0)
    causal = key <= position
    return causal if sliding_window is None else causal & (key > position - sliding_window)


def reference_paged_attention(
    q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
) -> Tensor:
    """It reads where the sequences begin, so it makes the host wait for any device but the CPU."""
    out, heads = torch.empty_like(q, memory_format=torch.contiguous_format), layer.heads
    cache = _as_heads(cache_layer, heads)
    kv_of_head = _kv_of_head(heads, q.device)
    starts = batch.query_start.tolist()
    for s, seq_len in enumerate(batch.seq_lens.tolist()):
        rows, num_queries = slice(starts[s], starts[s + 1]), starts[s + 1] - starts[s]
        blocks = batch.block_tables[s, : blocks_for(seq_len)].long()
        kv = cache[blocks].float().permute(1, 2, 0, 3, 4)  # (2, num_kv_heads, blocks, 16, head_dim)
        keys, values = kv.flatten(2, 3)[:, kv_of_head, :seq_len]  # each (num_heads, seq_len, head_dim)
        position = torch.arange(seq_len - num_queries, seq_len, device=q.device)
        out[rows] = _attend(q[rows], keys, values, position, layer)
    return out


def reference_masked_attention(
    q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
) -> Tensor:
    """The same without reading an index on the host, for any device: its shapes depend on those of its arguments alone.

    Every row meets the keys of every sequence, and keeps what it gets of its own. So it costs as many times more as
    there are sequences.
    """
    heads, cache = layer.heads, _as_heads(cache_layer, layer.heads)
    kv_of_head = _kv_of_head(heads, q.device)
    out, row = q.new_zeros(q.shape), torch.arange(len(q), device=q.device)
    num_keys = batch.block_tables.shape[1] * BLOCK_SIZE
    key = torch.arange(num_keys, device=q.device)
    for s in range(len(batch.seq_lens)):
        first, end, seq_len = batch.query_start[s], batch.query_start[s + 1], batch.seq_lens[s]
        kv = cache[batch.block_tables[s].long()].float().permute(1, 2, 0, 3, 4)
        keys, values = kv.flatten(2, 3)[:, kv_of_head]
        values = values.masked_fill((key >= seq_len).unsqueeze(1), 0.0)  # whatever is there, times nothing
        attended = _attend(q, keys, values, row - end + seq_len, layer)
        out = torch.where(((row >= first) & (row < end)).unsqueeze(1), attended, out)
    return out


def _as_heads(cache_layer: Tensor, heads: HeadLayout) -> Tensor:
    return cache_layer.view(cache_layer.shape[0], 2, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim)


@lru_cache(maxsize=64)
def _kv_of_head(heads: HeadLayout, device: torch.device) -> Tensor:
    """`heads.kv_of_head` as an index on `device`. Kept: to bring it there, the host waits for the device."""
    return torch.tensor(heads.kv_of_head, dtype=torch.long, device=device)


def _attend(q: Tensor, keys: Tensor, values: Tensor, position: Tensor, layer: AttentionLayer) -> Tensor:
    """Attention of q (m, num_heads * head_dim), tokens at `position`, over keys and values (num_heads, n, head_dim)."""
    queries = q.float().view(len(q), layer.heads.num_heads, layer.heads.head_dim).transpose(0, 1)
    scores = queries @ keys.transpose(1, 2) * layer.scale
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    visible = visible_keys(position, keys.shape[1], layer.sliding_window)
    probabilities = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return (probabilities @ values).transpose(0, 1).flatten(1).to(q.dtype)


def native_paged_attention(
    pool: ThreadPool, q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
) -> Tensor:
    """The library checks every block and length before it reads; what was wrong is worked out only then."""
    heads = layer.heads
    out = torch.empty((q.shape[0], heads.num_heads * heads.head_dim), dtype=q.dtype)
    status = pool.library.tw_paged_attention(
        pool.handle,
        q.data_ptr(),
        row_stride(q),
        cache_layer.data_ptr(),
        cache_layer.shape[0],
        byref(batch.native),
        byref(layer.native),
        out.data_ptr(),
        DTYPE_CODE[q.dtype],
    )
    if status:
        checks.check_native_heads(heads)
        batch.check_indices(cache_layer.shape[0])
        check_status(status, "paged_attention")
    return out
