"""Searches along rows that need neither a sort nor the host: their shapes do not depend on what they find."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 256  # entries whose sum is taken first, so that few are added up one after the other
MAX_COMPARED = 1 << 22  # entries times candidates of one round, above which a round has fewer candidates


def largest_holding(holds: Callable[[Tensor], Tensor], rows: Tensor, num_bits: int) -> Tensor:
    """The largest number for which `holds`, of `num_bits` bits rounded up to a multiple of 4: (num_rows,) int64.

    `holds` answers candidates (num_rows, n) int64 with as many bools, and reads `rows` (num_rows, size) for each. What
    holds for a number holds for all smaller ones, and for 0. Where rows are few, launches take most of the time: then
    a round has 15 candidates, or 3, and finds so many more bits.
    """
    bits = next((n for n in (4, 2) if rows.numel() << n <= MAX_COMPARED), 1)
    digits = torch.arange(1, 1 << bits, device=rows.device)
    found = torch.zeros(len(rows), 1, dtype=torch.int64, device=rows.device)
    for shift in reversed(range(0, num_bits, bits)):
        step = 1 << shift
        found = found + holds(found + digits * step).sum(1, keepdim=True) * step
    return found.squeeze(1)


def first_passing(amounts: Tensor, target: Tensor) -> Tensor:
    """Where the running sum of each row of `amounts` (num_rows, size) int64 passes its `target` (num_rows,).

    (num_rows,) int64; the last entry where it never does. Amounts are not negative.
    """
    size = amounts.shape[1]
    whole = pad(amounts, (0, -size % CHUNK)) if size % CHUNK else amounts
    chunks = whole.reshape(len(whole), whole.shape[1] // CHUNK, CHUNK)
    sums = chunks.sum(2)
    running = sums.cumsum(1)
    chunk = (running <= target[:, None]).sum(1, keepdim=True).clamp_(max=sums.shape[1] - 1)
    before = (running - sums).gather(1, chunk)
    within = chunks.gather(1, chunk[:, :, None].expand(-1, 1, CHUNK)).squeeze(1)
    place = (before + within.cumsum(1) <= target[:, None]).sum(1)
    return (chunk.squeeze(1) * CHUNK + place).clamp_(max=size - 1)
