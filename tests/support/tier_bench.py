"""A bench for a rank's tiers: a small cache of torch, tiers of emucxl, and passes that write what they are told to.

Slow tiers are modelled ones. They make the windows wide in which something could be read or overwritten too early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import pytest
import torch

from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.cache import tier_copies, tier_mover
from interlace.engine.cache.tier_memory import SlotMemory
from interlace.engine.cache.tier_mover import TierMover
from interlace.models.batch import ForwardBatch
from interlace.models.moves import Move, MoveKind, moves_tensor
from support.patience import PATIENCE_S

NUM_LAYERS, NUM_BLOCKS, BLOCK = 3, 6, (2, 16, 8)
PIECE_BYTES = 2 * 16 * 8 * 4
SLOT_BYTES = NUM_LAYERS * PIECE_BYTES
FAST = "dram:64KiB"
SLOW = "cxl:64KiB@0.001GB/s,1us"  # 3 ms for a block
STALLED = "cxl:64KiB@1GB/s,9900ms"  # answers after ten seconds, and nobody expects that
STALLED_PLACE = 2
EVICT, FETCH, STORE = MoveKind.EVICT, MoveKind.FETCH, MoveKind.STORE


class Bench:
    """A cache, its tiers, and passes that write what they are told to."""

    def __init__(self, tiers: Sequence[str], num_slots: int = 8) -> None:
        self.cache = torch.zeros((NUM_LAYERS, NUM_BLOCKS, *BLOCK))
        self.memory = SlotMemory([KvTierSpec.parse(text) for text in tiers], SLOT_BYTES)
        self.memory.allocate([num_slots] * len(tiers))
        self.read: dict[tuple[int, int], npt.NDArray[np.float32]] = {}  # by layer and block, of the last pass
        self.mover = TierMover(self.cache, self.memory, PATIENCE_S)

    def run(self, *moves: Move, writes: dict[int, int] | None = None) -> set[int]:
        """One pass that writes a number over each block of `writes`, layer by layer. Returns what failed."""
        self.read.clear()
        self.mover.begin(batch(moves, writes or {}))
        for layer in range(NUM_LAYERS):
            self.run_layer(layer, moves, writes or {})
        for layer in range(NUM_LAYERS):
            if any(move.kind is STORE for move in moves):
                self.mover.store(layer)
        found = self.mover.end().failed
        self.given_up = [-number for number in found if number < 0]
        return {number for number in found if number >= 0}

    def run_layer(self, layer: int, moves: tuple[Move, ...], writes: dict[int, int]) -> None:
        kinds = {move.kind for move in moves}
        if EVICT in kinds:
            self.mover.evict(layer)
        if FETCH in kinds:
            self.mover.fetch(layer)
        for move in moves:
            if move.kind is FETCH:
                self.read[layer, move.to_index] = self.cache[layer, move.to_index].numpy().copy()
        for block, number in writes.items():
            self.cache[layer, block] = contents(number)[layer]

    def write(self, *numbers: int) -> None:
        """Fills the first blocks."""
        for block, number in enumerate(numbers):
            self.cache[:, block] = contents(number)

    def local(self, block: int) -> npt.NDArray[np.float32]:
        return self.cache[:, block].numpy()

    def run_too_long(self, *moves: Move, writes: dict[int, int] | None = None) -> set[int]:
        """A pass that waits no longer when what is not behind a tier that stalls is there."""
        begin_moving = self.mover._begin_moving

        def late(moving: tier_mover._Pass) -> None:
            begin_moving(moving)
            for copies in chain.from_iterable(moving.under_way.values()):
                if STALLED_PLACE in copies.rows[:, [tier_copies.FROM, tier_copies.TO]]:
                    break
                copies.completion.wait(PATIENCE_S)
            moving.deadline_s = 0.0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.mover, "_begin_moving", late)
            return self.run(*moves, writes=writes)

    def settle(self) -> None:
        """Returns when no store is under way."""
        for stores in self.mover._stores._pending:
            stores.completion.wait(PATIENCE_S)
        assert not self.mover.is_busy

    def slot(self, place: int, index: int) -> npt.NDArray[np.float32]:
        """The contents of a slot, when nothing is under way."""
        self.settle()
        held = np.asarray(self.memory.buffers[place - 1]).view(np.uint8)
        own = held[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]
        return own.view(np.float32).reshape(NUM_LAYERS, *BLOCK)

    def poison(self, place: int, index: int, layer: int = 0) -> None:
        buffer = self.memory.buffers[place - 1]
        buffer.tier.poison(buffer.address + index * SLOT_BYTES + layer * PIECE_BYTES + 64, 64)


def batch(moves: tuple[Move, ...], writes: dict[int, int]) -> ForwardBatch:
    """One that writes the last token of each block of `writes`."""
    made = ForwardBatch.prefill(max(1, len(writes)), vocab_size=16)
    slots = [block * 16 + 15 for block in writes] or [-1]
    return replace(made, slots=torch.tensor(slots, dtype=torch.int32), moves=moves_tensor([*moves]))


def contents(number: int) -> torch.Tensor:
    """The contents of a block that `number` names: different ones in every layer and place."""
    size = NUM_LAYERS * int(np.prod(BLOCK))
    return (torch.arange(size, dtype=torch.float32) + number * 10_000).reshape(NUM_LAYERS, *BLOCK)


@contextmanager
def opened(*tiers: str) -> Iterator[Bench]:
    bench = Bench(tiers)
    try:
        yield bench
    finally:
        bench.mover.close()
        assert bench.memory.context.closed
