"""Causal attention over a paged cache; `steps` has its parts and its invariants.

A program for each tile and KV head takes the partitions of the keys in turn. Where these are too few programs for the
device, as when few sequences decode, several programs share a tile's partitions and leave what they make of each in
memory, where `join_partitions` finds it. Both ways give the same bits.

Grids and sizes follow from shapes alone: the host reads no index, so a CUDA graph can capture a call, once the kernels
were compiled by an earlier one and the layout of the heads is on the device (`CudaKernels.new_kv_cache` sees to it).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.arguments import AttentionBatch, AttentionLayer
from tokenweave.kernels.calls import row_stride
from tokenweave.kernels.cuda.backend.rounding import rounded
from tokenweave.kernels.cuda.backend.start import start
from tokenweave.kernels.cuda.backend.steps import (
    NOTHING,
    attend_keys,
    find_sequence,
    join,
    load_tile,
    outputs_of,
)
from tokenweave.kernels.paging import BLOCK_SIZE
from tokenweave.kernels.values import HeadLayout

PARTITION_KEYS = (
    256  # about 10 us of one SM of an H100, at heads of 128 in bfloat16 and its share of the bandwidth
)
PROGRAMS_PER_SM = 2  # up to which partitions are shared
MAX_PARTS_BYTES = 128 << 20  # of what the programs that share partitions leave for each other
LOADS_AHEAD = 8  # partitions that `join_partitions` reads at a time
LOG2_E = 1 / math.log(2)


def paged_attention(
    q: Tensor,
    cache_layer: Tensor,
    batch: AttentionBatch,
    layer: AttentionLayer,
    device: torch.device,
    num_sms: int,
) -> Tensor:
    """(m, num_heads * head_dim). Keys in blocks that the cache does not have count as zeros.

    A sequence has no more keys than its block table has slots for, whatever its length says. What is returned for a
    token of no sequence is whatever was in memory there.
    """
    heads, num_tokens, num_seqs = layer.heads, q.shape[0], batch.seq_lens.shape[0]
    out = torch.empty((num_tokens, heads.num_heads * heads.head_dim), dtype=q.dtype, device=device)
    if not num_tokens or not num_seqs or not heads.num_heads:
        return out
    options = attention_options(heads, q.dtype)
    max_group = max(end - first for first, end in pairwise(heads.group_start))
    num_tiles = num_tokens * max_group // options["ROWS"] + num_seqs
    max_blocks = batch.block_tables.shape[1]
    num_partitions = -(-max_blocks * BLOCK_SIZE // PARTITION_KEYS)
    sharing = sharing_programs(heads, num_tokens, num_tiles, num_partitions, num_sms)
    parts = (num_tokens * heads.num_heads, num_partitions) if sharing > 1 else (0, 0)
    states = torch.empty((*parts, 2), dtype=torch.float32, device=device)
    sums = torch.empty((*parts, heads.head_dim), dtype=torch.float32, device=device)
    scale, cap = score_units(layer)
    window = layer.sliding_window or 0
    start(
        attend,
        (num_tiles, heads.num_kv_heads, sharing),
        device,
        q,
        cache_layer,
        out,
        states,
        sums,
        batch.block_tables,
        batch.query_start,
        batch.seq_lens,
        group_start_on(heads, device),
        num_seqs,
        num_tokens,
        max_blocks,
        cache_layer.shape[0],
        num_partitions,
        row_stride(q),
        scale,
        cap,
        window,
        HAS_WINDOW=layer.sliding_window is not None,
        HAS_CAP=layer.softcap is not None,
        IS_SHARED=sharing > 1,
        **options,
    )
    if sharing > 1:
        start(
            join_partitions,
            (num_tokens, heads.num_heads),
            device,
            states,
            sums,
            out,
            batch.query_start,
            batch.seq_lens,
            num_seqs,
            max_blocks,
            num_partitions,
            window,
            HAS_WINDOW=layer.sliding_window is not None,
            **join_options(heads, q.dtype),
        )
    return out


def sharing_programs(
    heads: HeadLayout, num_tokens: int, num_tiles: int, num_partitions: int, num_sms: int
) -> int:
    """How many programs share the partitions of a tile. One: nothing is left for others."""
    parts_bytes = num_tokens * heads.num_heads * num_partitions * (heads.head_dim + 2) * 4
    if parts_bytes > MAX_PARTS_BYTES:
        return 1
    return max(1, min(num_partitions, PROGRAMS_PER_SM * num_sms // (num_tiles * heads.num_kv_heads)))


def score_units(layer: AttentionLayer) -> tuple[float, float]:
    """`scale` and `cap` of `steps.scores_of`."""
    if layer.softcap is None:
        return layer.scale * LOG2_E, 0.0
    return 2 * LOG2_E * layer.scale / layer.softcap, layer.softcap * LOG2_E


@lru_cache(maxsize=64)
def group_start_on(heads: HeadLayout, device: torch.device) -> Tensor:
    """`heads.group_start` on `device`. Kept: to bring it there, the host waits for the device."""
    return torch.tensor(heads.group_start, dtype=torch.int32, device=device)


def attention_options(heads: HeadLayout, dtype: torch.dtype) -> dict[str, Any]:
    """How `attend` is compiled. Heads and dtype alone decide it, so that bits depend on nothing else."""
    width = max(16, triton.next_power_of_2(heads.head_dim))  # a product of matrices takes 16 at least
    shape: dict[str, Any]
    if dtype is torch.float32:
        shape = {"ROWS": 16, "STEP_KEYS": 32, "num_warps": 4}
    elif width <= 128:
        shape = {"ROWS": 64, "STEP_KEYS": 64, "num_warps": 4 if width <= 64 else 8}
    else:
        shape = {"ROWS": 32, "STEP_KEYS": 32, "num_warps": 8}
    return {
        "NUM_HEADS": heads.num_heads,
        "KV_HEADS": heads.num_kv_heads,
        "HEAD_DIM": heads.head_dim,
        "WIDTH": width,
        "BLOCK": BLOCK_SIZE,
        "PARTITION_KEYS": PARTITION_KEYS,
        "PRECISION": "tf32x3" if dtype is torch.float32 else "ieee",
        **shape,
        "num_stages": 2,
        "enable_fp_fusion": False,
    }


def join_options(heads: HeadLayout, dtype: torch.dtype) -> dict[str, Any]:
    same = ("NUM_HEADS", "HEAD_DIM", "WIDTH", "BLOCK", "PARTITION_KEYS")
    options = attention_options(heads, dtype)
    return {name: options[name] for name in same} | {
        "LOADS_AHEAD": LOADS_AHEAD,
        "num_warps": 1,
        "enable_fp_fusion": False,
    }


@triton.jit(
    do_not_specialize=["num_seqs", "num_tokens", "max_blocks", "num_blocks", "num_partitions", "window"]
)
def attend(
    q,  # (num_tokens, NUM_HEADS * HEAD_DIM), rows `q_stride` apart
    cache,  # (num_blocks, 2, KV_HEADS, BLOCK, HEAD_DIM)
    out,  # (num_tokens, NUM_HEADS * HEAD_DIM), written unless IS_SHARED
    states,  # *float32 (rows, num_partitions, 2): largest score and sum of weights; written if IS_SHARED
    sums,  # *float32 (rows, num_partitions, HEAD_DIM), likewise; a row is a token and a head, num_tokens * NUM_HEADS
    block_tables,  # *int32 (num_seqs, max_blocks)
    query_start,  # *int32 (num_seqs + 1,)
    seq_lens,  # *int32 (num_seqs,)
    group_start,  # *int32 (KV_HEADS + 1,)
    num_seqs,
    num_tokens,
    max_blocks,
    num_blocks,
    num_partitions,
    q_stride,
    scale,
    cap,
    window,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    IS_SHARED: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # HEAD_DIM, widened to a power of two
    BLOCK: tl.constexpr,
    PARTITION_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    STEP_KEYS: tl.constexpr,
):
    sequence, length, lowest, token, head, position, is_row = load_tile(
        query_start, seq_lens, group_start, num_seqs, num_tokens, ROWS
    )
    columns = tl.arange(0, WIDTH)
    is_value = is_row[:, None] & (columns < HEAD_DIM)[None, :]
    source = q + (token * q_stride + head * HEAD_DIM)[:, None] + columns[None, :]
    queries = tl.load(source, mask=is_value, other=0.0)
    table = block_tables + sequence.to(tl.int64) * max_blocks
    last_key = tl.minimum(tl.max(position, 0) + 1, tl.minimum(length, max_blocks * BLOCK))
    first = tl.program_id(2)
    if HAS_WINDOW:
        first += tl.maximum(lowest - window + 1, 0) // PARTITION_KEYS
    last = (last_key + PARTITION_KEYS - 1) // PARTITION_KEYS
    best = tl.full((ROWS,), NOTHING, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, WIDTH), tl.float32)
    for partition in range(first, last, tl.num_programs(2)):
        part_best, part_total, part_summed = attend_keys(
            queries,
            cache,
            table,
            partition * PARTITION_KEYS,
            tl.minimum(partition * PARTITION_KEYS + PARTITION_KEYS, last_key),
            position,
            num_blocks,
            scale,
            cap,
            window,
            KV_HEADS,
            HEAD_DIM,
            WIDTH,
            BLOCK,
            ROWS,
            STEP_KEYS,
            HAS_WINDOW,
            HAS_CAP,
            PRECISION,
        )
        if IS_SHARED:
            part = (token * NUM_HEADS + head) * num_partitions + partition
            tl.store(states + part * 2, part_best, mask=is_row)
            tl.store(states + part * 2 + 1, part_total, mask=is_row)
            tl.store(sums + (part * HEAD_DIM)[:, None] + columns[None, :], part_summed, mask=is_value)
        else:
            best, total, summed = join(best, total, summed, part_best, part_total, part_summed)
    if not IS_SHARED:
        place = out + (token * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM)[:, None] + columns[None, :]
        tl.store(place, rounded(outputs_of(total, summed), out.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["num_seqs", "max_blocks", "num_partitions", "window"])
def join_partitions(
    states,
    sums,
    out,
    query_start,
    seq_lens,
    num_seqs,
    max_blocks,
    num_partitions,
    window,
    HAS_WINDOW: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTITION_KEYS: tl.constexpr,
    LOADS_AHEAD: tl.constexpr,
):
    """A program for each row. It reads the partitions that the row sees: those its tile's programs have written."""
    token = tl.program_id(0)
    sequence, begin = find_sequence(query_start, num_seqs, token, 1, 1, 0)
    end = tl.load(query_start + sequence + 1)
    length = tl.load(seq_lens + sequence)
    is_row = (token >= begin) & (token < end)
    position = tl.where(is_row, length - end + token, -1)
    last_key = tl.minimum(position + 1, tl.minimum(length, max_blocks * BLOCK))
    last = (last_key + PARTITION_KEYS - 1) // PARTITION_KEYS
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(position - window + 1, 0) // PARTITION_KEYS
    columns = tl.arange(0, WIDTH)[None, :]
    is_column = columns < HEAD_DIM
    row = token.to(tl.int64) * NUM_HEADS + tl.program_id(1)
    one = tl.arange(0, 1)
    best = tl.full((1,), NOTHING, tl.float32)
    total = tl.zeros((1,), tl.float32)
    summed = tl.zeros((1, WIDTH), tl.float32)
    for ahead in range(first, last, LOADS_AHEAD):
        for offset in tl.static_range(LOADS_AHEAD):
            partition = ahead + offset + one
            part = row * num_partitions + partition
            is_part = partition < last
            part_best = tl.load(states + part * 2, mask=is_part, other=NOTHING)
            part_total = tl.load(states + part * 2 + 1, mask=is_part, other=0.0)
            source = sums + (part * HEAD_DIM)[:, None] + columns
            part_summed = tl.load(source, mask=is_part[:, None] & is_column, other=0.0)
            best, total, summed = join(best, total, summed, part_best, part_total, part_summed)
    place = out + row * HEAD_DIM + columns
    num_owned = tl.where(is_row, HEAD_DIM, 0)
    tl.store(place, rounded(outputs_of(total, summed), out.dtype.element_ty), mask=columns < num_owned)
