"""Policies: which blocks stay in a row of tiers when a prompt's blocks come.

A cache answers `serve(blocks)`, once for each prompt, blocks in their order: it says how many of them each tier gives,
as the tiers were before, and then takes all of them in. A block is useful only with all before it, so

- a *hit* is part of an unbroken prefix: what lies behind the first block that is missing does not count;
- a prompt's blocks are touched *last block first*: so the first is the most recent, and leaves leave first.

A block is in one tier at a time. It comes in at the top; what leaves a tier is offered to the next, and is lost
below the last. Tiers hold whole blocks: `capacities` has the number of each tier; None: no limit.

Invariants: no tier holds more than its capacity; `tier_of[block]` is the tier that holds it, or NOWHERE.

Thread safety: none; one thread has a cache. Blocks are numbers from 0, as in BlockTrace, so that lists can be
indexed by them: that is what makes a million blocks a second possible in plain Python.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from typing import ClassVar

from interlace.cache.block_trace import BlockTrace
from interlace.errors import BlockTraceError

NOWHERE = -1


class Cache(ABC):
    """Base of the policies: blocks of one trace in tiers, the first of which is the top."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, trace: BlockTrace, capacities: Sequence[int | None]) -> None:
        """Raises BlockTraceError for no tier, or a negative capacity."""
        if not capacities or any(each is not None and each < 0 for each in capacities):
            raise BlockTraceError(f"got capacities {list(capacities)}; expected one or more, each 0 or more")
        self.capacities = [sys.maxsize if each is None else each for each in capacities]
        self.tier_of = [NOWHERE] * trace.num_distinct

    @abstractmethod
    def serve(self, blocks: Sequence[int]) -> list[int]:
        """Returns how many of `blocks` each tier gives, (num_tiers,), and takes all of them in."""

    def _prefix(self, blocks: Sequence[int]) -> list[int]:
        """How many blocks of the longest prefix that is there lie in each tier."""
        hits = [0] * len(self.capacities)
        tier_of = self.tier_of
        for block in blocks:
            tier = tier_of[block]
            if tier < 0:
                break
            hits[tier] += 1
        return hits


class Lru(Cache):
    """The block that was asked for longest ago leaves first. Every block comes in."""

    name = "lru"
    title = "LRU"

    def __init__(self, trace: BlockTrace, capacities: Sequence[int | None]) -> None:
        super().__init__(trace, capacities)
        self._orders: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacities]  # oldest first

    def serve(self, blocks: Sequence[int]) -> list[int]:
        hits = self._prefix(blocks)
        tier_of, top = self.tier_of, self._orders[0]
        refresh = top.move_to_end
        for block in reversed(blocks):
            tier = tier_of[block]
            if tier == 0:
                refresh(block)
                continue
            if tier > 0:
                del self._orders[tier][block]
            top[block] = None
            tier_of[block] = 0
        self._sink()
        return hits

    def _sink(self) -> None:
        """Gives what a tier holds too much to the next one, once for a prompt: a loop for each tier is what is fast."""
        tier_of = self.tier_of
        for tier, (order, capacity) in enumerate(zip(self._orders, self.capacities, strict=True)):
            leave, excess = order.popitem, range(len(order) - capacity)
            if tier + 1 == len(self._orders):
                for _ in excess:
                    tier_of[leave(last=False)[0]] = NOWHERE
                return
            below = self._orders[tier + 1]
            for _ in excess:
                block, _ = leave(last=False)
                below[block] = None
                tier_of[block] = tier + 1


