"""`all_reduce_rms_norm` by the switch (NVLink SHARP): one load gives the ranks' sum, one store reaches every rank.

The kernel of the paper: each rank owns a share of the rows; a CTA keeps a row in registers from the load to the store
and has the next one's sum and residual in flight meanwhile, so that few CTAs keep the links busy.
Cost for each rank: it loads 1 / SIZE of the tensor and stores as much, however many ranks there are. Its links carry
(SIZE + 1) / SIZE of the tensor each way: the switch reads every rank's part, and every rank receives every row.

The order in which a switch adds is its own, so the bits of a sum may differ from the other paths'.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.barrier import ORDERED, RELAXED, meet
from tokenweave.kernels.cuda.ptx import (
    VECTOR,
    load_floats,
    load_sum,
    load_words,
    store_floats,
    store_to_all,
    to_floats,
)


@triton.jit(
    do_not_specialize=["multicast", "kept_shift", "first_row", "last_row", "rank", "tag", "timeout_ns"]
)
def multimem_kernel(
    multicast,  # int64: the address of the rows that stands for every rank's
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
    ITEM_BYTES: tl.constexpr,
    HIDDEN: tl.constexpr,  # a multiple of VECTOR
    VECTORS: tl.constexpr,  # of a chunk, a power of two, at least one for each thread
    CHUNKS: tl.constexpr,  # of a row; a row is 8 * CHUNKS tensors (VECTORS,), as `ptx` has a vector in eight
    SIZE: tl.constexpr,
    PEERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POST: tl.constexpr,
    PREFETCHES: tl.constexpr,  # the next row's sum is in flight while this one is worked on
):
    epoch = tl.load(epochs + tl.program_id(0))
    vectors = tl.arange(0, VECTORS)
    scale = hold_weight(weight, vectors, HIDDEN, CHUNKS, HAS_WEIGHT)
    post_scale = hold_weight(post_weight, vectors, HIDDEN, CHUNKS, HAS_POST)
    sums = multicast.to(tl.int64)
    kepts = residual.to(tl.int64) + kept_shift.to(tl.int64) * (HIDDEN * 4)
    step = tl.num_programs(0)
    row = first_row.to(tl.int64) + tl.program_id(0)
    if meet(pads, failed, mailbox, rank, tag, epoch, timeout_ns, SIZE, PEERS, RELAXED):
        has_row = row < last_row
        if PREFETCHES:
            words = load_sums(
                sums + row * (HIDDEN * ITEM_BYTES), vectors, has_row, DTYPE, ITEM_BYTES, HIDDEN, CHUNKS
            )
        if CHUNKS == 1:
            kept = load_kept(kepts + row * (HIDDEN * 4), vectors, has_row, HIDDEN, CHUNKS)
        while row < last_row:
            if not PREFETCHES:
                words = load_sums(
                    sums + row * (HIDDEN * ITEM_BYTES), vectors, has_row, DTYPE, ITEM_BYTES, HIDDEN, CHUNKS
                )
            total = to_floats(words, DTYPE, CHUNKS)
            if HAS_POST:
                total = normalise(total, post_weight, post_scale, vectors, eps, HIDDEN, CHUNKS)
            if CHUNKS == 1:
                wide = add(kept, total, CHUNKS)
            else:  # of a wide row the old residual is loaded when it is needed, and the next sum alone goes ahead
                old = load_kept(kepts + row * (HIDDEN * 4), vectors, has_row, HIDDEN, CHUNKS)
                wide = add(old, total, CHUNKS)
            later = row + step
            has_row = later < last_row
            if PREFETCHES:
                words = load_sums(
                    sums + later * (HIDDEN * ITEM_BYTES), vectors, has_row, DTYPE, ITEM_BYTES, HIDDEN, CHUNKS
                )
            if CHUNKS == 1:
                kept = load_kept(kepts + later * (HIDDEN * 4), vectors, has_row, HIDDEN, CHUNKS)
            store_kept(kepts + row * (HIDDEN * 4), wide, vectors, HIDDEN, CHUNKS)
            given = wide
            if HAS_WEIGHT:
                given = normalise(wide, weight, scale, vectors, eps, HIDDEN, CHUNKS)
            store_row(sums + row * (HIDDEN * ITEM_BYTES), given, vectors, DTYPE, ITEM_BYTES, HIDDEN, CHUNKS)
            row = later
        meet(pads, failed, mailbox, rank, tag, epoch + 1, timeout_ns, SIZE, PEERS, ORDERED)
        tl.store(epochs + tl.program_id(0), epoch + 2)


@triton.jit
def load_sums(
    row,  # int64: the address of the row
    vectors,
    has_row,
    DTYPE: tl.constexpr,
    ITEM_BYTES: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The words of the ranks' sum of a row, chunk after chunk; zeros where there is no row."""
    words = ()
    for at in tl.static_range(CHUNKS):
        place = at * vectors.shape[0] + vectors
        is_wanted = (place * VECTOR < HIDDEN) & has_row
        words = words + load_sum(row + place * (VECTOR * ITEM_BYTES), is_wanted.to(tl.int32), DTYPE)
    return words


