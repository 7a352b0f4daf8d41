"""TierCopies: the copies that a rank's moves are, between its KV cache and the slots of its tiers.

A block is a piece in each layer. In the cache the pieces of a layer lie together, in a slot those of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interlace.engine.cache.tier_memory import SlotMemory
from interlace.models.moves import LOCAL

if TYPE_CHECKING:
    from emucxl.copy_engine import IndexedCopy

Rows = npt.NDArray[np.int32]  # (num_moves, 5): see Move
Slot = tuple[int, int]  # a place, and an index there
KIND, FROM, FROM_INDEX, TO, TO_INDEX = range(5)  # columns of Rows
MOST_GBPS = 5.0  # that a core copies
LEAST_GBPS = 1.0  # no tier is expected to be faster, so that a deadline is no test of a busy machine


class TierCopies:
    """Where the bytes of moves are, and how long they may take. Thread safety: any call from any thread."""

    def __init__(self, cache: Tensor, memory: SlotMemory) -> None:
        """`cache` is (num_layers, num_blocks, *block), contiguous, on the CPU."""
        self._memory = memory
        self.num_layers, self.num_blocks = cache.shape[:2]
        self.piece_bytes = cache[0, 0].numel() * cache.itemsize
        self._local = cache.view(torch.uint8).reshape(-1).numpy()
        self._read_s, self._write_s = self._block_s("read", LEAST_GBPS), self._block_s("write", LEAST_GBPS)
        self._fast_read_s, self._fast_write_s = (
            self._block_s("read", MOST_GBPS),
            self._block_s("write", MOST_GBPS),
        )

    def of(self, rows: Rows, layers: range) -> list[IndexedCopy]:
        """`rows` in some layers, in their order; one copy for neighbours between the same places."""
        from emucxl.copy_engine import IndexedCopy

        changes = np.flatnonzero((rows[1:, [FROM, TO]] != rows[:-1, [FROM, TO]]).any(axis=1)) + 1
        return [
            IndexedCopy(
                self._memory_of(int(own[0, TO])),
                self._memory_of(int(own[0, FROM])),
                self.piece_bytes,
                self._offsets(int(own[0, TO]), own[:, TO_INDEX], layers),
                self._offsets(int(own[0, FROM]), own[:, FROM_INDEX], layers),
            )
            for own in np.split(rows, changes)
        ]

    def expected_s(self, rows: Rows) -> float:
        """Seconds that all layers of `rows` are expected to take, one behind the other."""
        return float(self._read_s[rows[:, FROM]].sum() + self._write_s[rows[:, TO]].sum())

    def least_s(self, rows: Rows) -> float:
        """Seconds that all layers of `rows` may take at best."""
        return float(self._fast_read_s[rows[:, FROM]].sum() + self._fast_write_s[rows[:, TO]].sum())

    def _block_s(self, way: str, most_gbps: float) -> npt.NDArray[np.float64]:
        """Seconds for a block, by place, where no tier is faster than `most_gbps`."""
        name = f"{way}_bandwidth_gbps"
        modelled = [getattr(spec.timing, name, 0.0) or most_gbps for spec in self._memory.specs]
        gbps = np.array([np.inf, *(min(each, most_gbps) for each in modelled)])
        return self._memory.slot_bytes / (gbps * 1e9)

    def _memory_of(self, place: int) -> object:
        return self._local if place == LOCAL else self._memory.buffers[place - 1]

    def _offsets(self, place: int, indices: Rows, layers: range) -> npt.NDArray[np.int64]:
        """Where the pieces of `indices` begin: those of the first of `layers`, then of the next."""
        block_bytes = self.piece_bytes if place == LOCAL else self._memory.slot_bytes
        layer_bytes = self.num_blocks * self.piece_bytes if place == LOCAL else self.piece_bytes
        first = indices.astype(np.int64) * block_bytes
        of_layers = np.arange(layers.start, layers.stop, dtype=np.int64)[:, None] * layer_bytes
        return (of_layers + first).reshape(-1)


def slots_of(rows: Rows, column: int) -> list[Slot]:
    """The slots that `rows` come from, or go to: `column` is that of the place."""
    return [(place, index) for place, index in rows[:, column : column + 2].tolist()]


def by_place(rows: Rows, column: int) -> list[Rows]:
    """`rows` in parts that have one place in `column` each."""
    return [rows[rows[:, column] == place] for place in np.unique(rows[:, column])]
