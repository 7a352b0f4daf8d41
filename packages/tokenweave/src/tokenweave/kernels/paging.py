"""Paging: how tokens lie in a KV cache. Blocks of 16 tokens; a slot is a token's place, block * 16 + offset.

A sequence's block table names its blocks in order, so token `t` is in block `table[t // 16]`, at offset `t % 16`.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

BLOCK_SIZE = 16  # tokens of one block
Integers = TypeVar("Integers", Tensor, npt.NDArray[np.int32])


def blocks_for(num_tokens: int) -> int:
    """Returns how many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_SIZE)


def slots_of(tables: Integers, rows: Integers, positions: Integers) -> Integers:
    """Returns the slots (m,) of the tokens at `positions` (m,) of the sequences whose tables are `tables[rows]`."""
    return tables[rows, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE


def place_of(slots: Integers) -> tuple[Integers, Integers]:
    """Returns the block and the offset in it, (m,) each, of `slots` (m,)."""
    return slots // BLOCK_SIZE, slots % BLOCK_SIZE
