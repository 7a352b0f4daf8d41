"""`all_reduce_rms_norm` through pointers to every rank's rows: for machines whose switch cannot add, or without one.

Each rank reads the rows it owns from all ranks, adds them in rank order, adds its residual, normalises, and stores the
result in place on every rank. In place is safe: nobody but the owner reads a row, or writes it.
Cost for each rank: it loads (SIZE - 1) / SIZE of the tensor from its peers and stores as much there; as its peers do
the same, its links carry twice that each way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.barrier import ORDERED, RELAXED, meet
from tokenweave.kernels.cuda.rows import (
    base_pointers,
    join,
    load_and_sum,
    load_parts,
    load_weight,
    rows_for_next,
    sum_in_rank_order,
)


@triton.jit(do_not_specialize=["offset_bytes", "first_row", "last_row", "rank", "timeout_ns"])
def peer_kernel(
    buffers,  # *int64 (SIZE,): each rank's symmetric buffer
    offset_bytes,  # where in it the rows begin
    pads,
    failed,
    mailbox,
    residual,  # *float32 (num_tokens, HIDDEN)
    weight,  # (HIDDEN,), of the residual's norm
    post_weight,  # (HIDDEN,), of the sum's
    first_row,  # the rows that this rank owns
    last_row,
    rank,
    eps,
    timeout_ns,
    DTYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,  # HIDDEN rounded up to a power of two
    SIZE: tl.constexpr,
    PEERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POST: tl.constexpr,
    PREFETCHES: tl.constexpr,  # loads of the next row are in flight while this one is worked on
):
    columns = tl.arange(0, BLOCK)
    is_column = columns < HIDDEN
    scale = load_weight(weight, columns, is_column, HAS_WEIGHT)
    post_scale = load_weight(post_weight, columns, is_column, HAS_POST)
    rows = base_pointers(buffers, offset_bytes, DTYPE, SIZE)
    step = tl.num_programs(0)
    row = first_row.to(tl.int64) + tl.program_id(0)
    if meet(pads, failed, mailbox, rank, timeout_ns, SIZE, PEERS, RELAXED):
        if PREFETCHES:
            is_first = columns < tl.where(row < last_row, HIDDEN, 0)
            parts = load_parts(rows, row * HIDDEN, columns, is_first, SIZE)
            kept = tl.load(residual + row * HIDDEN + columns, mask=is_first, other=0.0)
            while row < last_row:
                wide = join(kept, sum_in_rank_order(parts, SIZE), post_scale, eps, HIDDEN, HAS_POST)
                later = row + step
                is_next = columns < tl.where(later < last_row, HIDDEN, 0)
                parts = load_parts(rows, later * HIDDEN, columns, is_next, SIZE)
                kept = tl.load(residual + later * HIDDEN + columns, mask=is_next, other=0.0)
                finish_row(
                    rows, residual, wide, scale, row, columns, is_column, eps, DTYPE, HIDDEN, SIZE, HAS_WEIGHT
                )
                row = later
        else:
            while row < last_row:
                kept = tl.load(residual + row * HIDDEN + columns, mask=is_column, other=0.0)
                total = load_and_sum(rows, row * HIDDEN, columns, is_column, SIZE)
                wide = join(kept, total, post_scale, eps, HIDDEN, HAS_POST)
                finish_row(
                    rows, residual, wide, scale, row, columns, is_column, eps, DTYPE, HIDDEN, SIZE, HAS_WEIGHT
                )
                row += step
        meet(pads, failed, mailbox, rank, timeout_ns, SIZE, PEERS, ORDERED)


@triton.jit
def finish_row(
    rows,
    residual,
    wide,
    scale,
    row,
    columns,
    is_column,
    eps,
    DTYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    """Stores the new residual here and the normed row on every rank."""
    tl.store(residual + row * HIDDEN + columns, wide, mask=is_column)
    normed = rows_for_next(wide, scale, eps, HIDDEN, HAS_WEIGHT).to(DTYPE)
    for peer in tl.static_range(SIZE):
        tl.store(rows[peer] + row * HIDDEN + columns, normed, mask=is_column)
