"""Fetches alone: the engine's own mover fetches the blocks of a prompt with no pass beside it, and NumPy copies them.

Both move the same pieces, of one layer of one block each, from slots of a tier, which hold a block in all layers, to
a KV cache, which holds all blocks layer by layer.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.cache.tier_memory import SlotMemory
from interlace.engine.cache.tier_mover import TierMover
from interlace.errors import BenchError
from interlace.models.batch import ForwardBatch
from interlace.models.moves import LOCAL, Move, MoveKind, moves_tensor

TIMEOUT_S = 60.0
TIER = 1  # the place of the tier


class LoneFetch:
    """As many blocks of a KV cache as are fetched for one prompt, in a tier."""

    def __init__(self, tier: str, like: torch.Tensor, num_blocks: int) -> None:
        """`like`: a KV cache, (num_layers, blocks, *block), whose blocks are copied from."""
        self._cache = like.new_zeros((like.shape[0], num_blocks, *like.shape[2:]))
        self._local = self._cache.view(torch.uint8).reshape(*self._cache.shape[:2], -1).numpy()
        slot_bytes = self._local[:, 0].nbytes
        self.size_bytes = num_blocks * slot_bytes
        spec = KvTierSpec.parse(tier)
        memory = SlotMemory([replace(spec, size_bytes=self.size_bytes)], slot_bytes)
        memory.allocate([num_blocks])
        self._mover = TierMover(self._cache, memory, TIMEOUT_S)
        slots = np.frombuffer(memory.buffers[0], np.uint8, self.size_bytes)  # type: ignore[call-overload]
        self._slots = slots.reshape(num_blocks, like.shape[0], -1)  # (num_blocks, num_layers, piece_bytes)
        self._numbers = range(num_blocks)
        self._fill()

    def fetch(self) -> float:
        """Seconds that the mover takes, from asking for the first layer to the arrival of the last."""
        moves = [Move(MoveKind.FETCH, TIER, number, LOCAL, number) for number in self._numbers]
        return self._move(moves)

    def copy(self) -> float:
        """Seconds that NumPy takes for the same, as one strided copy."""
        start_s = time.perf_counter()
        np.copyto(self._local, self._slots.swapaxes(0, 1))
        return time.perf_counter() - start_s

    def check(self) -> None:
        """Raises BenchError unless both bring what was written down."""
        expected = self._slots.swapaxes(0, 1)
        for bring in (self.fetch, self.copy):
            self._local.fill(0)
            bring()
            if not np.array_equal(self._local, expected):
                raise BenchError("a fetch brought other bytes than are in the tier; nothing was timed")

    def close(self) -> None:
        del self._slots
        self._mover.close()

    def _fill(self) -> None:
        """Different bytes in every piece, written down by the mover."""
        numbers = np.random.default_rng(0)
        self._local[...] = numbers.integers(0, 256, self._local.shape, np.uint8)
        self._move([Move(MoveKind.EVICT, LOCAL, number, TIER, number) for number in self._numbers])
        if not np.array_equal(self._local.swapaxes(0, 1), self._slots):
            raise BenchError("a tier holds other bytes than were written there; nothing was timed")

    def _move(self, moves: list[Move]) -> float:
        batch = replace(ForwardBatch.prefill(1, 2), slots=torch.full((1,), -1), moves=moves_tensor(moves))
        step = self._mover.fetch if moves[0].kind is MoveKind.FETCH else self._mover.evict
        start_s = time.perf_counter()
        self._mover.begin(batch)  # asks for the first layers
        for layer in range(self._cache.shape[0]):
            step(layer)
        taken_s = time.perf_counter() - start_s
        if self._mover.end().failed:
            raise BenchError("a tier did not give back what was written there")
        return taken_s
