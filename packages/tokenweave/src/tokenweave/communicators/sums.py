"""Sums over ranks: the order of the reference, and a reduction's phases run in one go."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenweave.traffic import Traffic


def run_phases(
    phases: Generator[Traffic, None, Tensor], carry: Callable[[Traffic], None] | None = None
) -> Tensor:
    """Runs `phases` (see `reduce_norm_phases`) and returns their result; `carry` is called with each exchange."""
    try:
        while True:
            traffic = next(phases)
            if carry is not None:
                carry(traffic)
    except StopIteration as end:
        normed: Tensor = end.value
        return normed


def sum_in_rank_order(parts: list[Tensor], out: Tensor) -> None:
    """Writes the sum of `parts` to `out`, all of one shape and dtype: the reference of every backend."""
    wide = torch.float32 if out.dtype.is_floating_point else out.dtype
    total = parts[0].to(wide, copy=True)
    for part in parts[1:]:
        total += part
    out.copy_(total)
