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
    held_weight,
    inverse_rms,
    load_parts,
    reduce_row,
    store_row,
    sum_in_rank_order,
)


@triton.jit(
    do_not_specialize=["offset_bytes", "kept_shift", "first_row", "last_row", "rank", "tag", "timeout_ns"]
)
def peer_kernel(
    buffers,  # *int64 (SIZE,): each rank's symmetric buffer
    offset_bytes,  # where in it the rows begin
    pads,
    epochs,  # *int32, of this rank, one for each CTA
    failed,
    mailbox,
    residual,  # *float32 (num_tokens, HIDDEN), or the rows that this rank owns
    kept_shift,  # what is added to a row's number for its place in `residual`
    weight,  # (HIDDEN,), of the residual's norm
    post_weight,  # (HIDDEN,), of the sum's
    first_row,  # the rows that this rank owns
    last_row,
    rank,
    tag,
    eps,
    timeout_ns,
    DTYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    SIZE: tl.constexpr,
    PEERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POST: tl.constexpr,
    PREFETCHES: tl.constexpr,  # of rows of one chunk: the next row's loads are in flight while this one is worked on
):
    epoch = tl.load(epochs + tl.program_id(0))
    columns = tl.arange(0, CHUNK)
    scale = held_weight(weight, HIDDEN, CHUNK, CHUNKS, HAS_WEIGHT)
    post_scale = held_weight(post_weight, HIDDEN, CHUNK, CHUNKS, HAS_POST)
    rows = base_pointers(buffers, offset_bytes, DTYPE, SIZE)
    kepts = residual + kept_shift.to(tl.int64) * HIDDEN
    step = tl.num_programs(0)
    row = first_row.to(tl.int64) + tl.program_id(0)
    if meet(pads, failed, mailbox, rank, tag, epoch, timeout_ns, SIZE, PEERS, RELAXED):
        if PREFETCHES:
            is_first = columns < tl.where(row < last_row, HIDDEN, 0)
            parts = load_parts(rows, row * HIDDEN, columns, is_first, SIZE)
            kept = tl.load(kepts + row * HIDDEN + columns, mask=is_first, other=0.0)
            while row < last_row:
                total = sum_in_rank_order(parts, SIZE)
                if HAS_POST:
                    total = total * inverse_rms((total,), eps, HIDDEN, 1) * post_scale
                wide = (kept + total,)
                later = row + step
                is_next = columns < tl.where(later < last_row, HIDDEN, 0)
                parts = load_parts(rows, later * HIDDEN, columns, is_next, SIZE)
                kept = tl.load(kepts + later * HIDDEN + columns, mask=is_next, other=0.0)
                place = row * HIDDEN
                store_row(
                    rows,
                    place,
                    kepts + place,
                    wide,
                    weight,
                    scale,
                    eps,
                    DTYPE,
                    HIDDEN,
                    CHUNK,
                    CHUNKS,
                    SIZE,
                    HAS_WEIGHT,
                )
                row = later
        else:
            while row < last_row:
                place = row * HIDDEN
                sources = rows_again(rows, buffers, offset_bytes, DTYPE, CHUNKS, SIZE)
                wide = reduce_row(
                    sources,
                    place,
                    kepts + place,
                    post_weight,
                    post_scale,
                    eps,
                    HIDDEN,
                    CHUNK,
                    CHUNKS,
                    SIZE,
                    HAS_POST,
                )
                targets = rows_again(rows, buffers, offset_bytes, DTYPE, CHUNKS, SIZE)
                store_row(
                    targets,
                    place,
                    kepts + place,
                    wide,
                    weight,
                    scale,
                    eps,
                    DTYPE,
                    HIDDEN,
                    CHUNK,
                    CHUNKS,
                    SIZE,
                    HAS_WEIGHT,
                )
                row += step
        meet(pads, failed, mailbox, rank, tag, epoch + 1, timeout_ns, SIZE, PEERS, ORDERED)
        tl.store(epochs + tl.program_id(0), epoch + 2)


@triton.jit
def rows_again(rows, buffers, offset_bytes, DTYPE: tl.constexpr, CHUNKS: tl.constexpr, SIZE: tl.constexpr):
    """`rows`; of a wide row loaded anew, or the compiler holds an address for each rank and chunk from use to use."""
    if CHUNKS == 1:
        return rows
    else:
        return base_pointers(buffers, offset_bytes, DTYPE, SIZE)
