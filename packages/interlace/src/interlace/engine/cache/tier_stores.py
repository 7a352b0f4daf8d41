"""TierStores: the stores of one rank that are under way, for which nobody waits until something is in their way.

Thread safety: none; it belongs to the rank's TierMover.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

from interlace.engine.cache.tier_copies import (
    FROM,
    TO,
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

if TYPE_CHECKING:
    from emucxl.copy_engine import CopyEngine

MAX_BACKLOG_BYTES = 256 << 20  # above which no more are asked for
MAX_BACKLOG_S = 0.5  # that they are expected to take: a pass that needs one of their blocks waits for it


class TierStores:
    """Stores, in the order in which `engine` makes them."""

    def __init__(
        self, engine: CopyEngine, copies: TierCopies, health: TierHealth, timeout_s: float, most_s: float
    ) -> None:
        """A store that takes `timeout_s` longer than expected, or longer than `most_s`, is given up, and its tier."""
        self._engine, self._copies, self._health, self.timeout_s = engine, copies, health, timeout_s
        self._most_s = most_s
        self._pending: deque[Batch] = deque()
        self._due_s = math.inf  # when the first of them is late

    def __len__(self) -> int:
        """How many batches are under way."""
        return len(self._pending)

    @property
    def is_busy(self) -> bool:
        """Whether so many are under way that no more should be asked for."""
        self._collect_done()
        size_bytes = sum(batch.size_bytes for batch in self._pending)
        return size_bytes > MAX_BACKLOG_BYTES or sum(b.expected_s for b in self._pending) > MAX_BACKLOG_S

    @property
    def patience_s(self) -> float:
        """Seconds that those under way may take on a busy machine."""
        return sum(batch.patience_s for batch in self._pending)

    def begin(self, rows: Rows, layers: range) -> None:
        """Begins to store `rows` in some layers, but for those that failed in another."""
        for of_one_tier in by_place(without(rows, TO, self._health.broken), TO):
            made, refused = self._copies.submit(self._engine, of_one_tier, layers)
            if made and not self._pending:
                self._expect(made[0])
            self._pending.extend(made)
            self._health.lose(slots_of(refused, TO))
            traffic = self._health.traffic[of_one_tier[0, TO] - 1]
            traffic.written_bytes += sum(batch.size_bytes for batch in made)

    def clear_way(self, used: Collection[Slot]) -> None:
        """Waits for those that read or write one of `used`, and for those before them."""
        self._collect_done()
        last = -1
        for index, batch in enumerate(self._pending):
            if not {*slots_of(batch.rows, FROM), *slots_of(batch.rows, TO)}.isdisjoint(used):
                last = index
        for _ in range(last + 1):
            self._collect()

    def end(self) -> None:
        """Ends those under way.

        Raises:
            EngineError: one does not end.
        """
        cancel(self._pending)
        self._pending.clear()

    def _expect(self, first: Batch) -> None:
        """It is what the engine makes now, as far as is known."""
        self._due_s = time.monotonic() + min(self.timeout_s + first.patience_s, self._most_s)

    def _collect_done(self) -> None:
        """Collects those that are done, and those that are late though nobody waits for them."""
        while self._pending and (self._pending[0].completion.done or time.monotonic() > self._due_s):
            self._collect()

    def _collect(self) -> None:
        """Waits for the oldest one."""
        from emucxl.errors import EmucxlError, WaitTimeout

        batch = self._pending[0]  # and stays there if it does not end, for `end` to tell of
        slots = slots_of(batch.rows, TO)
        try:
            batch.completion.wait(max(0.0, self._due_s - time.monotonic()))
        except WaitTimeout:
            place = batch.rows[0, TO]
            self._health.give_up([int(place)])
            for unwritten in cancel([each for each in self._pending if each.rows[0, TO] == place]):
                self._health.lose(slots_of(unwritten.rows, TO))
        except EmucxlError as error:
            if not self._health.is_unusable(slots[0]):
                self._health.report(batch.rows, error)
            self._health.lose(slots)
        self._pending.popleft()
        if self._pending:
            self._expect(self._pending[0])
