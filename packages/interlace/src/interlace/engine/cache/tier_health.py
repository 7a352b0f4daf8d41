"""TierHealth: what of a rank's tiers can be used, and what has gone through them.

Invariant: between passes, a slot whose contents are not what was last to be written there is in `broken`.

Thread safety: none; it belongs to the rank's TierMover.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.cache.tier_copies import FROM, TO, Rows, Slot, slots_of
from interlace.engine.cache.traffic import TierTraffic
from interlace.models.moves import LOCAL

_log = logging.getLogger(__name__)


class TierHealth:
    """The tiers of `specs`; one that is late by `timeout_s` is given up."""

    def __init__(self, specs: Sequence[KvTierSpec], timeout_s: float) -> None:
        self._specs, self._timeout_s = specs, timeout_s
        self.traffic = [TierTraffic() for _ in specs]
        self.broken: set[Slot] = set()

    def that_can_be_made(self, rows: Rows) -> Rows:
        """Those of `rows`, evictions or stores, that read what is there. Where the others write is broken then."""
        if not self.broken and not any(traffic.is_given_up for traffic in self.traffic):
            return rows
        kept = []
        for index, (source, target) in enumerate(zip(slots_of(rows, FROM), slots_of(rows, TO), strict=True)):
            if self.is_unusable(source) or self._is_given_up(target):
                self.broken.add(target)
            else:
                self.broken.discard(target)
                kept.append(index)
        return rows[kept]

    @property
    def given_up(self) -> list[int]:
        """The places of tiers that are used no more."""
        return [place for place, traffic in enumerate(self.traffic, 1) if traffic.is_given_up]

    def is_unusable(self, slot: Slot) -> bool:
        """Whether nothing can be read there."""
        return slot in self.broken or self._is_given_up(slot)

    def lose(self, slots: Iterable[Slot]) -> None:
        """They don't have what was to be written there, or don't give it back."""
        self.broken.update(slots)

    def report(self, rows: Rows, error: Exception) -> None:
        """Counts `rows` as failures of their tiers. It is told of the first one, and whenever they have doubled."""
        tiers = (target if target != LOCAL else source for source, target in rows[:, [FROM, TO]].tolist())
        for place, count in Counter(tiers).items():
            traffic = self.traffic[place - 1]
            traffic.num_failures += count
            if traffic.num_failures >= 2 * traffic.num_told and not traffic.is_given_up:
                traffic.num_told = traffic.num_failures
                _log.warning(
                    "the tier %r below the KV cache has failed to move %d block(s) so far: %s",
                    self._specs[place - 1].text,
                    traffic.num_failures,
                    error,
                )

    def give_up(self, places: Collection[int]) -> None:
        """Uses these tiers no more: they don't answer."""
        for place in places:
            if not self.traffic[place - 1].is_given_up:
                self.traffic[place - 1].is_given_up = True
                _log.warning(
                    "the tier %r below the KV cache is used no more: it did not answer in time (kv_tier_timeout_s=%g)",
                    self._specs[place - 1].text,
                    self._timeout_s,
                )

    def _is_given_up(self, slot: Slot) -> bool:
        return slot[0] != LOCAL and self.traffic[slot[0] - 1].is_given_up
