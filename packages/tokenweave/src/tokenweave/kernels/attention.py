"""Causal attention over a paged KV cache (Kwon et al., arXiv 2309.06180)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenweave.kernels import checks
from tokenweave.kernels.base import HeadLayout, Tolerance
from tokenweave.kernels.calls import DTYPE_CODE, group_start_array, row_stride
from tokenweave.kernels.paging import BLOCK_SIZE, blocks_for
from tokenweave.native import Pool, check_status

# bfloat16: the probabilities are rounded to bfloat16 before they weigh V.
TOLERANCE = {torch.float32: Tolerance(1e-4, 2e-5), torch.bfloat16: Tolerance(2e-2, 1e-2)}


def visible_keys(num_queries: int, seq_len: int, sliding_window: int | None) -> Tensor:
    """(num_queries, seq_len) bool: which keys each of the last `num_queries` tokens sees."""
    position = torch.arange(seq_len - num_queries, seq_len).unsqueeze(1)
    key = torch.arange(seq_len).unsqueeze(0)
    causal = key <= position
    return causal if sliding_window is None else causal & (key > position - sliding_window)


def reference_paged_attention(
    q: Tensor,
    cache_layer: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    heads: HeadLayout,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    cache = cache_layer.view(cache_layer.shape[0], 2, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim)
    kv_of_head = torch.tensor(heads.kv_of_head, dtype=torch.long)
    starts = query_start.tolist()
    for s, seq_len in enumerate(seq_lens.tolist()):
        rows, num_queries = slice(starts[s], starts[s + 1]), starts[s + 1] - starts[s]
        blocks = block_tables[s, : blocks_for(seq_len)].long()
        kv = cache[blocks].float().permute(1, 2, 0, 3, 4)  # (2, num_kv_heads, blocks, 16, head_dim)
        keys, values = kv.flatten(2, 3)[:, kv_of_head, :seq_len]  # each (num_heads, seq_len, head_dim)
        queries = q[rows].float().view(num_queries, heads.num_heads, heads.head_dim).transpose(0, 1)
        scores = queries @ keys.transpose(1, 2) * scale
        visible = visible_keys(num_queries, seq_len, sliding_window)
        probabilities = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out[rows] = (probabilities @ values).transpose(0, 1).flatten(1).to(q.dtype)
    return out


def native_paged_attention(
    pool: Pool,
    q: Tensor,
    cache_layer: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    heads: HeadLayout,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """The library checks every block and length before it reads; what was wrong is worked out only then."""
    m = q.shape[0]
    out = torch.empty((m, heads.num_heads * heads.head_dim), dtype=q.dtype)
    status = pool.library.tw_paged_attention(
        pool.handle,
        q.data_ptr(),
        row_stride(q),
        cache_layer.data_ptr(),
        cache_layer.shape[0],
        block_tables.data_ptr(),
        block_tables.shape[1],
        query_start.data_ptr(),
        seq_lens.data_ptr(),
        seq_lens.shape[0],
        m,
        group_start_array(heads),
        heads.num_kv_heads,
        heads.head_dim,
        scale,
        sliding_window or 0,
        out.data_ptr(),
        DTYPE_CODE[q.dtype],
    )
    if status:
        checks.check_native_heads(heads)
        checks.check_sequences(block_tables, query_start, seq_lens, m, cache_layer.shape[0])
        check_status(status, "paged_attention")
    return out