class TinyLfu(Cache):
    """LRU, but a block takes the place of another one only if it was asked for more often lately.

    The admission test of TinyLFU (Einziger, Friedman, Manes, ACM Transactions on Storage 13(4), 2017), at every tier.
    All counts are halved after `reads_per_block` blocks asked for per block of capacity (the paper's W / C). Counts
    are exact, and of every block of the trace, where the paper's sketch is approximate: so this bounds what a sketch
    could do. There is no window before the test.
    """

    name = "tinylfu"
    title = "TinyLFU"

    def __init__(
        self, trace: BlockTrace, capacities: Sequence[int | None], reads_per_block: int = 10
    ) -> None:
        super().__init__(trace, capacities)
        if reads_per_block < 1:
            raise BlockTraceError(f"got reads_per_block={reads_per_block}; expected at least 1")
        self._orders: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacities]  # oldest first
        self._counts = [0] * trace.num_distinct
        self._counted_at = [0] * trace.num_distinct  # halvings before the count was last raised
        self._halvings = 0
        self._reads = 0
        self._reads_per_halving = max(1, reads_per_block * sum(self.capacities))

    def serve(self, blocks: Sequence[int]) -> list[int]:
        hits = self._prefix(blocks)
        tier_of, counts, counted_at, halvings = self.tier_of, self._counts, self._counted_at, self._halvings
        refresh = self._orders[0].move_to_end
        for block in reversed(blocks):
            # A count is halved when it is looked at, for all the times that it should have been: no sweep over all.
            counts[block] = (counts[block] >> halvings - counted_at[block]) + 1
            counted_at[block] = halvings
            tier = tier_of[block]
            if tier == 0:
                refresh(block)
                continue
            if tier > 0:
                del self._orders[tier][block]
            self._offer(block)
        self._reads += len(blocks)
        if self._reads >= self._reads_per_halving:
            self._reads = 0
            self._halvings += 1
        return hits

    def _offer(self, block: int) -> None:
        """Brings `block` into the first tier with room, or whose oldest block has the lower count; that one goes on."""
        tier_of, counts, counted_at, halvings = self.tier_of, self._counts, self._counted_at, self._halvings
        count = counts[block] >> halvings - counted_at[block]
        for tier, order in enumerate(self._orders):
            if len(order) < self.capacities[tier]:
                order[block] = None
                tier_of[block] = tier
                return
            if not order:
                continue
            oldest = next(iter(order))
            its_count = counts[oldest] >> halvings - counted_at[oldest]
            if count > its_count:
                del order[oldest]
                order[block] = None
                tier_of[block] = tier
                block, count = oldest, its_count
        tier_of[block] = NOWHERE


class Belady(Cache):
    """The block whose next use is farthest leaves first, or does not come in (Belady, IBM Systems Journal 5(2), 1966).

    No cache that ends each prompt with as many blocks has more hits: a block that is kept from one use to the next is
    an interval, at most `capacity` of which overlap, and to drop the one that ends last leaves the most of them whole.
    It counts every block that is there, prefix or not, so the bound holds for each way to count. Where numbers name
    prefixes the two are one: a block's next use is before that of the blocks behind it, so they leave before it.
    """

    name = "belady"
    title = "Belady"

    def __init__(self, trace: BlockTrace, capacities: Sequence[int | None]) -> None:
        super().__init__(trace, capacities)
        self._asked, self._next_use = trace.asked, trace.next_use
        self._at = 0  # blocks served
        self._next_of = [-1] * trace.num_distinct  # of each block that is kept: the place of its next use
        self._sizes = [0] * len(capacities)
        # Of each tier: -next use, the farthest first. Entries of blocks that moved since are dropped when they surface.
        self._heaps: list[list[int]] = [[] for _ in capacities]

    def serve(self, blocks: Sequence[int]) -> list[int]:
        """As in Cache. Prompts must come in the order of the trace."""
        hits = [0] * len(self.capacities)
        tier_of, sizes, next_of = self.tier_of, self._sizes, self._next_of
        for block in blocks:  # all leave before one comes in: none may be judged by the use that is over
            tier = tier_of[block]
            if tier >= 0:
                hits[tier] += 1
                sizes[tier] -= 1
                tier_of[block] = NOWHERE
        for place, block in enumerate(blocks, self._at):
            next_use = self._next_use[place]
            if next_use >= 0:
                next_of[block] = next_use
                self._offer(block, next_use)
        self._at += len(blocks)
        return hits

    def _offer(self, block: int, next_use: int) -> None:
        """Brings `block` into the first tier with room, or with a block that is needed later; that one goes on."""
        for tier, heap in enumerate(self._heaps):
            if self._sizes[tier] < self.capacities[tier]:
                heappush(heap, -next_use)
                self._sizes[tier] += 1
                self.tier_of[block] = tier
                return
            farthest = self._farthest(tier)
            if farthest > next_use:
                heapreplace(heap, -next_use)
                self.tier_of[block] = tier
                block, next_use = self._asked[farthest], farthest
                self.tier_of[block] = NOWHERE

    def _farthest(self, tier: int) -> int:
        """The farthest next use in the tier, whose entry is then the first of the heap; -1: the tier is empty."""
        heap = self._heaps[tier]
        while heap:
            next_use = -heap[0]
            block = self._asked[next_use]
            if self.tier_of[block] == tier and self._next_of[block] == next_use:
                return next_use
            heappop(heap)
        return -1


POLICIES: dict[str, type[Cache]] = {policy.name: policy for policy in (Lru, TinyLfu, Belady)}
