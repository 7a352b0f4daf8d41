"""TierMover: carries out one rank's part of the moves of a pass, layer by layer, beside the pass.

Evictions and fetches of a pass are submitted together, when the first of their steps runs, and each step waits for its
layer. Stores are submitted as their layers are done, on a queue of their own, and are not waited for: a later pass
waits, where it would overwrite a block that is still being read, or use a slot that is still being written.

A tier that fails costs misses: `failed_blocks` has the blocks that a pass should have fetched and could not. What could
not be written is remembered, and fails when it is fetched. A tier that does not answer in time is used no more.

Invariants
1. No copy into local memory, and none out of a block that may be overwritten, is under way after the step that waits
   for it: what is late is cancelled, and its end awaited.
2. A slot whose contents are not what was last to be stored there is in `_broken`.

Thread safety: none; `evict`, `fetch` and `store` are called by one lane at a time, between `begin` and `end`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interlace.engine.cache.tier_memory import SlotMemory
from interlace.errors import EngineError
from interlace.models.batch import ForwardBatch
from interlace.models.moves import LOCAL, MoveKind
from tokenweave.kernels import BLOCK_SIZE

if TYPE_CHECKING:
    from emucxl.copy_engine import Completion, CopyEngine, IndexedCopy

Rows = npt.NDArray[np.int32]  # (num_moves, 5)
Slot = tuple[int, int]  # a place, and an index there
MAX_BACKLOG_BYTES = 256 << 20  # of stores under way, above which no more are asked for
CANCEL_S = 5.0  # a cancelled copy ends between two pieces, which takes microseconds
_KIND, _FROM, _FROM_INDEX, _TO, _TO_INDEX = range(5)
_log = logging.getLogger(__name__)


@dataclass
class TierTraffic:
    """The bytes that went between the KV cache of one rank and one tier since the engine was made."""

    fetched_bytes: int = 0
    written_bytes: int = 0
    num_fetches: int = 0  # passes that fetched from it
    fetch_s: float = 0.0  # from asking to the last layer's arrival
    num_failures: int = 0  # blocks that could not be fetched or written
    is_given_up: bool = False


@dataclass
class _Stores:
    """Copies to tiers that nobody waits for yet."""

    completion: Completion
    rows: Rows
    size_bytes: int


@dataclass
class _Pass:
    """The moves of the pass that runs."""

    evictions: Rows
    fetches: Rows
    stores: Rows  # of blocks that this pass fills
    settled: Rows  # stores of blocks that were full before it
    failed: set[int] = field(default_factory=set)
    copies: dict[tuple[MoveKind, int], Completion] = field(default_factory=dict)  # by kind and layer
    is_submitted: bool = False
    start_s: float = 0.0


class TierMover:
    """The moves of one rank, between its KV cache and the slots of its tiers."""

    def __init__(self, cache: Tensor, memory: SlotMemory, timeout_s: float) -> None:
        """`cache` is (num_layers, num_blocks, *block), contiguous, on the CPU. A fetch that takes `timeout_s` longer
        than its tier is modelled to take is given up."""
        from emucxl.copy_engine import CopyEngine

        self._memory, self._timeout_s = memory, timeout_s
        self._num_layers, self._num_blocks = cache.shape[:2]
        self._piece_bytes = cache[0, 0].numel() * cache.itemsize
        self._local = cache.view(torch.uint8).reshape(-1).numpy()
        self.traffic = [TierTraffic() for _ in memory.specs]
        self._up: CopyEngine = CopyEngine(memory.context)
        self._down: CopyEngine = CopyEngine(memory.context)
        self._pending: deque[_Stores] = deque()
        self._broken: set[Slot] = set()
        self._pass: _Pass | None = None

    @property
    def is_busy(self) -> bool:
        """Whether so many stores are under way that no more should be asked for."""
        self._reap()
        return sum(stores.size_bytes for stores in self._pending) > MAX_BACKLOG_BYTES

    def begin(self, batch: ForwardBatch) -> None:
        """The pass over `batch` is about to run: waits for whatever would be in its way."""
        rows: Rows = batch.moves.numpy()
        if not len(rows) and not self._pending:
            self._pass = None
            return
        slots = batch.slots.numpy()
        written = {*np.unique(slots[slots >= 0] // BLOCK_SIZE).tolist()}
        kinds = rows[:, _KIND]
        stores = self._in_order(rows[kinds == MoveKind.STORE])
        is_filled = np.isin(stores[:, _FROM_INDEX], [*written])
        moves = _Pass(
            self._in_order(rows[kinds == MoveKind.EVICT]),
            rows[kinds == MoveKind.FETCH],
            stores[is_filled],
            stores[~is_filled],
        )
        self._pass = moves
        used = {*_slots_of(rows, _FROM), *_slots_of(rows, _TO), *((LOCAL, block) for block in written)}
        self._clear_way(used)
        self._drop_broken(moves)

    def end(self) -> set[int]:
        """The pass has run. Returns the blocks that it should have fetched and could not: it read nonsense there."""
        moves, self._pass = self._pass, None
        if moves is None:
            return set()
        self._count_fetches(moves)
        return moves.failed

    def evict(self, layer: int) -> None:
        """Returns once what the pass overwrites in `layer` is written down, or given up."""
        self._wait_for(MoveKind.EVICT, layer)

    def fetch(self, layer: int) -> None:
        """Returns once the blocks of `layer` are there that the pass reads, or are given up."""
        self._wait_for(MoveKind.FETCH, layer)

    def store(self, layer: int) -> None:
        """Begins to write the full blocks of `layer` down; with layer 0, all layers of those that were full before."""
        moves = self._running
        if layer == 0 and len(moves.settled):
            self._begin_stores(moves.settled, range(self._num_layers))
        if len(moves.stores):
            self._begin_stores(moves.stores, range(layer, layer + 1))

    def close(self) -> None:
        """Ends what is under way, and gives the tiers' memory back."""
        for stores in self._pending:
            stores.completion.cancel()
        for engine in (self._up, self._down):
            engine.close()
        self._pending.clear()
        self._memory.close()

    @property
    def _running(self) -> _Pass:
        assert self._pass is not None, "a step outside of a pass"
        return self._pass

    # ---- evictions and fetches ------------------------------------------------------------------------------------

    def _submit(self, moves: _Pass) -> None:
        """Queues the evictions and fetches of all layers: of each layer the evictions first, which one thread keeps."""
        moves.is_submitted, moves.start_s = True, time.monotonic()
        for layer in range(self._num_layers):
            for kind, rows in ((MoveKind.EVICT, moves.evictions), (MoveKind.FETCH, moves.fetches)):
                if len(rows):
                    copies = self._copies(rows, range(layer, layer + 1))
                    moves.copies[kind, layer] = self._up.submit([*copies])

    def _wait_for(self, kind: MoveKind, layer: int) -> None:
        from emucxl.errors import EmucxlError, WaitTimeout

        moves = self._running
        if not moves.is_submitted:
            self._submit(moves)
        completion = moves.copies.pop((kind, layer), None)
        if completion is None:
            return
        try:
            completion.wait(self._left_s(moves))
        except WaitTimeout:
            moves.copies[kind, layer] = completion
            self._give_up(moves)
        except EmucxlError as error:
            if kind is MoveKind.EVICT:
                self._break(moves.evictions, str(error))
            else:
                self._fetch_each(moves, layer)

    def _left_s(self, moves: _Pass) -> float:
        """How long may still be waited: once the timeout has passed, not at all."""
        expected_s = self._expected_s(moves.evictions) + self._expected_s(moves.fetches)
        return max(0.0, moves.start_s + self._timeout_s + 2 * expected_s - time.monotonic())

    def _expected_s(self, rows: Rows) -> float:
        """Seconds that `rows` are modelled to take; 0 for tiers that are as fast as they are."""
        seconds = 0.0
        for column, attribute in ((_FROM, "read_bandwidth_gbps"), (_TO, "write_bandwidth_gbps")):
            for place, count in zip(*np.unique(rows[:, column], return_counts=True), strict=True):
                timing = None if place == LOCAL else self._memory.specs[place - 1].timing
                bandwidth_gbps = 0.0 if timing is None else getattr(timing, attribute)
                if bandwidth_gbps:
                    seconds += int(count) * self._memory.slot_bytes / (bandwidth_gbps * 1e9)
        return seconds

    def _fetch_each(self, moves: _Pass, layer: int) -> None:
        """Fetches a layer's blocks one by one, as one of them could not be read."""
        from emucxl.errors import EmucxlError

        for row in moves.fetches:
            rows = row[None]
            try:
                self._up.submit([*self._copies(rows, range(layer, layer + 1))]).wait(self._left_s(moves))
            except EmucxlError as error:
                moves.failed.add(int(row[_TO_INDEX]))
                self._break_slots([(int(row[_FROM]), int(row[_FROM_INDEX]))], str(error))

    def _give_up(self, moves: _Pass) -> None:
        """The tiers that the pass moves from or to don't answer: ends its copies, and uses the tiers no more."""
        for completion in moves.copies.values():
            completion.cancel()
        for completion in moves.copies.values():
            _await_end(completion)
        moves.copies.clear()
        self._break(moves.evictions, "not written in time")
        moves.failed.update(moves.fetches[:, _TO_INDEX].tolist())
        slow = {*moves.fetches[:, _FROM].tolist(), *moves.evictions[:, _TO].tolist()} - {LOCAL}
        self._close_tiers(slow, f"nothing arrived within {self._timeout_s:g} s")

    def _count_fetches(self, moves: _Pass) -> None:
        elapsed_s = time.monotonic() - moves.start_s
        for place, count in zip(*np.unique(moves.fetches[:, _FROM], return_counts=True), strict=True):
            traffic = self.traffic[place - 1]
            traffic.num_fetches += 1
            traffic.fetched_bytes += int(count) * self._memory.slot_bytes
            traffic.fetch_s += elapsed_s
        for place, count in zip(*np.unique(moves.evictions[:, _TO], return_counts=True), strict=True):
            self.traffic[place - 1].written_bytes += int(count) * self._memory.slot_bytes

    # ---- stores -----------------------------------------------------------------------------------------------------

    def _begin_stores(self, rows: Rows, layers: range) -> None:
        size_bytes = len(rows) * len(layers) * self._piece_bytes
        self._broken.difference_update(_slots_of(rows, _TO))
        self._pending.append(_Stores(self._down.submit([*self._copies(rows, layers)]), rows, size_bytes))
        for place, count in zip(*np.unique(rows[:, _TO], return_counts=True), strict=True):
            self.traffic[place - 1].written_bytes += int(count) * len(layers) * self._piece_bytes

    def _reap(self) -> None:
        """Collects the stores that are done, in order."""
        while self._pending and self._pending[0].completion.done:
            self._collect(self._pending.popleft(), 0.0)

    def _clear_way(self, used: set[Slot]) -> None:
        """Waits for stores under way that read or write one of `used`, and for those before them."""
        self._reap()
        last = -1
        for index, stores in enumerate(self._pending):
            if used & {*_slots_of(stores.rows, _FROM), *_slots_of(stores.rows, _TO)}:
                last = index
        for _ in range(last + 1):
            stores = self._pending.popleft()
            self._collect(stores, self._timeout_s + 2 * self._expected_s(stores.rows))

    def _collect(self, stores: _Stores, timeout_s: float) -> None:
        from emucxl.errors import EmucxlError, WaitTimeout

        try:
            stores.completion.wait(timeout_s)
        except WaitTimeout:
            stores.completion.cancel()
            _await_end(stores.completion)
            self._break(stores.rows, "not written in time")
            self._close_tiers({*stores.rows[:, _TO].tolist()}, f"nothing was written within {timeout_s:g} s")
        except EmucxlError as error:
            self._break(stores.rows, str(error))

    # ---- what does not work -----------------------------------------------------------------------------------------

    def _drop_broken(self, moves: _Pass) -> None:
        """Takes out what cannot be fetched, as failed, and what goes to a tier that was given up."""
        is_broken = np.array([slot in self._broken for slot in _slots_of(moves.fetches, _FROM)], dtype=bool)
        is_broken |= self._is_given_up(moves.fetches[:, _FROM])
        moves.failed.update(moves.fetches[is_broken, _TO_INDEX].tolist())
        for row in moves.fetches[is_broken]:
            self.traffic[row[_FROM] - 1].num_failures += 1
        moves.fetches = moves.fetches[~is_broken]

    def _in_order(self, rows: Rows) -> Rows:
        """Those of `rows` that can be made. Where the others would have written is broken from now on."""
        if not any(traffic.is_given_up for traffic in self.traffic) and not self._broken:
            return rows
        kept = []
        for index, row in enumerate(rows):
            source, target = (int(row[_FROM]), int(row[_FROM_INDEX])), (int(row[_TO]), int(row[_TO_INDEX]))
            is_lost = source in self._broken or bool(self._is_given_up(row[[_FROM, _TO]]).any())
            if is_lost:
                self._broken.add(target)
            else:
                self._broken.discard(target)
                kept.append(index)
        return rows[kept]

    def _is_given_up(self, places: Rows) -> npt.NDArray[np.bool_]:
        given_up = [False, *(traffic.is_given_up for traffic in self.traffic)]
        return np.array([given_up[place] for place in places.tolist()], dtype=bool)

    def _break(self, rows: Rows, reason: str) -> None:
        self._break_slots([slot for slot in _slots_of(rows, _TO) if slot[0] != LOCAL], reason)

    def _break_slots(self, slots: list[Slot], reason: str) -> None:
        self._broken.update(slots)
        for place in {place for place, _ in slots}:
            count = sum(other == place for other, _ in slots)
            self.traffic[place - 1].num_failures += count
            _log.warning(
                "the tier %r has lost %d blocks: %s", self._memory.specs[place - 1].text, count, reason
            )

    def _close_tiers(self, places: Iterable[int], reason: str) -> None:
        for place in places:
            if not self.traffic[place - 1].is_given_up:
                self.traffic[place - 1].is_given_up = True
                _log.warning("the tier %r is used no more: %s", self._memory.specs[place - 1].text, reason)

    # ---- copies -----------------------------------------------------------------------------------------------------

    def _copies(self, rows: Rows, layers: range) -> Iterator[IndexedCopy]:
        """`rows` in some layers, in their order; one copy for neighbours between the same places."""
        from emucxl.copy_engine import IndexedCopy

        for (source, target), group in groupby(rows, key=lambda row: (int(row[_FROM]), int(row[_TO]))):
            own = np.array([*group])
            yield IndexedCopy(
                self._memory_of(target),
                self._memory_of(source),
                self._piece_bytes,
                self._offsets(target, own[:, _TO_INDEX], layers),
                self._offsets(source, own[:, _FROM_INDEX], layers),
            )

    def _memory_of(self, place: int) -> object:
        return self._local if place == LOCAL else self._memory.buffers[place - 1]

    def _offsets(self, place: int, indices: Rows, layers: range) -> npt.NDArray[np.int64]:
        """Where the pieces of `indices` begin: those of the first of `layers`, then of the next."""
        block_bytes = self._piece_bytes if place == LOCAL else self._memory.slot_bytes
        layer_bytes = self._num_blocks * self._piece_bytes if place == LOCAL else self._piece_bytes
        first = indices.astype(np.int64) * block_bytes
        return (np.arange(layers.start, layers.stop, dtype=np.int64)[:, None] * layer_bytes + first).reshape(
            -1
        )


def _slots_of(rows: Rows, column: int) -> list[Slot]:
    """The slots that `rows` come from, or go to: `column` is that of the place."""
    return [(place, index) for place, index in rows[:, column : column + 2].tolist()]


def _await_end(completion: Completion) -> None:
    """Waits for a cancelled batch to touch nothing any more.

    Raises:
        EngineError: it does not end. Its memory hangs, and so would whatever used the block next.
    """
    from emucxl.errors import EmucxlError, WaitTimeout

    try:
        completion.wait(CANCEL_S)
    except WaitTimeout as error:
        raise EngineError(
            f"a copy from or to a tier of the KV cache did not end within {CANCEL_S:g} s of being cancelled: "
            f"is its device there?"
        ) from error
    except EmucxlError:
        return
