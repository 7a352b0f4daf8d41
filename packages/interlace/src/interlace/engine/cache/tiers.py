"""Tiers: what goes down from the KV cache and what comes up, decided for one pass after the other.

Down goes a block when it is full (`through`), or when its memory is needed for another one (`back`); up comes what a
request asks for. The decisions are moves, which travel with the batch: every rank makes its own part of each.

Invariants
1. A name is in the index from the moment that its block is told to go down, in whichever pass; ranks keep the order.
2. What a pass fetches, or writes, stays where it is until the pass is planned.

Thread safety: none; it belongs to the scheduler's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from itertools import islice

from interlace.cache.tier_index import Descent, Place, TierIndex
from interlace.engine.cache.fetching import Answer, Chooser, Question, fetch_all
from interlace.engine.cache.traffic import TierStats, TierTraffic
from interlace.models.moves import LOCAL, Move, MoveKind

MOST_WAITING = (
    16  # full blocks that wait for a pass over a prompt; with more, passes that decode store them too
)
MOST_AT_ONCE = (
    64  # of those, stored with one pass: a later pass that needs their memory waits for all of them
)
MOST_MISSES = 3  # passes in a row that could not fetch from a tier, after which it is used no more
_log = logging.getLogger(__name__)


class Tiers:
    """The tiers below one engine's KV cache, as rank 0 knows them."""

    def __init__(
        self,
        capacities: Sequence[int],
        policy: str = "lru",
        write: str = "through",
        is_busy: Callable[[], bool] = lambda: False,
        choose: Chooser = fetch_all,
    ) -> None:
        """`capacities` are blocks. `is_busy` says that nothing more should be stored for now; `choose` says how much of
        what is found is fetched."""
        self.capacities = tuple(capacities)
        self.index = TierIndex(capacities, policy)
        self.num_hits = [0] * len(capacities)  # blocks
        self._chooser = choose
        self.num_misses = 0  # passes whose fetches failed
        self._writes_through, self._is_busy = write == "through", is_busy
        self._moves: list[Move] = []
        self._waiting: dict[bytes, None] = {}  # full blocks that are to be stored
        self._fetched: dict[int, tuple[bytes, int]] = {}  # of the last pass: name and tier, by block
        self._misses = [0] * len(capacities)  # in a row

    # ---- down -----------------------------------------------------------------------------------------------------

    def evict(self, name: bytes, block: int) -> None:
        """`block` is about to be given to somebody else. A pass waits until it is written down, so it is not where the
        tiers have had no time for it."""
        is_waiting = self._waiting.pop(name, 0) is None
        if not self._writes_through or (is_waiting and not self._is_busy()):
            self._write(MoveKind.EVICT, name, block)

    def filled(self, name: bytes) -> None:
        """A block is full under `name`, and may be stored some time."""
        if self._writes_through and self.index.find(name) is None:
            self._waiting[name] = None

    def store(self, name: bytes, block: int) -> None:
        """Has `block`, which is full when the pass has run, written down with it."""
        if self._writes_through and self.index.find(name) is None and not self._is_busy():
            self._write(MoveKind.STORE, name, block)

    def store_waiting(self, block_of: Callable[[bytes], int | None], *, is_urgent: bool) -> None:
        """Has the full blocks written down that wait for it, if there are many, or `is_urgent`."""
        if not self._waiting or not (is_urgent or len(self._waiting) >= MOST_WAITING) or self._is_busy():
            return
        for name in [*islice(self._waiting, MOST_AT_ONCE)]:
            del self._waiting[name]
            block = block_of(name)
            if block is not None and self.index.find(name) is None:
                self._write(MoveKind.STORE, name, block)

    # ---- up -------------------------------------------------------------------------------------------------------

    def count(self, names: Sequence[bytes]) -> int:
        """How many of the first of `names` are there, without a gap."""
        for found, name in enumerate(names):
            if self.index.find(name) is None:
                return found
        return len(names)

    def tiers_of(self, names: Sequence[bytes]) -> list[int]:
        """The tier of each of `names`, which are there."""
        places = map(self.index.find, names)
        return [place.tier for place in places if place is not None]

    def choose(self, question: Question) -> Answer:
        """How much of what is found is fetched."""
        return self._chooser(question) if question.tiers else Answer(0)

    def fetch(self, names: Sequence[bytes], blocks: Sequence[int]) -> None:
        """Has `names`, which are there, fetched into `blocks` before the pass reads them."""
        self.index.touch(names)
        for name, block in zip(names, blocks, strict=True):
            place = self.index.find(name)
            assert place is not None, "a name that is counted is there"
            self.index.pin(name)
            self._moves.append(Move(MoveKind.FETCH, place.tier + 1, place.slot, LOCAL, block))
            self._fetched[block] = name, place.tier

    # ---- bookkeeping ----------------------------------------------------------------------------------------------

    def take_moves(self) -> list[Move]:
        """The moves of the pass that has been planned."""
        moves, self._moves = self._moves, []
        self.index.unpin_all()
        return moves

    def settle(self, failed: Collection[int]) -> None:
        """The pass has run, and `failed` are the blocks that it could not fetch. They are found no more.

        Numbers below zero are tiers that a rank has given up: -1 is the one at the top. They are used no more, and nor
        is a tier that fails again and again.
        """
        given_up, failed = {-number - 1 for number in failed if number < 0}, {n for n in failed if n >= 0}
        fetched, self._fetched = self._fetched, {}
        asked = {tier for _, tier in fetched.values()}
        broken = {fetched[block][1] for block in failed}
        self.index.lose(fetched[block][0] for block in failed)
        for block, (_, tier) in fetched.items():
            self.num_hits[tier] += block not in failed
        self.num_misses += bool(broken)
        for tier in asked:
            self._misses[tier] = self._misses[tier] + 1 if tier in broken else 0
            if self._misses[tier] == MOST_MISSES:
                self._close(tier, f"{MOST_MISSES} passes in a row could not fetch from it")
        for tier in given_up:
            if self._misses[tier] < MOST_MISSES:
                self._misses[tier] = MOST_MISSES
                self._close(tier, "it stalls on a rank")

    def _close(self, tier: int, reason: str) -> None:
        self.index.close(tier)
        _log.warning("tier %d below the KV cache is used no more: %s", tier + 1, reason)

    def touch(self, names: Sequence[bytes]) -> None:
        """The blocks of a text were used."""
        self.index.touch(names)

    def withdraw(self, names: Sequence[bytes]) -> None:
        """Has none of `names` found, whatever is on its way."""
        self.index.withdraw(names)
        for name in names:
            self._waiting.pop(name, None)

    def forget(self) -> None:
        """Has nothing found any more."""
        self.index.forget()
        self._waiting.clear()

    def stats(self, texts: Sequence[str], traffic: Sequence[TierTraffic]) -> tuple[TierStats, ...]:
        """The tiers as they are now: `texts` say what they are, `traffic` what went there."""
        return tuple(
            TierStats(
                tier=text,
                num_blocks=self.capacities[tier],
                num_held_blocks=self.index.num_held(tier),
                num_hit_blocks=self.num_hits[tier],
                fetched_bytes=moved.fetched_bytes,
                written_bytes=moved.written_bytes,
                num_fetches=moved.num_fetches,
                fetch_s=moved.fetch_s,
                fetch_waited_s=moved.waited_s,
                num_failures=moved.num_failures,
                is_given_up=moved.is_given_up or self._misses[tier] >= MOST_MISSES,
            )
            for tier, (text, moved) in enumerate(zip(texts, traffic, strict=True))
        )

    def _write(self, kind: MoveKind, name: bytes, block: int) -> None:
        """Takes `name` into the top tier, if there is room for it."""
        found = self.index.put(name)
        if found is None:
            return
        place, descents = found
        self.index.pin(name)  # it is not there before the pass has run, so nothing of this pass may read it
        self._moves += [_descent(descent) for descent in descents]
        self._moves.append(Move(kind, LOCAL, block, *_index_of(place)))


def _descent(descent: Descent) -> Move:
    return Move(MoveKind.EVICT, *_index_of(descent.source), *_index_of(descent.destination))


def _index_of(place: Place) -> tuple[int, int]:
    return place.tier + 1, place.slot
