"""`all_reduce_rms_norm` of few tokens: every rank sends its rows to all, waits once, and reduces all rows itself.

One barrier instead of two, and stores instead of loads across the links. The price is that every rank receives, adds
and normalises every row, and keeps the whole residual. The rows may be any tensor: they travel through `slots`,
symmetric memory laid out (2, num_ctas, SIZE, ROWS, HIDDEN).

Invariants:
  1. A CTA counts its calls in `epochs`, on the device, so that a captured graph counts on. The count's parity chooses
     one of the two halves of `slots`, alike on all ranks.
  2. Writing a half is safe: this CTA has since left the barrier of the call in between, so its namesakes on all ranks
     have entered that call, and their kernels that read the half have ended.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.barrier import ORDERED, meet
from tokenweave.kernels.cuda.rows import base_pointers, join, load_and_sum, load_weight, rows_for_next


@triton.jit(do_not_specialize=["num_tokens", "rank", "timeout_ns"])
def one_shot_kernel(
    slots,  # *int64 (SIZE,): each rank's slots
    epochs,  # *int32 (NUM_CTAS,), of this rank
    pads,
    failed,
    mailbox,
    hidden,  # (num_tokens, HIDDEN), of this rank; holds the normed rows afterwards
    residual,  # *float32 (num_tokens, HIDDEN)
    weight,  # (HIDDEN,), of the residual's norm
    post_weight,  # (HIDDEN,), of the sum's
    num_tokens,
    rank,
    eps,
    timeout_ns,
    DTYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    SIZE: tl.constexpr,
    PEERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POST: tl.constexpr,
    NUM_CTAS: tl.constexpr,  # that `slots` has room for; a call of fewer tokens may have fewer
    ROWS: tl.constexpr,  # rows of one rank that one CTA has room for
):
    cta = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    is_column = columns < HIDDEN
    scale = load_weight(weight, columns, is_column, HAS_WEIGHT)
    post_scale = load_weight(post_weight, columns, is_column, HAS_POST)
    epoch = tl.load(epochs + cta)
    half = ((epoch & 1) * NUM_CTAS + cta).to(tl.int64) * (SIZE * ROWS * HIDDEN)
    theirs = base_pointers(slots, 0, DTYPE, SIZE)
    place = half + rank * (ROWS * HIDDEN)
    row = cta.to(tl.int64)
    while row < num_tokens:
        part = tl.load(hidden + row * HIDDEN + columns, mask=is_column)
        for peer in tl.static_range(SIZE):
            tl.store(theirs[peer] + place + columns, part, mask=is_column)
        place += HIDDEN
        row += tl.num_programs(0)
    if meet(pads, failed, mailbox, rank, timeout_ns, SIZE, PEERS, ORDERED):
        ours = own_slots(slots, rank, half, DTYPE, HIDDEN, SIZE, ROWS)
        row = cta.to(tl.int64)
        place = row * 0
        while row < num_tokens:
            kept = tl.load(residual + row * HIDDEN + columns, mask=is_column, other=0.0)
            total = load_and_sum(ours, place, columns, is_column, SIZE)
            wide = join(kept, total, post_scale, eps, HIDDEN, HAS_POST)
            tl.store(residual + row * HIDDEN + columns, wide, mask=is_column)
            normed = rows_for_next(wide, scale, eps, HIDDEN, HAS_WEIGHT).to(DTYPE)
            tl.store(hidden + row * HIDDEN + columns, normed, mask=is_column)
            place += HIDDEN
            row += tl.num_programs(0)
        tl.store(epochs + cta, epoch + 1)


@triton.jit
def own_slots(
    slots, rank, half, DTYPE: tl.constexpr, HIDDEN: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr
):
    """Where each rank's rows have arrived here: SIZE pointers, multiples of 16 bytes where a row is one."""
    base = tl.load(slots + rank).to(tl.pointer_type(DTYPE))
    pointers = ()
    for peer in tl.static_range(SIZE):
        pointers = pointers + (tl.multiple_of(base, 16) + half + peer * (ROWS * HIDDEN),)
    return pointers
