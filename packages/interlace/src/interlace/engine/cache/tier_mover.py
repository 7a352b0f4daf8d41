"""TierMover: carries out one rank's part of the moves of a pass, layer by layer, beside the pass.

Evictions and fetches of a pass are submitted together, when it begins, and each step waits for its layer. Stores are
submitted as their layers are done, on a queue of their own, and are not waited for: a later pass waits, where it would
overwrite a block that is still being read, or use a slot that is still being written.

A submission takes tens of microseconds of the interpreter, which the compute lane needs too. So a few layers go in one
where they take little time.

A tier that fails costs misses: `end` returns the blocks that a pass should have fetched and could not. What could not
be written is remembered, and fails when it is fetched. A tier that does not answer in time is used no more.

Invariants
1. No copy into local memory, and none out of a block that may be overwritten, is under way after the step that waits
   for it: what is late is cancelled, and its end awaited.
2. A slot whose contents are not what was last to be written there is in `_broken`, between passes.

Thread safety: none; `evict`, `fetch` and `store` are called by one lane at a time, between `begin` and `end`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from interlace.engine.cache.tier_copies import (
    FROM,
    FROM_INDEX,
    KIND,
    TO,
    TO_INDEX,
    Rows,
    Slot,
    TierCopies,
    by_place,
    slots_of,
)
from interlace.engine.cache.tier_memory import SlotMemory
from interlace.errors import EngineError
from interlace.models.batch import ForwardBatch
from interlace.models.moves import LOCAL, MoveKind
from tokenweave.kernels import BLOCK_SIZE

if TYPE_CHECKING:
    from emucxl.copy_engine import Completion, CopyEngine
    from interlace.cache.kv_tier import KvTierSpec

MAX_BACKLOG_BYTES = 256 << 20  # of stores under way, above which no more are asked for
MAX_BACKLOG_S = 0.5  # that they are expected to take: a pass that needs one of their blocks waits for it
SUBMISSION_S = 1e-3  # of copying, that one submission is worth
MOST_LAYERS = 8  # in one submission, and in each of stores, for which nobody waits
MEASURED_SLOTS = 32  # for the speed of a tier
CANCEL_S = 5.0  # a cancelled copy ends between two pieces, which takes microseconds
_log = logging.getLogger(__name__)


@dataclass
class TierTraffic:
    """The bytes that went between the KV cache of one rank and one tier since the engine was made."""

    fetched_bytes: int = 0
    written_bytes: int = 0
    num_fetches: int = 0  # passes that fetched from it
    fetch_s: float = 0.0  # from asking to the last layer's arrival
    num_failures: int = 0  # blocks that could not be fetched or written
    num_told: int = 0  # of these, when somebody was last told
    is_given_up: bool = False


@dataclass(frozen=True)
class _Copies:
    """Copies that are under way."""

    completion: Completion
    rows: Rows
    size_bytes: int
    expected_s: float  # with the tier to themselves


@dataclass
class _Pass:
    """The moves of the pass that runs."""

    evictions: Rows
    fetches: Rows
    stores: Rows  # of blocks that this pass fills
    settled: Rows  # stores of blocks that were full before it
    failed: set[int] = field(default_factory=set)  # blocks
    lost: list[Slot] = field(default_factory=list)  # targets of evictions that were not made
    under_way: dict[tuple[MoveKind, int], deque[_Copies]] = field(
        default_factory=dict
    )  # by kind and first layer
    group: int = 1  # layers in one submission
    start_s: float = 0.0
    deadline_s: float = 0.0


class TierMover:
    """The moves of one rank, between its KV cache and the slots of its tiers."""

    def __init__(self, cache: Tensor, memory: SlotMemory, timeout_s: float) -> None:
        """`cache` is (num_layers, num_blocks, *block), contiguous, on the CPU. What takes `timeout_s` longer than its
        tier is expected to take is given up, and the tier with it."""
        from emucxl.copy_engine import CopyEngine

        self._memory, self._timeout_s = memory, timeout_s
        self._copies = TierCopies(cache, memory)
        self.traffic = [TierTraffic() for _ in memory.specs]
        self._up: CopyEngine = CopyEngine(memory.context)
        self._down: CopyEngine = CopyEngine(memory.context)
        self._pending: deque[_Copies] = deque()  # stores
        self._broken: set[Slot] = set()
        self._pass: _Pass | None = None

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return self._memory.slot_bytes

    @property
    def specs(self) -> tuple[KvTierSpec, ...]:
        return self._memory.specs

    @property
    def is_busy(self) -> bool:
        """Whether so many stores are under way that no more should be asked for."""
        while self._pending and self._pending[0].completion.done:
            self._collect(self._pending.popleft())
        return (
            sum(stores.size_bytes for stores in self._pending) > MAX_BACKLOG_BYTES
            or self._backlog_s() > MAX_BACKLOG_S
        )

    def measure_fetch_s(self, place: int) -> float:
        """Seconds that it takes to fetch a byte from a tier, at best of a few times. Only before the first pass.

        Some slots are written first: memory that was never touched is read out of the processor's caches.
        """
        num_slots = len(self._memory.buffers[place - 1]) // self._memory.slot_bytes
        count = min(MEASURED_SLOTS, self._copies.num_blocks, num_slots)
        rows = np.zeros((count, 5), dtype=np.int32)
        rows[:, FROM_INDEX] = rows[:, TO_INDEX] = np.arange(count)
        layers, best_s = range(self._copies.num_layers), float("inf")
        rows[:, TO] = place
        self._down.submit(self._copies.of(rows, layers)).wait(self._timeout_s)
        rows[:, [FROM, TO]] = rows[:, [TO, FROM]]
        for _ in range(3):
            start_s = time.perf_counter()
            self._up.submit(self._copies.of(rows, layers)).wait(self._timeout_s)
            best_s = min(best_s, time.perf_counter() - start_s)
        return float(best_s / (count * self._memory.slot_bytes))

    def begin(self, batch: ForwardBatch) -> None:
        """The pass over `batch` is about to run: waits for whatever would be in its way."""
        rows: Rows = batch.moves.numpy()
        if not len(rows) and not self._pending:
            self._pass = None
            return
        slots = batch.slots.numpy()
        written = np.unique(slots[slots >= 0] // BLOCK_SIZE)
        blocks = ((LOCAL, block) for block in written.tolist())
        self._clear_way({*slots_of(rows, FROM), *slots_of(rows, TO), *blocks})
        kinds = rows[:, KIND]
        evictions = self._that_can_be_made(rows[kinds == MoveKind.EVICT])
        stores = self._that_can_be_made(rows[kinds == MoveKind.STORE])
        is_filled = np.isin(stores[:, FROM_INDEX], written)
        fetches = rows[kinds == MoveKind.FETCH]
        self._pass = _Pass(evictions, fetches, stores[is_filled], stores[~is_filled])
        unreadable = [self._is_unusable(slot) for slot in slots_of(fetches, FROM)]
        self._pass.failed.update(fetches[np.array(unreadable, dtype=bool), TO_INDEX].tolist())
        if len(evictions) or len(fetches):
            self._begin_moving(self._pass)

    def end(self) -> set[int]:
        """The pass has run. Returns the blocks that it should have fetched and could not: it read nonsense there."""
        moves, self._pass = self._pass, None
        if moves is None:
            return set()
        self._settle_evictions(moves)
        self._count(moves)
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
        if layer == 0:
            self._store(moves.settled, range(self._copies.num_layers))
        layers = self._group_of(layer, MOST_LAYERS)
        if layer == layers[-1]:
            self._store(moves.stores, layers)

    def close(self) -> None:
        """Ends what is under way, and gives the tiers' memory back.

        Raises:
            EngineError: a copy does not end.
        """
        fetching = () if self._pass is None else self._pass.under_way.values()
        self._cancel([*self._pending, *(copies for queue in fetching for copies in queue)])
        self._pending.clear()
        self._pass = None
        for engine in (self._up, self._down):
            engine.close()
        self._memory.close()

    def _group_of(self, layer: int, size: int) -> range:
        """The layers that are moved with `layer`, where `size` are in one submission."""
        first = layer - layer % size
        return range(first, min(first + size, self._copies.num_layers))

    @property
    def _running(self) -> _Pass:
        assert self._pass is not None, "a step outside of a pass"
        return self._pass

    # ---- evictions and fetches ------------------------------------------------------------------------------------

    def _begin_moving(self, moves: _Pass) -> None:
        """Queues the evictions and fetches of all layers: of each layer the evictions first, which one thread keeps."""
        moves.start_s = time.monotonic()
        expected_s = self._copies.expected_s(moves.fetches) + self._copies.expected_s(moves.evictions)
        if len(moves.evictions):
            expected_s += self._backlog_s()  # a tier writes what it was given first
        moves.deadline_s = moves.start_s + self._timeout_s + 2 * expected_s
        fetches = by_place(moves.fetches, FROM)
        least_s = self._copies.least_s(moves.fetches) + self._copies.least_s(moves.evictions)
        moves.group = max(1, min(MOST_LAYERS, int(SUBMISSION_S * self._copies.num_layers / least_s)))
        for layer in range(0, self._copies.num_layers, moves.group):
            self._queue(moves, MoveKind.EVICT, layer, moves.evictions)
            for of_one_tier in fetches:
                self._queue(moves, MoveKind.FETCH, layer, of_one_tier)

    def _queue(self, moves: _Pass, kind: MoveKind, layer: int, rows: Rows) -> None:
        if moves.failed or moves.lost:  # in a layer before this one
            done_for = {*moves.lost, *((LOCAL, block) for block in moves.failed)}
            rows = _without(rows, TO, done_for)
        made, refused = self._submit(self._up, rows, self._group_of(layer, moves.group))
        moves.under_way.setdefault((kind, layer), deque()).extend(made)
        self._fail(moves, kind, refused)

    def _wait_for(self, kind: MoveKind, layer: int) -> None:
        from emucxl.errors import EmucxlError, WaitTimeout

        moves = self._running
        queue = moves.under_way.get((kind, layer), deque())
        while queue:
            rows = queue[0].rows
            try:
                queue[0].completion.wait(max(0.0, moves.deadline_s - time.monotonic()))
            except WaitTimeout:
                self._give_up(moves, _places_of(rows, TO if kind is MoveKind.EVICT else FROM))
                return
            except EmucxlError as error:
                if kind is MoveKind.FETCH and len(rows) > 1:  # each by itself, as some can be read
                    for row in rows:
                        self._queue(moves, kind, layer, row[None])
                else:
                    self._report(rows, str(error))
                    self._fail(moves, kind, rows)
            queue.popleft()

    def _give_up(self, moves: _Pass, places: set[int]) -> None:
        """These tiers don't answer: ends all copies of the pass, and uses the tiers no more."""
        self._close_tiers(places)
        for (kind, _), queue in moves.under_way.items():
            for copies in self._cancel(queue):
                if kind is MoveKind.EVICT:
                    moves.lost += slots_of(copies.rows, TO)
                else:
                    moves.failed.update(copies.rows[:, TO_INDEX].tolist())
        moves.under_way.clear()

    def _fail(self, moves: _Pass, kind: MoveKind, rows: Rows) -> None:
        """`rows` of the pass are not made: a tier cannot be read, or written, there."""
        if kind is MoveKind.EVICT:
            moves.lost += slots_of(rows, TO)
        else:
            moves.failed.update(rows[:, TO_INDEX].tolist())
            self._broken.update(slots_of(rows, FROM))

    def _settle_evictions(self, moves: _Pass) -> None:
        """Has blocks that were not written down read by nobody: not by this pass, nor where they were to go on to."""
        if not moves.lost:
            return
        lost = {*moves.lost}
        for source, target in zip(
            slots_of(moves.evictions, FROM), slots_of(moves.evictions, TO), strict=True
        ):
            if source in lost:
                lost.add(target)
        self._broken |= lost
        for source, block in zip(
            slots_of(moves.fetches, FROM), moves.fetches[:, TO_INDEX].tolist(), strict=True
        ):
            if source in lost:
                moves.failed.add(block)

    def _count(self, moves: _Pass) -> None:
        elapsed_s = time.monotonic() - moves.start_s
        for rows in by_place(moves.fetches, FROM):
            traffic = self.traffic[rows[0, FROM] - 1]
            traffic.num_fetches += 1
            traffic.fetched_bytes += len(rows) * self._memory.slot_bytes
            traffic.fetch_s += elapsed_s
        for rows in by_place(moves.evictions, TO):
            self.traffic[rows[0, TO] - 1].written_bytes += len(rows) * self._memory.slot_bytes

    # ---- stores -----------------------------------------------------------------------------------------------------

    def _store(self, rows: Rows, layers: range) -> None:
        for of_one_tier in by_place(_without(rows, TO, self._broken), TO):
            made, refused = self._submit(self._down, of_one_tier, layers)
            self._pending.extend(made)
            self._broken.update(slots_of(refused, TO))
            written_bytes = sum(stores.size_bytes for stores in made)
            self.traffic[of_one_tier[0, TO] - 1].written_bytes += written_bytes

    def _clear_way(self, used: set[Slot]) -> None:
        """Waits for stores under way that read or write one of `used`, and for those before them."""
        last = -1
        for index, stores in enumerate(self._pending):
            if used & {*slots_of(stores.rows, FROM), *slots_of(stores.rows, TO)}:
                last = index
        for _ in range(last + 1):
            self._collect(self._pending.popleft())

    def _collect(self, stores: _Copies) -> None:
        """Waits for the oldest stores under way."""
        from emucxl.errors import EmucxlError, WaitTimeout

        try:
            stores.completion.wait(self._timeout_s + 2 * stores.expected_s)
        except WaitTimeout:
            places = _places_of(stores.rows, TO)
            self._close_tiers(places)
            doomed = [stores, *(each for each in self._pending if places & _places_of(each.rows, TO))]
            for unwritten in self._cancel(doomed):
                self._broken.update(slots_of(unwritten.rows, TO))
        except EmucxlError as error:
            self._report(stores.rows, str(error))
            self._broken.update(slots_of(stores.rows, TO))

    def _backlog_s(self) -> float:
        """Seconds that the stores under way are expected to take."""
        return sum(stores.expected_s for stores in self._pending)

    # ---- what cannot be made ----------------------------------------------------------------------------------------

    def _that_can_be_made(self, rows: Rows) -> Rows:
        """Those of `rows`, evictions or stores, that read what is there. Where the others write is broken then."""
        if not self._broken and not any(traffic.is_given_up for traffic in self.traffic):
            return rows
        kept = []
        for index, (source, target) in enumerate(zip(slots_of(rows, FROM), slots_of(rows, TO), strict=True)):
            if self._is_unusable(source) or self._is_given_up(target):
                self._broken.add(target)
            else:
                self._broken.discard(target)
                kept.append(index)
        return rows[kept]

    def _is_unusable(self, slot: Slot) -> bool:
        return slot in self._broken or self._is_given_up(slot)

    def _is_given_up(self, slot: Slot) -> bool:
        return slot[0] != LOCAL and self.traffic[slot[0] - 1].is_given_up

    def _report(self, rows: Rows, reason: str) -> None:
        """Counts `rows` as failures of their tiers. It is told of the first one, and whenever they have doubled."""
        tiers = (target if target != LOCAL else source for source, target in rows[:, [FROM, TO]].tolist())
        for place, count in Counter(tiers).items():
            traffic = self.traffic[place - 1]
            traffic.num_failures += count
            if traffic.num_failures >= 2 * traffic.num_told and not traffic.is_given_up:
                traffic.num_told = traffic.num_failures
                _log.warning(
                    "the tier %r below the KV cache has failed to move %d block(s) so far: %s",
                    self._memory.specs[place - 1].text,
                    traffic.num_failures,
                    reason,
                )

    def _close_tiers(self, places: set[int]) -> None:
        for place in places:
            self.traffic[place - 1].is_given_up = True
            _log.warning(
                "the tier %r below the KV cache is used no more: it took %g s longer than expected",
                self._memory.specs[place - 1].text,
                self._timeout_s,
            )

    # ---- copies -----------------------------------------------------------------------------------------------------

    def _submit(self, engine: CopyEngine, rows: Rows, layers: range) -> tuple[list[_Copies], Rows]:
        """Queues `rows` as one batch; one by one where one of them cannot be made, for poison is met at once.

        Returns what is under way, and the rows that are not.
        """
        from emucxl.errors import EmucxlError

        if not len(rows):
            return [], rows
        part = len(layers) / self._copies.num_layers
        try:
            completion = engine.submit(self._copies.of(rows, layers))
        except EmucxlError as error:
            if len(rows) == 1:
                self._report(rows, str(error))
                return [], rows
            parts = [self._submit(engine, row[None], layers) for row in rows]
            refused = np.concatenate([each for _, each in parts])
            return [copies for made, _ in parts for copies in made], refused
        size_bytes = len(rows) * len(layers) * self._copies.piece_bytes
        return [_Copies(completion, rows, size_bytes, part * self._copies.expected_s(rows))], rows[:0]

    def _cancel(self, batches: Collection[_Copies]) -> list[_Copies]:
        """Ends them early. Returns those that have not come to their end.

        Raises:
            EngineError: one does not end. Its memory hangs, and so would whatever used the block next.
        """
        for copies in batches:
            copies.completion.cancel()
        return [copies for copies in batches if not _has_come(copies.completion)]


def _without(rows: Rows, column: int, slots: set[Slot]) -> Rows:
    """Those of `rows` that have none of `slots` in `column`."""
    if not slots:
        return rows
    kept: Rows = rows[np.array([slot not in slots for slot in slots_of(rows, column)], dtype=bool)]
    return kept


def _places_of(rows: Rows, column: int) -> set[int]:
    return {*rows[:, column].tolist()}


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
