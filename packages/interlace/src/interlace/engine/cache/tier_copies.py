"""TierCopies: makes copies of a rank's moves, between its KV cache and the slots of its tiers.

A block is a piece in each layer. In the cache the pieces of a layer lie together, in a slot those of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interlace.engine.cache.tier_memory import SlotMemory
from interlace.errors import EngineError
from interlace.models.moves import LOCAL

if TYPE_CHECKING:
    from emucxl.copy_engine import Completion, CopyEngine, IndexedCopy

Rows = npt.NDArray[np.int32]  # (num_moves, 5): see Move
Slot = tuple[int, int]  # a place, and an index there
KIND, FROM, FROM_INDEX, TO, TO_INDEX = range(5)  # columns of Rows
COPY_GBPS = 5.0  # of a core
LEAST_GBPS = 1.0  # no tier is late before so much could have been copied, for the machine may be busy
CANCEL_S = 5.0  # a cancelled copy ends between two pieces, which takes microseconds


@dataclass(frozen=True)
class Batch:
    """Copies that are under way."""

    completion: Completion
    rows: Rows
    size_bytes: int
    expected_s: float  # with the tier to themselves

    @property
    def patience_s(self) -> float:
        """Seconds that they may take on a busy machine."""
        return patience_s(self.expected_s, self.size_bytes)


class TierCopies:
    """Submits copies, and knows how long they may take. Thread safety: any call from any thread."""

    def __init__(
        self, cache: Tensor, memory: SlotMemory, on_refusal: Callable[[Rows, Exception], None]
    ) -> None:
        """`cache` is (num_layers, num_blocks, *block), contiguous, on the CPU. `on_refusal` is told of each row that
        cannot be copied."""
        self._memory, self._on_refusal = memory, on_refusal
        self.num_layers, self.num_blocks = cache.shape[:2]
        self._piece_bytes = cache[0, 0].numel() * cache.itemsize
        self._local = cache.view(torch.uint8).reshape(-1).numpy()
        self._read_s, self._write_s = (self._block_s(f"{way}_bandwidth_gbps") for way in ("read", "write"))

    def submit(self, engine: CopyEngine, rows: Rows, layers: range) -> tuple[list[Batch], Rows]:
        """Queues `rows` as one batch; one by one where one of them cannot be made, for poison is met at once.

        Returns what is under way, and the rows that are not.
        """
        from emucxl.errors import EmucxlError

        if not len(rows):
            return [], rows
        try:
            completion = engine.submit(self.of(rows, layers))
        except EmucxlError as error:
            if len(rows) == 1:
                self._on_refusal(rows, error)
                return [], rows
            parts = [self.submit(engine, row[None], layers) for row in rows]
            return [batch for made, _ in parts for batch in made], np.concatenate([each for _, each in parts])
        size_bytes = len(rows) * len(layers) * self._piece_bytes
        expected_s = self.expected_s(rows) * len(layers) / self.num_layers
        return [Batch(completion, rows, size_bytes, expected_s)], rows[:0]

    def of(self, rows: Rows, layers: range) -> list[IndexedCopy]:
        """`rows` in some layers, in their order; one copy for neighbours between the same places."""
        from emucxl.copy_engine import IndexedCopy

        changes = np.flatnonzero((rows[1:, [FROM, TO]] != rows[:-1, [FROM, TO]]).any(axis=1)) + 1
        return [
            IndexedCopy(
                self._memory_of(int(own[0, TO])),
                self._memory_of(int(own[0, FROM])),
                self._piece_bytes,
                self._offsets(int(own[0, TO]), own[:, TO_INDEX], layers),
                self._offsets(int(own[0, FROM]), own[:, FROM_INDEX], layers),
            )
            for own in np.split(rows, changes)
        ]

    def answers(self, place: int, timeout_s: float) -> bool:
        """Whether a few bytes of a tier can be read in time, or are refused."""
        from emucxl.copy_engine import CopyEngine
        from emucxl.errors import EmucxlError, WaitTimeout

        with CopyEngine(self._memory.context) as engine:  # of its own, for others have copies that wait
            try:
                completion = engine.submit([(bytearray(8), self._memory.buffers[place - 1], 8)])
                completion.wait(timeout_s)
            except WaitTimeout:
                completion.cancel()
                return _has_come(completion)
            except EmucxlError:
                return True
        return True

    def expected_s(self, rows: Rows) -> float:
        """Seconds that all layers of `rows` are expected to take, one behind the other."""
        return float(self._read_s[rows[:, FROM]].sum() + self._write_s[rows[:, TO]].sum())

    def patience_s(self, rows: Rows) -> float:
        """Seconds that all layers of `rows` may take on a busy machine."""
        return patience_s(self.expected_s(rows), len(rows) * self._memory.slot_bytes)

    def _block_s(self, attribute: str) -> npt.NDArray[np.float64]:
        """Seconds for a block, by place."""
        modelled = [getattr(spec.timing, attribute, 0.0) or COPY_GBPS for spec in self._memory.specs]
        gbps = np.array([np.inf, *(min(each, COPY_GBPS) for each in modelled)])
        return self._memory.slot_bytes / (gbps * 1e9)

    def _memory_of(self, place: int) -> object:
        return self._local if place == LOCAL else self._memory.buffers[place - 1]

    def _offsets(self, place: int, indices: Rows, layers: range) -> npt.NDArray[np.int64]:
        """Where the pieces of `indices` begin: those of the first of `layers`, then of the next."""
        block_bytes = self._piece_bytes if place == LOCAL else self._memory.slot_bytes
        layer_bytes = self.num_blocks * self._piece_bytes if place == LOCAL else self._piece_bytes
        first = indices.astype(np.int64) * block_bytes
        of_layers = np.arange(layers.start, layers.stop, dtype=np.int64)[:, None] * layer_bytes
        return (of_layers + first).reshape(-1)


def patience_s(expected_s: float, size_bytes: int) -> float:
    return 2 * expected_s + size_bytes / (LEAST_GBPS * 1e9)


def cancel(batches: Collection[Batch]) -> list[Batch]:
    """Ends them early. Returns those that have not come to their end.

    Raises:
        EngineError: one does not end. Its memory hangs, and so would whatever used the block next.
    """
    for batch in batches:
        batch.completion.cancel()
    return [batch for batch in batches if not _has_come(batch.completion)]


def slots_of(rows: Rows, column: int) -> list[Slot]:
    """The slots that `rows` come from, or go to: `column` is that of the place."""
    return [(place, index) for place, index in rows[:, column : column + 2].tolist()]


def by_place(rows: Rows, column: int) -> list[Rows]:
    """`rows` in parts that have one place in `column` each."""
    return [rows[rows[:, column] == place] for place in np.unique(rows[:, column])]


def without(rows: Rows, column: int, slots: Collection[Slot]) -> Rows:
    """Those of `rows` that have none of `slots` in `column`."""
    if not slots:
        return rows
    kept: Rows = rows[np.array([slot not in slots for slot in slots_of(rows, column)], dtype=bool)]
    return kept


def _has_come(completion: Completion) -> bool:
    """Waits for a cancelled batch to touch nothing any more. Returns True where all of it was moved before."""
    from emucxl.errors import EmucxlError, WaitTimeout

    try:
        completion.wait(CANCEL_S)
    except WaitTimeout as error:
        raise EngineError(
            f"a copy from or to a tier of the KV cache did not end within {CANCEL_S:g} s of being cancelled: "
            f"is its device there?"
        ) from error
    except EmucxlError:
        return False
    return True
