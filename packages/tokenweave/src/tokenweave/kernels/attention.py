"""Causal attention over a paged KV cache (Kwon et al., arXiv 2309.06180)."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from tokenweave.kernels import checks
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer
from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.paging import BLOCK_SIZE, blocks_for
from tokenweave.kernels.values import Tolerance
from tokenweave.native import ThreadPool, check_status

# bfloat16: the probabilities are rounded to bfloat16 before they weigh V.
TOLERANCE = {torch.float32: Tolerance(1e-4, 2e-5), torch.bfloat16: Tolerance(2e-2, 1e-2)}


def visible_keys(num_queries: int, seq_len: int, sliding_window: int | None) -> Tensor:
    """(num_queries, seq_len) bool: which keys each of the last `num_queries` tokens sees."""
    position = torch.arange(seq_len - num_queries, seq_len).unsqueeze(1)
    key = torch.arange(seq_len).unsqueeze(0)
    causal = key <= position
    return causal if sliding_window is None else causal & (key > position - sliding_window)


def reference_paged_attention(
    q: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
) -> Tensor:
    out, heads = torch.empty_like(q, memory_format=torch.contiguous_format), layer.heads
    cache = cache_layer.view(cache_layer.shape[0], 2, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim)
    kv_of_head = torch.tensor(heads.kv_of_head, dtype=torch.long)
    starts = batch.query_start.tolist()
    for s, seq_len in enumerate(batch.seq_lens.tolist()):
        rows, num_queries = slice(starts[s], starts[s + 1]), starts[s + 1] - starts[s]
        blocks = batch.block_tables[s, : blocks_for(seq_len)].long()
        kv = cache[blocks].float().permute(1, 2, 0, 3, 4)  # (2, num_kv_heads, blocks, 16, head_dim)
        keys, values = kv.flatten(2, 3)[:, kv_of_head, :seq_len]  # each (num_heads, seq_len, head_dim)
        queries = q[rows].float().view(num_queries, heads.num_heads, heads.head_dim).transpose(0, 1)
        scores = queries @ keys.transpose(1, 2) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        visible = visible_keys(num_queries, seq_len, layer.sliding_window)
        probabilities = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out[rows] = (probabilities @ values).transpose(0, 1).flatten(1).to(q.dtype)
    return out


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
