"""The parts of attention over a paged cache: which rows a program has, what they make of some keys, how two parts join.

A *row* is a new token and one query head. A *tile* is `ROWS` rows of one sequence and one KV head, whose keys they
share. A sequence's rows are numbered with its tokens outside and the heads of the group inside, so groups of any size
fill tiles. Keys come in *partitions* of `PARTITION_KEYS`, counted from key 0 on, and partitions in steps of
`STEP_KEYS`. Within a partition the softmax is taken online (FlashAttention, arXiv 2205.14135); partitions are joined in
order.

Invariants, of values that are finite:
  1. A row's bits depend on its query and its keys alone: not on its tile, on the batch, or on which programs take its
     partitions. Steps and partitions begin at fixed keys, tiles have one shape, and a step or a partition of which a
     row sees nothing leaves the row as it is, but for the sign of a zero. An output has no such sign.
  2. No address is made of an index that was not compared with the size of what it indexes. Keys in blocks that the
     cache does not have count as zeros. Rows of tokens that q does not have are neither read nor written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.backend.rounding import INTERPRETED, rounded

NOTHING = tl.constexpr(float("-inf"))  # the score of a key that is not seen


@triton.jit
def find_sequence(query_start, num_seqs, at, group, ROWS: tl.constexpr, SPARE: tl.constexpr):
    """The sequence that has tile `at`, and its first tile, `query_start[s] * group // ROWS + s * SPARE`.

    With one to spare a sequence has as many tiles as it needs or one more, and no sum over the others is taken. With
    one row in a tile and none to spare, tiles are tokens.
    """
    low = tl.cast(0, tl.int32)
    high = num_seqs - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(query_start + middle) * group // ROWS + middle * SPARE <= at:
            low = middle
        else:
            high = middle - 1
    return low, tl.load(query_start + low) * group // ROWS + low * SPARE


@triton.jit
def load_tile(query_start, seq_lens, group_start, num_seqs, num_tokens, ROWS: tl.constexpr):
    """This program's sequence, how many keys it has, and the position of the first row; each row's token, head and
    position, and whether there is one. Without a row, the position is -1, which sees no key.
    """
    kv = tl.program_id(1)
    first_head = tl.load(group_start + kv)
    group = tl.load(group_start + kv + 1) - first_head
    width = tl.maximum(group, 1)
    sequence, first_tile = find_sequence(query_start, num_seqs, tl.program_id(0), group, ROWS, 1)
    begin = tl.load(query_start + sequence)
    count = tl.load(query_start + sequence + 1) - begin
    length = tl.load(seq_lens + sequence)
    first_row = (tl.program_id(0) - first_tile) * ROWS
    row = first_row + tl.arange(0, ROWS)
    token = begin + row // width
    is_row = (row < count * group) & (token >= 0) & (token < num_tokens)
    position = tl.where(is_row, length - count + row // width, -1)
    lowest = length - count + first_row // width
    return sequence, length, lowest, token.to(tl.int64), first_head + row % width, position, is_row


@triton.jit
def multiply(a, b, added, PRECISION: tl.constexpr):
    if INTERPRETED:  # its numpy has no bfloat16, and would multiply the bits as integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), added)
    else:
        return tl.dot(a, b, added, input_precision=PRECISION)


@triton.jit
def scores_of(dots, scale, cap, HAS_CAP: tl.constexpr):
    """Scores times log2(e), for exp2: `scale` and `cap` have it in them, and with a cap `scale` is twice tanh's."""
    if HAS_CAP:
        small = tl.exp2(-tl.abs(dots * scale))
        size = cap * ((1.0 - small) / (1.0 + small))
        return tl.where(dots < 0, -size, size)
    else:
        return dots * scale


@triton.jit
def attend_keys(
    queries,  # (ROWS, WIDTH)
    cache,
    table,  # *int32: the blocks of the sequence
    first_key,
    last_key,
    position,  # (ROWS,)
    num_blocks,
    scale,
    cap,
    window,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STEP_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of keys first_key:last_key, each row's largest score, sum of weights, and weighted sum of values."""
    columns = tl.arange(0, WIDTH)
    best = tl.full((ROWS,), NOTHING, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, WIDTH), tl.float32)
    for begin in range(first_key, last_key, STEP_KEYS):
        key = begin + tl.arange(0, STEP_KEYS)
        block = tl.load(table + key // BLOCK, mask=key < last_key, other=-1)
        is_key = (block >= 0) & (block < num_blocks)
        kept_head = block.to(tl.int64) * (2 * KV_HEADS) + tl.program_id(1)
        place = kept_head * (BLOCK * HEAD_DIM) + key % BLOCK * HEAD_DIM
        is_value = is_key[:, None] & (columns < HEAD_DIM)[None, :]
        source = cache + place[:, None] + columns[None, :]
        keys = tl.load(source, mask=is_value, other=0.0)
        nothing = tl.zeros((ROWS, STEP_KEYS), tl.float32)
        scores = scores_of(multiply(queries, tl.trans(keys), nothing, PRECISION), scale, cap, HAS_CAP)
        sees = (key[None, :] <= position[:, None]) & (key < last_key)[None, :]
        if HAS_WINDOW:
            sees = sees & (key[None, :] > position[:, None] - window)
        scores = tl.where(sees, scores, NOTHING)
        now = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(now == NOTHING, 0.0, now)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(best - base)
        values = tl.load(source + KV_HEADS * BLOCK * HEAD_DIM, mask=is_value, other=0.0)
        total = tl.fma(total, fade, tl.sum(weights, 1))
        summed = multiply(rounded(weights, values.dtype), values, summed * fade[:, None], PRECISION)
        best = now
    return best, total, summed


@triton.jit
def join(best, total, summed, other_best, other_total, other_summed):
    """Two parts as one. What is fused is fused by name, so that no compiler chooses which product it rounds."""
    now = tl.maximum(best, other_best)
    base = tl.where(now == NOTHING, 0.0, now)
    fade = tl.exp2(best - base)
    grow = tl.exp2(other_best - base)
    joined = tl.fma(summed, fade[:, None], other_summed * grow[:, None])
    return now, tl.fma(total, fade, other_total * grow), joined


@triton.jit
def outputs_of(total, summed):
    """The weighted mean of the values, or zeros where no key was seen. Adding zero makes a negative zero positive."""
    return summed / tl.where(total == 0.0, 1.0, total)[:, None] + 0.0
