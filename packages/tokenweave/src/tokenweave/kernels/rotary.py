"""Rotary position embedding (Su et al., arXiv 2104.09864), and the write of K and V into the cache."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from tokenweave.kernels import checks
from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer
from tokenweave.kernels.calls import DTYPE_CODE, row_stride
from tokenweave.kernels.norms import reference_rms_norm
from tokenweave.kernels.paging import BLOCK_SIZE, place_of
from tokenweave.kernels.values import Tolerance
from tokenweave.native import ThreadPool, check_status

TOLERANCE = {
    torch.float32: Tolerance(1e-5, 1e-5),
    torch.bfloat16: Tolerance(1.6e-2, 1e-3),
    torch.float16: Tolerance(2e-3, 2e-4),
}


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """x (m, heads, d) float32 rotated by the angles of cos_sin (m, d) = [cos | sin]."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def reference_rope_and_store(
    qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
) -> Tensor:
    """Its block layout is plain: (16 tokens, head_dim) for K and for V."""
    heads = layer.heads
    num_tokens, d, kv_size = qkv.shape[0], heads.head_dim, heads.num_kv_heads * heads.head_dim
    sections = torch.split(qkv.float(), [heads.num_heads * d, kv_size, kv_size], dim=-1)
    q, k, v = (section.reshape(num_tokens, section.shape[1] // d, d) for section in sections)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = reference_rms_norm(q, layer.q_norm, layer.norm_eps)
        k = reference_rms_norm(k, layer.k_norm, layer.norm_eps)
    angles = batch.rotations[batch.rotation_rows.long()]
    cache = cache_layer.view(cache_layer.shape[0], 2, heads.num_kv_heads, BLOCK_SIZE, d)
    block, offset = place_of(batch.slots.long())
    cache[block, 0, :, offset] = rotate(k, angles).to(qkv.dtype)
    cache[block, 1, :, offset] = v.to(qkv.dtype)
    return rotate(q, angles).to(qkv.dtype).reshape(num_tokens, heads.num_heads * d)


def native_rope_and_store(
    pool: ThreadPool, qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer
) -> Tensor:
    """The library checks every row and slot before it writes; what was wrong is worked out only then."""
    heads = layer.heads
    q = torch.empty((qkv.shape[0], heads.num_heads * heads.head_dim), dtype=qkv.dtype)
    status = pool.library.tw_rope_and_store(
        pool.handle,
        qkv.data_ptr(),
        row_stride(qkv),
        cache_layer.data_ptr(),
        cache_layer.shape[0],
        byref(batch.native),
        byref(layer.native),
        q.data_ptr(),
        DTYPE_CODE[qkv.dtype],
    )
    if status:
        checks.check_native_heads(heads)
        batch.check_indices(cache_layer.shape[0])
        check_status(status, "rope_and_store")
    return q
