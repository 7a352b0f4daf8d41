"""TierMover: carries out one rank's part of the moves of a pass, layer by layer, beside the pass.

Evictions and fetches of a pass are submitted together, when it begins, and each step waits for its layer. Stores are
submitted as their layers are done, on a queue of their own, and are not waited for: a later pass waits, where it would
overwrite a block that is still being read, or use a slot that is still being written.

A submission takes tens of microseconds of the interpreter, which the compute lane needs too. So a few layers go in one
where they take little time.

A tier that fails costs misses: `end` tells the blocks that a pass should have fetched and could not. What could not
be written is remembered, and fails when it is fetched. A tier that does not answer in time is used no more.

Invariant: no copy into local memory, and none out of a block that may be overwritten, is under way after the step that
waits for it. What is late is cancelled, and its end awaited.

Thread safety: none; `evict`, `fetch` and `store` are called by one lane at a time, between `begin` and `end`.
"""

from __future__ import annotations

import math
import time
from collections import deque
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
    Batch,
    Rows,
    Slot,
    TierCopies,
    by_place,
    cancel,
    slots_of,
    without,
)
from interlace.engine.cache.tier_health import TierHealth
from interlace.engine.cache.tier_memory import SlotMemory
from interlace.engine.cache.tier_stores import TierStores
from interlace.engine.cache.traffic import NOTHING_FETCHED, PassFetch, TierTraffic
from interlace.models.batch import ForwardBatch
from interlace.models.moves import LOCAL, MoveKind
from tokenweave.kernels import BLOCK_SIZE

if TYPE_CHECKING:
    from interlace.cache.kv_tier import KvTierSpec

SUBMISSION_S = 1e-3  # of copying, that one submission is worth
MOST_LAYERS = 8  # in one submission, and in each of stores, for which nobody waits
MEASURED_SLOTS = 32  # for the speed of a tier


@dataclass
class _Pass:
    """The moves of the pass that runs."""

    evictions: Rows
    fetches: Rows
    stores: Rows  # of blocks that this pass fills
    settled: Rows  # stores of blocks that were full before it
    failed: set[int] = field(default_factory=set)  # blocks; -place of tiers that were given up
    lost: list[Slot] = field(default_factory=list)  # targets of evictions that were not made
    under_way: dict[tuple[MoveKind, int], deque[Batch]] = field(
        default_factory=dict
    )  # by kind and first layer
    group: int = 1  # layers in one submission
    start_s: float = 0.0
    arrived_s: float = 0.0  # what is fetched
    deadline_s: float = 0.0


