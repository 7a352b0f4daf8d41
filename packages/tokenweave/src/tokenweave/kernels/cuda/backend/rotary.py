"""Rotary position embedding, with the norms of heads before it, and the write of K and V into the cache.

A row is one head of one token, of q, k or v; a program takes some rows that follow each other in qkv.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer
from tokenweave.kernels.calls import row_stride
from tokenweave.kernels.cuda.backend.rounding import rounded
from tokenweave.kernels.cuda.backend.start import start
from tokenweave.kernels.paging import BLOCK_SIZE
from tokenweave.kernels.values import HeadLayout

ROWS = 32  # of a program
WARPS = 4


def rope_and_store(
    qkv: Tensor, cache_layer: Tensor, batch: AttentionBatch, layer: AttentionLayer, device: torch.device
) -> Tensor:
    """Returns q, (m, num_heads * head_dim).

    A token whose slot lies outside the cache is not stored: -1 is for tokens that only fill a batch up. One whose row
    of the rotations is not there gets zeros as q, and as the k that is stored.
    """
    heads, m = layer.heads, qkv.shape[0]
    q = torch.empty((m, heads.num_heads * heads.head_dim), dtype=qkv.dtype, device=device)
    num_rows = m * (heads.num_heads + 2 * heads.num_kv_heads)
    start(
        rotate_rows,
        (triton.cdiv(num_rows, ROWS),),
        device,
        qkv,
        q,
        cache_layer,
        batch.rotations,
        batch.rotation_rows,
        batch.slots,
        qkv if layer.q_norm is None else layer.q_norm,
        qkv if layer.k_norm is None else layer.k_norm,
        m,
        len(batch.rotations),
        cache_layer.shape[0] * BLOCK_SIZE,
        row_stride(qkv),
        layer.norm_eps,
        HAS_NORMS=layer.q_norm is not None,
        **rope_options(heads),
    )
    return q


def rope_options(heads: HeadLayout) -> dict[str, Any]:
    return {
        "NUM_HEADS": heads.num_heads,
        "KV_HEADS": heads.num_kv_heads,
        "HEAD_DIM": heads.head_dim,
        "HALF_WIDTH": triton.next_power_of_2(heads.head_dim // 2),
        "BLOCK": BLOCK_SIZE,
        "ROWS": ROWS,
        "num_warps": WARPS,
        "enable_fp_fusion": True,
    }


@triton.jit(do_not_specialize=["num_tokens", "num_rotations", "num_slots"])
def rotate_rows(
    qkv,  # (num_tokens, (NUM_HEADS + 2 * KV_HEADS) * HEAD_DIM), rows `stride` apart
    q,  # (num_tokens, NUM_HEADS * HEAD_DIM)
    cache,  # (num_slots / BLOCK, 2, KV_HEADS, BLOCK, HEAD_DIM)
    rotations,  # *float32 (num_rotations, HEAD_DIM)
    rotation_rows,  # *int32 (num_tokens,)
    slots,  # *int32 (num_tokens,)
    q_norm,  # (HEAD_DIM,), read if HAS_NORMS
    k_norm,  # (HEAD_DIM,), read if HAS_NORMS
    num_tokens,
    num_rotations,
    num_slots,
    stride,
    eps,
    HAS_NORMS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_WIDTH: tl.constexpr,  # of half a head, widened to a power of two
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = (row // (NUM_HEADS + 2 * KV_HEADS)).to(tl.int64)
    head = row % (NUM_HEADS + 2 * KV_HEADS)
    is_row = token < num_tokens
    is_q = head < NUM_HEADS
    is_v = head >= NUM_HEADS + KV_HEADS
    half = tl.arange(0, HALF_WIDTH)[None, :]
    is_value = is_row[:, None] & (half < HEAD_DIM // 2)

    source = qkv + (token * stride + head * HEAD_DIM)[:, None] + half
    first = tl.load(source, mask=is_value, other=0.0).to(tl.float32)
    second = tl.load(source + HEAD_DIM // 2, mask=is_value, other=0.0).to(tl.float32)
    left, right = first, second
    if HAS_NORMS:
        scale = tl.rsqrt(tl.sum(first * first + second * second, 1) / HEAD_DIM + eps)[:, None]
        is_half = half < HEAD_DIM // 2
        left = left * scale * norm_weight(q_norm, k_norm, half, is_half, is_q)
        right = right * scale * norm_weight(q_norm, k_norm, half + HEAD_DIM // 2, is_half, is_q)

    rotation = tl.load(rotation_rows + token, mask=is_row, other=-1)
    turns = ((rotation >= 0) & (rotation < num_rotations) & (head < NUM_HEADS + KV_HEADS))[:, None] & is_value
    angles = rotations + (rotation.to(tl.int64) * HEAD_DIM)[:, None] + half
    cos = tl.load(angles, mask=turns, other=0.0)
    sin = tl.load(angles + HEAD_DIM // 2, mask=turns, other=0.0)
    turned_left = tl.where(is_v[:, None], first, left * cos - right * sin)
    turned_right = tl.where(is_v[:, None], second, right * cos + left * sin)

    place = q + (token * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM)[:, None] + half
    goes_on = is_q[:, None] & is_value
    tl.store(place, rounded(turned_left, q.dtype.element_ty), mask=goes_on)
    tl.store(place + HEAD_DIM // 2, rounded(turned_right, q.dtype.element_ty), mask=goes_on)

    slot = tl.load(slots + token, mask=is_row, other=-1)
    is_kept = ((slot >= 0) & (slot < num_slots) & (head >= NUM_HEADS))[:, None] & is_value
    block = (slot // BLOCK).to(tl.int64)
    kept_head = block * (2 * KV_HEADS) + head - NUM_HEADS  # a block's heads of k, then those of v, as in qkv
    place = cache + (kept_head * (BLOCK * HEAD_DIM) + slot % BLOCK * HEAD_DIM)[:, None] + half
    tl.store(place, rounded(turned_left, cache.dtype.element_ty), mask=is_kept)
    tl.store(place + HEAD_DIM // 2, rounded(turned_right, cache.dtype.element_ty), mask=is_kept)


@triton.jit
def norm_weight(q_norm, k_norm, columns, is_column, is_q):
    """The norm's weight of each row's head, (ROWS, HALF_WIDTH)."""
    of_q = tl.load(q_norm + columns, mask=is_column, other=0.0).to(tl.float32)
    of_k = tl.load(k_norm + columns, mask=is_column, other=0.0).to(tl.float32)
    return tl.where(is_q[:, None], of_q, of_k)