@triton.jit
def load_kept(row, vectors, has_row, HIDDEN: tl.constexpr, CHUNKS: tl.constexpr):
    """A row of the residual."""
    kept = ()
    for at in tl.static_range(CHUNKS):
        place = at * vectors.shape[0] + vectors
        is_wanted = (place * VECTOR < HIDDEN) & has_row
        kept = kept + load_floats(row + place * (VECTOR * 4), is_wanted.to(tl.int32))
    return kept


@triton.jit
def store_kept(row, wide, vectors, HIDDEN: tl.constexpr, CHUNKS: tl.constexpr):
    for at in tl.static_range(CHUNKS):
        place = at * vectors.shape[0] + vectors
        is_wanted = (place * VECTOR < HIDDEN).to(tl.int32)
        store_floats(row + place * (VECTOR * 4), vector_of(wide, at), is_wanted)


@triton.jit
def store_row(
    row,
    given,
    vectors,
    DTYPE: tl.constexpr,
    ITEM_BYTES: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Stores a row on every rank."""
    for at in tl.static_range(CHUNKS):
        place = at * vectors.shape[0] + vectors
        is_wanted = (place * VECTOR < HIDDEN).to(tl.int32)
        store_to_all(row + place * (VECTOR * ITEM_BYTES), vector_of(given, at), is_wanted, DTYPE)


@triton.jit
def vector_of(row, at: tl.constexpr):
    """The eight tensors of a chunk."""
    vector = ()
    for element in tl.static_range(8):
        vector = vector + (row[8 * at + element],)
    return vector


@triton.jit
def load_weights(weight, vectors, at: tl.constexpr, HIDDEN: tl.constexpr):
    """The weights of a chunk, as eight tensors of float32."""
    place = at * vectors.shape[0] + vectors
    address = weight.to(tl.int64) + place * (VECTOR * (weight.dtype.element_ty.primitive_bitwidth // 8))
    words = load_words(address, (place * VECTOR < HIDDEN).to(tl.int32), weight.dtype.element_ty)
    return to_floats(words, weight.dtype.element_ty, 1)


@triton.jit
def hold_weight(weight, vectors, HIDDEN: tl.constexpr, CHUNKS: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    """The weights of a row of one chunk. Those of a wider row are loaded when they are needed: then any value."""
    if HAS_WEIGHT:
        if CHUNKS == 1:
            return load_weights(weight, vectors, 0, HIDDEN)
        else:
            return 0
    else:
        return 0


@triton.jit
def weights_of(weight, held, vectors, at: tl.constexpr, HIDDEN: tl.constexpr, CHUNKS: tl.constexpr):
    if CHUNKS == 1:
        return held
    else:
        return load_weights(weight, vectors, at, HIDDEN)


@triton.jit
def add(kept, summed, CHUNKS: tl.constexpr):
    wide = ()
    for element in tl.static_range(8 * CHUNKS):
        wide = wide + (kept[element] + summed[element],)
    return wide


@triton.jit
def normalise(row, weight, held, vectors, eps, HIDDEN: tl.constexpr, CHUNKS: tl.constexpr):
    """A row over its root mean square, times the weight."""
    squares = row[0] * row[0]
    for element in tl.static_range(1, 8 * CHUNKS):
        squares += row[element] * row[element]
    inverse = tl.rsqrt(tl.sum(squares, 0) / HIDDEN + eps)
    normed = ()
    for at in tl.static_range(CHUNKS):
        scale = weights_of(weight, held, vectors, at, HIDDEN, CHUNKS)
        for element in tl.static_range(8):
            normed = normed + (row[8 * at + element] * inverse * scale[element],)
    return normed
