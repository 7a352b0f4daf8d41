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
from tokenweave.kernels.cuda.ptx import VECTOR, load_floats, load_sum, store_floats, store_to_all, to_floats


@triton.jit(do_not_specialize=["multicast", "first_row", "last_row", "rank", "timeout_ns"])
def multimem_kernel(
    multicast,  # int64: the address of the rows that stands for every rank's
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
    ITEM_BYTES: tl.constexpr,
    HIDDEN: tl.constexpr,  # a multiple of VECTOR
    VECTORS: tl.constexpr,  # of a row, rounded up to a power of two, at least one for each thread
    SIZE: tl.constexpr,
    PEERS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POST: tl.constexpr,
):
    vectors = tl.arange(0, VECTORS)
    is_vector = vectors * VECTOR < HIDDEN
    scale = load_vectors(weight, vectors, is_vector, HAS_WEIGHT)
    post_scale = load_vectors(post_weight, vectors, is_vector, HAS_POST)
    sums = multicast.to(tl.int64) + vectors * (VECTOR * ITEM_BYTES)
    kepts = residual.to(tl.int64) + vectors * (VECTOR * 4)
    step = tl.num_programs(0)
    row = first_row.to(tl.int64) + tl.program_id(0)
    if meet(pads, failed, mailbox, rank, timeout_ns, SIZE, PEERS, RELAXED):
        is_wanted = (is_vector & (row < last_row)).to(tl.int32)
        words = load_sum(sums + row * (HIDDEN * ITEM_BYTES), is_wanted, DTYPE)
        kept = load_floats(kepts + row * (HIDDEN * 4), is_wanted)
        while row < last_row:
            total = to_floats(words, DTYPE)
            if HAS_POST:
                total = normalise_vectors(total, post_scale, eps, HIDDEN)
            wide = add(kept, total)
            later = row + step
            is_wanted = (is_vector & (later < last_row)).to(tl.int32)
            words = load_sum(sums + later * (HIDDEN * ITEM_BYTES), is_wanted, DTYPE)
            kept = load_floats(kepts + later * (HIDDEN * 4), is_wanted)
            store_floats(kepts + row * (HIDDEN * 4), wide, is_vector.to(tl.int32))
            given = wide
            if HAS_WEIGHT:
                given = normalise_vectors(wide, scale, eps, HIDDEN)
            store_to_all(sums + row * (HIDDEN * ITEM_BYTES), given, is_vector.to(tl.int32), DTYPE)
            row = later
        meet(pads, failed, mailbox, rank, timeout_ns, SIZE, PEERS, ORDERED)


@triton.jit
def load_vectors(weight, vectors, is_vector, HAS_WEIGHT: tl.constexpr):
    """The weight as eight tensors (VECTORS,) of float32; zeros, and nothing is read, where there is none."""
    scale = ()
    for element in tl.static_range(8):
        if HAS_WEIGHT:
            value = tl.load(weight + vectors * VECTOR + element, mask=is_vector, other=0.0).to(tl.float32)
        else:
            value = tl.zeros_like(vectors).to(tl.float32)
        scale = scale + (value,)
    return scale


@triton.jit
def add(kept, summed):
    wide = ()
    for element in tl.static_range(8):
        wide = wide + (kept[element] + summed[element],)
    return wide


@triton.jit
def normalise_vectors(wide, scale, eps, HIDDEN: tl.constexpr):
    """As `rows.normalise`, of a row as eight tensors (VECTORS,): neighbours are in neighbouring tensors."""
    squares = wide[0] * wide[0]
    for element in tl.static_range(1, 8):
        squares += wide[element] * wide[element]
    inverse = tl.rsqrt(tl.sum(squares, 0) / HIDDEN + eps)
    normed = ()
    for element in tl.static_range(8):
        normed = normed + (wide[element] * inverse * scale[element],)
    return normed
