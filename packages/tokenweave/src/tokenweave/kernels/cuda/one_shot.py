"""`all_reduce_rms_norm` of few tokens: every rank sends its rows to all, waits once, and reduces all rows itself.

One barrier instead of two, and stores instead of loads across the links. The price is that every rank receives, adds
and normalises every row, and keeps the whole residual. The rows may be any tensor: they travel through `slots`,
symmetric memory laid out (2, num_ctas, SIZE, ROWS, HIDDEN).

Invariants:
  1. The parity of a CTA's epoch (see `barrier`) chooses one of the two halves of `slots`, alike on all ranks. Epochs
     are on the device, so that a captured graph counts on.
  2. Writing a half is safe: this CTA has since left the barrier of a call in between, so its namesakes on all ranks
     have entered that call, and their kernels that read the half have ended.
  3. A place in `slots` is one CTA's: calls of another row size have slots of their own, and the number of CTAs is that
     of the slots, or of the rows where these are fewer, so that a CTA has ROWS rows at most.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.barrier import ORDERED, meet
from tokenweave.kernels.cuda.rows import base_pointers, held_weight, reduce_row, store_row


@triton.jit(do_not_specialize=["num_tokens", "rank", "tag", "timeout_ns"])
def one_shot_kernel(
    slots,  # *int64 (SIZE,): each rank's slots
    pads,
    epochs,  # *int32 (NUM_CTAS,), of this rank
    failed,
    mailbox,
    hidden,  # (num_tokens, HIDDEN), of this rank; holds the normed rows afterwards
    residual,  # *float32 (num_tokens, HIDDEN)
    weight,  # (HIDDEN,), of the residual's norm
    post_weight,  # (HIDDEN,), of the sum's
    num_tokens,
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
    NUM_CTAS: tl.constexpr,  # that `slots` has room for; a call of fewer tokens may have fewer
    ROWS: tl.constexpr,  # rows of one rank that one CTA has room for
):
    cta = tl.program_id(0)
    epoch = tl.load(epochs + cta)
    scale = held_weight(weight, HIDDEN, CHUNK, CHUNKS, HAS_WEIGHT)
    post_scale = held_weight(post_weight, HIDDEN, CHUNK, CHUNKS, HAS_POST)
    half = ((epoch & 1) * NUM_CTAS + cta).to(tl.int64) * (SIZE * ROWS * HIDDEN)
    theirs = base_pointers(slots, 0, DTYPE, SIZE)
    place = half + rank * (ROWS * HIDDEN)
    row = cta.to(tl.int64)
    while row < num_tokens:
        for at in tl.static_range(CHUNKS):
            columns = at * CHUNK + tl.arange(0, CHUNK)
            is_column = columns < HIDDEN
            part = tl.load(hidden + row * HIDDEN + columns, mask=is_column)
            for peer in tl.static_range(SIZE):
                tl.store(theirs[peer] + place + columns, part, mask=is_column)
        place += HIDDEN
        row += tl.num_programs(0)
    if meet(pads, failed, mailbox, rank, tag, epoch, timeout_ns, SIZE, PEERS, ORDERED):
        ours = own_slots(slots, rank, half, DTYPE, HIDDEN, SIZE, ROWS)
        row = cta.to(tl.int64)
        place = row * 0
        while row < num_tokens:
            own = row * HIDDEN
            wide = reduce_row(
                ours,
                place,
                residual + own,
                post_weight,
                post_scale,
                eps,
                HIDDEN,
                CHUNK,
                CHUNKS,
                SIZE,
                HAS_POST,
            )
            store_row(
                (hidden,),
                own,
                residual + own,
                wide,
                weight,
                scale,
                eps,
                DTYPE,
                HIDDEN,
                CHUNK,
                CHUNKS,
                1,
                HAS_WEIGHT,
            )
            place += HIDDEN
            row += tl.num_programs(0)
        tl.atomic_add(
            epochs + cta, 1, sem="relaxed", scope="gpu"
        )  # a store would keep a register for `epoch`


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
