"""Rows by expert: each expert's rows fill tiles of their own, in the order of the batch. Nothing is read on the host.

A choice is a row and one of its experts, numbered `row * choices of a row + place`. How many tiles a batch needs only
the device knows; the host makes room for the most there can be, and the last of them have no expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenweave.kernels.cuda.backend.start import start

CHUNK = 4096  # choices that a program counts at a time: all of a step that decodes
TILES = 128  # whose expert is noted at a time


class Tiles(NamedTuple):
    """Invariant: every choice of an expert that is there has one slot, in a tile of that expert."""

    choices: Tensor  # (num_tiles, rows) int32: the choice in each slot, -1 for none; anything in tiles of no expert
    experts: Tensor  # (num_tiles,) int32: -1 for none


def place(chosen: Tensor, num_experts: int, rows: int, device: torch.device) -> Tiles:
    """The tiles of `rows` slots for chosen (m, c) int64. An expert that is not there has no tile."""
    num_choices = chosen.numel()
    num_tiles = num_choices // rows + min(num_experts, num_choices)
    choices = torch.empty((num_tiles, rows), dtype=torch.int32, device=device)
    experts = torch.empty(num_tiles, dtype=torch.int32, device=device)
    start(
        place_choices,
        (num_experts if num_choices else 0,),
        device,
        chosen,
        choices,
        experts,
        num_choices,
        num_tiles,
        **place_options(num_experts, rows),
    )
    return Tiles(choices, experts)


def place_options(num_experts: int, rows: int) -> dict[str, Any]:
    return {
        "NUM_EXPERTS": num_experts,
        "BINS": max(2, triton.next_power_of_2(num_experts)),
        "ROWS": rows,
        "CHUNK": CHUNK,
        "TILES": TILES,
        "num_warps": 8,
        "enable_fp_fusion": True,
    }


@triton.jit(do_not_specialize=["num_choices", "num_tiles"])
def place_choices(
    chosen,  # *int64 (num_choices,)
    choices,  # *int32 (num_tiles, ROWS)
    experts,  # *int32 (num_tiles,)
    num_choices,
    num_tiles,
    NUM_EXPERTS: tl.constexpr,
    BINS: tl.constexpr,  # NUM_EXPERTS, widened to a power of two
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
):
    """A program for each expert. All of them count all choices, so that none waits for another."""
    own = tl.program_id(0)
    counts = tl.zeros((BINS,), tl.int32)
    for first in range(0, num_choices, CHUNK):
        expert = load_choices(chosen, first, num_choices, NUM_EXPERTS, CHUNK)
        counts += tl.histogram(tl.maximum(expert, 0), BINS, mask=expert >= 0)
    tiles = (counts + ROWS - 1) // ROWS
    is_own = tl.arange(0, BINS) == own
    end_tile = tl.sum(tl.where(is_own, tl.cumsum(tiles, 0), 0), 0)
    first_tile = end_tile - tl.sum(tl.where(is_own, tiles, 0), 0)
    slots = choices + first_tile * ROWS
    seen = tl.cast(0, tl.int32)
    for first in range(0, num_choices, CHUNK):
        is_mine = load_choices(chosen, first, num_choices, NUM_EXPERTS, CHUNK) == own
        place = seen + tl.cumsum(is_mine.to(tl.int32), 0) - 1
        tl.store(slots + place, first + tl.arange(0, CHUNK), mask=is_mine)
        seen += tl.sum(is_mine.to(tl.int32), 0)
    spare = seen + tl.arange(0, ROWS)
    tl.store(slots + spare, -1, mask=spare < (end_tile - first_tile) * ROWS)
    note_expert(experts, first_tile, end_tile, own, TILES)
    if own == 0:
        note_expert(experts, tl.sum(tiles, 0), num_tiles, -1, TILES)


@triton.jit
def load_choices(chosen, first, num_choices, NUM_EXPERTS: tl.constexpr, CHUNK: tl.constexpr):
    """The experts of some choices, -1 for one that is not there."""
    at = first + tl.arange(0, CHUNK)
    expert = tl.load(chosen + at, mask=at < num_choices, other=-1)
    return tl.where((expert >= 0) & (expert < NUM_EXPERTS), expert, -1).to(tl.int32)


@triton.jit
def note_expert(experts, first_tile, end_tile, expert, TILES: tl.constexpr):
    for first in range(first_tile, end_tile, TILES):
        tile = first + tl.arange(0, TILES)
        tl.store(experts + tile, expert, mask=tile < end_tile)
