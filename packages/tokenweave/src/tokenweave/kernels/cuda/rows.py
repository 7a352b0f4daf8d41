"""A token's row in the registers of one CTA, in float32: shared by the paths that go through pointers.

A row is a tuple of CHUNKS tensors (CHUNK,), zero beyond HIDDEN: one chunk up to the width that `launch` holds at once,
several of a wider row, so that what is only needed for a while (the ranks' parts, the old residual, the weights) takes
the registers of one chunk. The weights of a row of one chunk are held from row to row.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def base_pointers(table, offset_bytes, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    """Where this rank reaches each rank's memory, `offset_bytes` on: SIZE pointers, multiples of 16 bytes."""
    pointers = ()
    for peer in tl.static_range(SIZE):
        address = tl.load(table + peer) + offset_bytes
        pointers = pointers + (tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16),)
    return pointers


@triton.jit
def load_parts(pointers, offset, columns, is_wanted, SIZE: tl.constexpr):
    """The ranks' rows at `offset`, as they are stored: SIZE tensors (CHUNK,), zero where not wanted.

    Volatile, so that no load comes from the L1 cache, which other devices' stores do not reach.
    """
    parts = ()
    for peer in tl.static_range(SIZE):
        part = tl.load(pointers[peer] + offset + columns, mask=is_wanted, other=0.0, volatile=True)
        parts = parts + (part,)
    return parts


@triton.jit
def sum_in_rank_order(parts, SIZE: tl.constexpr):
    """The sum of the ranks' rows, in float32: the same bits on whichever rank takes it."""
    total = parts[0].to(tl.float32)
    for peer in tl.static_range(1, SIZE):
        total = total + parts[peer].to(tl.float32)
    return total


@triton.jit
def load_and_sum(pointers, offset, columns, is_wanted, SIZE: tl.constexpr):
    """`sum_in_rank_order` of `load_parts`, without holding all parts at once: for rows that would not fit."""
    first = tl.load(pointers[0] + offset + columns, mask=is_wanted, other=0.0, volatile=True)
    total = first.to(tl.float32)
    for peer in tl.static_range(1, SIZE):
        part = tl.load(pointers[peer] + offset + columns, mask=is_wanted, other=0.0, volatile=True)
        total = total + part.to(tl.float32)
    return total


@triton.jit
def inverse_rms(row, eps, HIDDEN: tl.constexpr, CHUNKS: tl.constexpr):
    """One over the root mean square of a row."""
    squares = row[0] * row[0]
    for at in tl.static_range(1, CHUNKS):
        squares = squares + row[at] * row[at]
    return tl.rsqrt(tl.sum(squares, 0) / HIDDEN + eps)


@triton.jit
def load_weight(weight, columns, is_column, HAS_WEIGHT: tl.constexpr):
    """The weight in float32; zeros, and nothing is read, where there is none."""
    if HAS_WEIGHT:
        return tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(columns).to(tl.float32)


@triton.jit
def held_weight(
    weight, HIDDEN: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, HAS_WEIGHT: tl.constexpr
):
    """The weight of a row of one chunk. That of a wider row is loaded when it is needed: then any value."""
    columns = tl.arange(0, CHUNK)
    if CHUNKS == 1:
        return load_weight(weight, columns, columns < HIDDEN, HAS_WEIGHT)
    else:
        return 0


@triton.jit
def weight_of(weight, held, columns, is_column, CHUNKS: tl.constexpr):
    """A chunk's weight: the one that is held, of a row of one chunk."""
    if CHUNKS == 1:
        return held
    else:
        return load_weight(weight, columns, is_column, True)


@triton.jit
def reduce_row(
    pointers,
    offset,  # of the row behind each pointer, in elements
    kept,  # *float32: the row of the residual
    post_weight,
    post_scale,  # its weight, where it is held
    eps,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    SIZE: tl.constexpr,
    HAS_POST: tl.constexpr,
):
    """The residual with the ranks' sum added, which is normed first where the model has such a norm."""
    total = ()
    for at in tl.static_range(CHUNKS):
        columns = at * CHUNK + tl.arange(0, CHUNK)
        is_column = columns < HIDDEN
        if HAS_POST:
            total = total + (load_and_sum(pointers, offset, columns, is_column, SIZE),)
        else:
            old = tl.load(kept + columns, mask=is_column, other=0.0)
            total = total + (old + load_and_sum(pointers, offset, columns, is_column, SIZE),)
        if (
            CHUNKS > 1
        ):  # or the compiler has the parts of several chunks in flight, in registers that it has not
            tl.debug_barrier()
    if HAS_POST:
        return add_normed(total, kept, post_weight, post_scale, eps, HIDDEN, CHUNK, CHUNKS)
    else:
        return total


@triton.jit
def add_normed(
    total,
    kept,
    post_weight,
    post_scale,
    eps,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The residual's row at `kept` with `total` added, normed."""
    inverse = inverse_rms(total, eps, HIDDEN, CHUNKS)
    wide = ()
    for at in tl.static_range(CHUNKS):
        columns = at * CHUNK + tl.arange(0, CHUNK)
        is_column = columns < HIDDEN
        old = tl.load(kept + columns, mask=is_column, other=0.0)
        scale = weight_of(post_weight, post_scale, columns, is_column, CHUNKS)
        wide = wide + (old + total[at] * inverse * scale,)
    return wide


@triton.jit
def store_row(
    targets,  # where the row for the next sublayer goes: TARGETS pointers
    offset,  # of the row behind each of them
    kept,  # *float32: the row of the residual
    wide,
    weight,
    scale,  # its weight, where it is held
    eps,
    DTYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    TARGETS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    """Stores the new residual, and the row that the next sublayer reads: normed, or as it is where there is no norm."""
    for at in tl.static_range(CHUNKS):
        columns = at * CHUNK + tl.arange(0, CHUNK)
        tl.store(kept + columns, wide[at], mask=columns < HIDDEN)
    if HAS_WEIGHT:
        inverse = inverse_rms(wide, eps, HIDDEN, CHUNKS)
    for at in tl.static_range(CHUNKS):
        columns = at * CHUNK + tl.arange(0, CHUNK)
        is_column = columns < HIDDEN
        given = wide[at]
        if HAS_WEIGHT:
            given = given * inverse * weight_of(weight, scale, columns, is_column, CHUNKS)
        for target in tl.static_range(TARGETS):
            tl.store(targets[target] + offset + columns, given.to(DTYPE), mask=is_column)