class TierMover:
    """The moves of one rank, between its KV cache and the slots of its tiers."""

    def __init__(self, cache: Tensor, memory: SlotMemory, timeout_s: float, most_s: float = math.inf) -> None:
        """`cache` is (num_layers, num_blocks, *block), contiguous, on the CPU. What takes `timeout_s` longer than its
        tier is expected to take, or longer than `most_s`, is given up, and the tier with it."""
        from emucxl.copy_engine import CopyEngine

        self._memory, self._timeout_s, self._most_s = memory, timeout_s, most_s
        self._health = TierHealth(memory.specs, timeout_s)
        self._copies = TierCopies(cache, memory, self._health.report)
        self._up, self._down = CopyEngine(memory.context), CopyEngine(memory.context)
        self._stores = TierStores(self._down, self._copies, self._health, timeout_s, most_s)
        self._pass: _Pass | None = None

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return self._memory.slot_bytes

    @property
    def specs(self) -> tuple[KvTierSpec, ...]:
        return self._memory.specs

    @property
    def traffic(self) -> list[TierTraffic]:
        """The bytes that went through each tier, and what failed."""
        return self._health.traffic

    @property
    def is_busy(self) -> bool:
        """Whether so many stores are under way that no more should be asked for."""
        return self._stores.is_busy

    def measure_fetch_s(self, place: int) -> float:
        """Seconds that it takes to fetch a byte from a tier, at best of a few times. Only before the first pass.

        Some slots are written first: memory that was never touched is read out of the processor's caches. A tier that
        does not answer is given up, and takes for ever.
        """
        from emucxl.errors import EmucxlError, WaitTimeout

        num_slots = len(self._memory.buffers[place - 1]) // self._memory.slot_bytes
        count = min(MEASURED_SLOTS, self._copies.num_blocks, num_slots)
        down = np.zeros((count, 5), dtype=np.int32)
        down[:, FROM_INDEX] = down[:, TO_INDEX] = np.arange(count)
        up = down.copy()
        down[:, TO] = up[:, FROM] = place
        layers, best_s = range(self._copies.num_layers), float("inf")
        for engine, rows in ((self._down, down), *((self._up, up) for _ in range(3))):
            start_s = time.perf_counter()
            batches, refused = self._copies.submit(engine, rows, layers)
            try:
                for batch in batches:
                    batch.completion.wait(self._timeout_s + batch.patience_s)
            except WaitTimeout:
                self._health.give_up([place])
                cancel(batches)
                return float("inf")
            except EmucxlError as error:
                self._health.report(rows, error)
                cancel(batches)
                return float("inf")
            if rows is up and len(refused) < count:
                best_s = min(best_s, (time.perf_counter() - start_s) / (count - len(refused)))
        return best_s / self._memory.slot_bytes

    def begin(self, batch: ForwardBatch) -> None:
        """The pass over `batch` is about to run: waits for whatever would be in its way."""
        rows: Rows = batch.moves.numpy()
        if not len(rows) and not self._stores:
            self._pass = None
            return
        slots = batch.slots.numpy()
        written = np.unique(slots[slots >= 0] // BLOCK_SIZE)
        blocks = ((LOCAL, block) for block in written.tolist())
        self._stores.clear_way({*slots_of(rows, FROM), *slots_of(rows, TO), *blocks})
        kinds = rows[:, KIND]
        evictions = self._health.that_can_be_made(rows[kinds == MoveKind.EVICT])
        stores = self._health.that_can_be_made(rows[kinds == MoveKind.STORE])
        is_filled = np.isin(stores[:, FROM_INDEX], written)
        fetches = rows[kinds == MoveKind.FETCH]
        self._pass = _Pass(evictions, fetches, stores[is_filled], stores[~is_filled])
        unreadable = np.array(
            [self._health.is_unusable(slot) for slot in slots_of(fetches, FROM)], dtype=bool
        )
        self._pass.failed.update(fetches[unreadable, TO_INDEX].tolist())
        self._pass.failed.update(-place for place in self._health.given_up)
        self._begin_moving(self._pass)

    def end(self, waited_s: float | None = None) -> PassFetch:
        """The pass has run. `waited_s`: how long its compute lane waited for the memory lane; None: for all of it."""
        moves, self._pass = self._pass, None
        if moves is None:
            return NOTHING_FETCHED
        self._settle_evictions(moves)
        fetch_s = moves.arrived_s - moves.start_s if len(moves.fetches) else 0.0
        stood_s = fetch_s if waited_s is None else min(waited_s, fetch_s)
        fetch = PassFetch(frozenset(moves.failed), fetch_s, stood_s)
        self._count(moves, fetch)
        return fetch

    def evict(self, layer: int) -> None:
        """Returns once what the pass overwrites in `layer` is written down, or given up."""
        self._wait_for(MoveKind.EVICT, layer)

    def fetch(self, layer: int) -> None:
        """Returns once the blocks of `layer` are there that the pass reads, or are given up."""
        self._wait_for(MoveKind.FETCH, layer)
        self._running.arrived_s = time.monotonic()

    def store(self, layer: int) -> None:
        """Begins to write the full blocks of some layers up to `layer` down; all layers of those full before."""
        moves = self._running
        if layer == 0:
            self._stores.begin(moves.settled, range(self._copies.num_layers))
        layers = self._group_of(layer, MOST_LAYERS)
        if layer == layers[-1]:
            self._stores.begin(moves.stores, layers)

    def close(self) -> None:
        """Ends what is under way, and gives the tiers' memory back.

        Raises:
            EngineError: a copy does not end.
        """
        if self._pass is not None:
            cancel([batch for queue in self._pass.under_way.values() for batch in queue])
            self._pass = None
        self._stores.end()
        for engine in (self._up, self._down):
            engine.close()
        self._memory.close()

    @property
    def _running(self) -> _Pass:
        assert self._pass is not None, "a step outside of a pass"
        return self._pass

    def _begin_moving(self, moves: _Pass) -> None:
        """Queues the evictions and fetches of all layers: of each layer the evictions first, which one thread keeps."""
        moves.start_s = time.monotonic()
        num_moves = len(moves.evictions) + len(moves.fetches)
        if not num_moves:
            return
        layer_s = self._copies.expected_s(moves.evictions) + self._copies.expected_s(moves.fetches)
        moves.group = max(1, min(MOST_LAYERS, int(SUBMISSION_S * self._copies.num_layers / layer_s)))
        patience_s = self._copies.patience_s(moves.evictions) + self._copies.patience_s(moves.fetches)
        if len(moves.evictions):
            patience_s += self._stores.patience_s  # a tier writes what it was given first
        moves.deadline_s = moves.start_s + min(self._timeout_s + patience_s, self._most_s)
        fetches = by_place(moves.fetches, FROM)
        for layer in range(0, self._copies.num_layers, moves.group):
            self._queue(moves, MoveKind.EVICT, layer, moves.evictions)
            for of_one_tier in fetches:
                self._queue(moves, MoveKind.FETCH, layer, of_one_tier)

    def _group_of(self, layer: int, size: int) -> range:
        """The layers that are moved with `layer`, where `size` are in one submission."""
        first = layer - layer % size
        return range(first, min(first + size, self._copies.num_layers))

    def _queue(self, moves: _Pass, kind: MoveKind, layer: int, rows: Rows) -> None:
        if moves.failed or moves.lost:  # in a layer before this one
            rows = without(rows, TO, {*moves.lost, *((LOCAL, block) for block in moves.failed)})
        made, refused = self._copies.submit(self._up, rows, self._group_of(layer, moves.group))
        moves.under_way.setdefault((kind, layer), deque()).extend(made)
        self._fail(moves, kind, refused)

    def _wait_for(self, kind: MoveKind, layer: int) -> None:
        """Waits for a layer and those that were submitted with it."""
        from emucxl.errors import EmucxlError, WaitTimeout

        moves = self._running
        queue = moves.under_way.get((kind, layer), deque())
        while queue:
            rows = queue[0].rows
            try:
                queue[0].completion.wait(max(0.0, moves.deadline_s - time.monotonic()))
            except WaitTimeout:
                self._give_up(moves, self._late_of(rows))
                return
            except EmucxlError as error:
                if kind is MoveKind.FETCH and len(rows) > 1:  # each by itself, as some can be read
                    for row in rows:
                        self._queue(moves, kind, layer, row[None])
                else:
                    self._health.report(rows, error)
                    self._fail(moves, kind, rows)
            queue.popleft()

    def _late_of(self, rows: Rows) -> set[int]:
        """The tiers that copies of `rows` wait for: where there are several, those that give back nothing at all."""
        ends = {*rows[:, [FROM, TO]].ravel().tolist()} - {LOCAL}
        silent = (
            ends
            if len(ends) == 1
            else {end for end in ends if not self._copies.answers(end, self._timeout_s)}
        )
        return silent or {*rows[:, TO].tolist()} - {LOCAL}

    def _give_up(self, moves: _Pass, places: set[int]) -> None:
        """These tiers don't answer: ends all copies of the pass, and uses the tiers no more."""
        self._health.give_up(places)
        moves.failed.update(-place for place in places)
        for (kind, _), queue in moves.under_way.items():
            for batch in cancel(queue):
                if kind is MoveKind.EVICT:
                    moves.lost += slots_of(batch.rows, TO)
                else:
                    moves.failed.update(batch.rows[:, TO_INDEX].tolist())
        moves.under_way.clear()

    def _fail(self, moves: _Pass, kind: MoveKind, rows: Rows) -> None:
        """`rows` of the pass are not made: a tier cannot be read, or written, there."""
        if kind is MoveKind.EVICT:
            moves.lost += slots_of(rows, TO)
        else:
            moves.failed.update(rows[:, TO_INDEX].tolist())
            self._health.lose(slots_of(rows, FROM))

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
        self._health.lose(lost)
        for source, block in zip(
            slots_of(moves.fetches, FROM), moves.fetches[:, TO_INDEX].tolist(), strict=True
        ):
            if source in lost:
                moves.failed.add(block)

    def _count(self, moves: _Pass, fetch: PassFetch) -> None:
        for rows in by_place(moves.fetches, FROM):
            traffic = self.traffic[rows[0, FROM] - 1]
            traffic.num_fetches += 1
            traffic.fetched_bytes += len(rows) * self._memory.slot_bytes
            traffic.fetch_s += fetch.fetch_s
            traffic.waited_s += fetch.waited_s
        for rows in by_place(moves.evictions, TO):
            self.traffic[rows[0, TO] - 1].written_bytes += len(rows) * self._memory.slot_bytes
