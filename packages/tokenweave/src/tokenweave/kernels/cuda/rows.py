"""A token's row in the registers of one CTA, in float32: shared by the paths that go through pointers."""

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
    """The ranks' rows at `offset`, as they are stored: SIZE tensors (BLOCK,), zero where not wanted.

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
def normalise(wide, scale, eps, HIDDEN: tl.constexpr):
    """`wide` over its root mean square, times the weight; both (BLOCK,), zero beyond HIDDEN."""
    mean_square = tl.sum(wide * wide, 0) / HIDDEN
    return wide * tl.rsqrt(mean_square + eps) * scale


@triton.jit
def load_weight(weight, columns, is_column, HAS_WEIGHT: tl.constexpr):
    """The weight in float32; zeros, and nothing is read, where there is none."""
    if HAS_WEIGHT:
        return tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(columns).to(tl.float32)


@triton.jit
def join(kept, total, post_scale, eps, HIDDEN: tl.constexpr, HAS_POST: tl.constexpr):
    """The residual with the ranks' sum added, which is normed first where the model has such a norm."""
    if HAS_POST:
        return kept + normalise(total, post_scale, eps, HIDDEN)
    else:
        return kept + total


@triton.jit
def rows_for_next(wide, scale, eps, HIDDEN: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    """Returns what the next sublayer reads: the residual normed, or as it is where the model has no norm there."""
    if HAS_WEIGHT:
        return normalise(wide, scale, eps, HIDDEN)
    else:
        return wide
