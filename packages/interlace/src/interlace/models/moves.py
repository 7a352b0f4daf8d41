"""Moves: blocks of keys and values that a pass moves between tiers of memory, as plain integers.

A *place* is a memory that holds blocks: `LOCAL` is the KV cache that the kernels read, 1 the first tier below it, and
so on. Every rank has the same places, with its own part of each block in them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenweave import plan

LOCAL = 0  # the place of the KV cache


class MoveKind(IntEnum):
    """When in the pass a move is made: see `tokenweave.plan.plan_forward`."""

    EVICT = 0  # what is there is written down before it is overwritten
    FETCH = 1  # into a block of local memory, before attention reads it
    STORE = 2  # from a block of local memory, which is full when attention is done


class Move(NamedTuple):
    """One block, from an index in one place to an index in another."""

    kind: MoveKind
    from_place: int
    from_index: int
    to_place: int
    to_index: int


def moves_tensor(moves: list[Move]) -> Tensor:
    """(num_moves, 5) int32, in the order in which they are made."""
    return torch.from_numpy(np.array(moves, dtype=np.int32).reshape(-1, len(Move._fields)))


NO_MOVES = moves_tensor([])


def moves_of(moves: Tensor) -> plan.Moves:
    """The kinds that are in `moves`, (num_moves, 5), as a plan has to know them."""
    if not len(moves):
        return plan.NO_MOVES
    kinds = set(moves[:, 0].tolist())
    return plan.Moves(
        evicts=MoveKind.EVICT in kinds, fetches=MoveKind.FETCH in kinds, stores=MoveKind.STORE in kinds
    )
