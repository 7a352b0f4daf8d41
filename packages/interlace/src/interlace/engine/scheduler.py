"""Scheduler: which tokens the next forward pass computes.

Invariants
1. Every running sequence arrived before every waiting one, and both lists are in order of arrival. Sequences
   are admitted only when all running ones are fully scheduled, so at most the last running one is
   mid-prefill, but for those that a tier failed: walking `running` in order *is* decode first, then the prompt in
   progress.
2. The first running sequence is always scheduled, by preempting later ones if need be; it fits alone (see
   `check_fits`). So every request ends.
3. Blocks are published when their pass has run, or has been given to a device, which runs it before later ones.

Thread safety: none; it belongs to the engine's thread.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from interlace.engine.cache.blocks import BlockManager
from interlace.engine.cache.fetching import Question
from interlace.engine.cache.tiers import Tiers
from interlace.engine.cache.traffic import NOTHING_FETCHED, PassFetch
from interlace.engine.sequence import Sequence
from interlace.errors import CacheTooSmall
from interlace.models.moves import Move
from tokenweave.kernels import BLOCK_SIZE, blocks_for


class Scheduled(NamedTuple):
    """`num_new` tokens of `sequence`, beginning with the one at `start`, go through the next forward pass.

    All before `start` are in the cache then: computed, or fetched by that pass.
    """

    sequence: Sequence
    start: int
    num_new: int

    @property
    def yields_token(self) -> bool:
        """The pass computes its last token, so it has logits to sample from; a partial prefill has none."""
        sequence = self.sequence
        return self.start + self.num_new == sequence.num_tokens + sequence.num_pending


class Scheduler:
    """First come, first served, within `max_num_seqs` sequences and `max_num_batched_tokens` tokens a pass."""

    def __init__(
        self,
        num_blocks: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        tiers: Tiers | None = None,
    ) -> None:
        """`tiers` are those below the KV cache, which has `num_blocks`; None: there are none."""
        self.blocks = BlockManager(num_blocks, None if tiers is None else tiers.evict)
        self.tiers = tiers
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._fetching: list[Sequence] = []  # in the pass that was scheduled last
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence that fits (see `check_fits`)."""
        self.waiting.append(sequence)

    def check_fits(self, max_total: int) -> None:
        """Raises CacheTooSmall when `max_total` tokens could not be had even with the whole cache to themselves."""
        num_kept = max_total - 1  # the last token's keys and values are never needed
        if blocks_for(num_kept) > self.blocks.num_blocks:
            raise CacheTooSmall(
                f"a request may need {num_kept} tokens of KV cache for its prompt and max_tokens; the cache holds "
                f"{self.blocks.num_tokens}: lower max_tokens, shorten the prompt, or enlarge the "
                f"cache (kv_cache_gb or num_kv_blocks)"
            )

    def remove(self, sequence: Sequence) -> None:
        """Takes out a sequence that finished or was aborted, wherever it is, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._leave_blocks(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next pass; empty only when there is nothing to do. Blocks for its tokens are allocated.

        A sequence that has all its tokens, but for pending ones, is left out: it ends when these are known.
        """
        batch: list[Scheduled] = []
        budget, position = self.max_num_batched_tokens, 0
        preemptions_before = self.num_preemptions
        while budget > 0 and position < len(self.running):
            sequence = self.running[position]
            position += 1
            if sequence.is_full_then:
                continue
            if not self._make_room(sequence, min(sequence.num_uncomputed, budget)):
                break
            budget -= self._schedule(sequence, budget, batch)
        if self.num_preemptions == preemptions_before:
            self._admit(budget, batch)
        self._store(batch)
        return batch

    def take_moves(self) -> list[Move]:
        """The blocks that the pass just scheduled moves between tiers of memory."""
        return [] if self.tiers is None else self.tiers.take_moves()

    def commit(self, batch: list[Scheduled], fetched: PassFetch = NOTHING_FETCHED) -> list[Sequence]:
        """The pass ran: its tokens' keys and values are in the cache, but for the blocks that it could not fetch.

        Returns the sequences that read these. They are computed anew, and their tokens of this pass mean nothing.
        """
        missed = self._settle(batch, fetched)
        for item in batch:
            if item.sequence not in missed:
                item.sequence.compute_to(item.start + item.num_new)
        for sequence in dict.fromkeys(item.sequence for item in batch):
            if sequence not in missed:
                self._publish(sequence)
        for sequence in missed:
            starts = [item.start for item in batch if item.sequence is sequence]
            self._try_again(
                sequence, max(starts) if starts[-1] > sequence.num_computed else sequence.num_tokens
            )
        return missed

    def forget(self) -> None:
        """Has no block found any more, and none published of the sequences that have any now."""
        for sequence in self.running:
            sequence.names = None
        self.blocks.forget()
        if self.tiers is not None:
            self.tiers.forget()

    def withdraw(self, sequence: Sequence) -> None:
        """Has no block of its text found, now or later: what the cache has of it may be broken."""
        self._withdraw(sequence.names_before(sequence.num_tokens))
        sequence.names = None

    def _withdraw(self, names: list[bytes]) -> None:
        self.blocks.withdraw(names)
        if self.tiers is not None:
            self.tiers.withdraw(names)

    def _schedule(self, sequence: Sequence, budget: int, batch: list[Scheduled]) -> int:
        """Adds the next tokens of a running sequence to `batch`, at most `budget`. Returns how many these are."""
        items = self._next_of(sequence, budget, batch)
        batch += items
        return sum(item.num_new for item in items)

    def _next_of(self, sequence: Sequence, budget: int, batch: list[Scheduled]) -> list[Scheduled]:
        """The next tokens of a sequence, and what is fetched for it: see `fetching`."""
        start, end = sequence.num_computed, sequence.num_tokens + sequence.num_pending
        found = self._found_below(sequence)
        behind = (sequence.ready or found).stop
        if self.tiers is None or start >= behind * BLOCK_SIZE:
            return [Scheduled(sequence, start, min(end - start, budget))]
        names = sequence.names_before(found.stop * BLOCK_SIZE)[found.start :]
        question = Question(
            others=[(item.num_new, item.start + item.num_new) for item in batch],
            num_keys=start,
            num_before=found.start * BLOCK_SIZE - start,
            tiers=self.tiers.tiers_of(names),
            behind=behind * BLOCK_SIZE,
            end=end,
            budget=budget,
        )
        answer = self.tiers.choose(question)
        fetched = range(found.stop - answer.num_fetched, found.stop)
        if fetched:
            blocks = sequence.table.blocks[fetched.start : fetched.stop].tolist()
            self.tiers.fetch(names[len(names) - len(fetched) :], blocks)
            sequence.count_fetched(len(fetched) * BLOCK_SIZE)
            self._fetching.append(sequence)
        if fetched or sequence.ready:
            sequence.ready = range(fetched.start, behind)
        if not sequence.ready:
            return [Scheduled(sequence, start, min(end - start, budget))]
        front = sequence.ready.start * BLOCK_SIZE - start
        items = [Scheduled(sequence, start, min(front, budget))] if front else []
        if front < budget:
            rest = min(end - behind * BLOCK_SIZE, budget - front)
            items.append(Scheduled(sequence, behind * BLOCK_SIZE, rest))
        return items

    def _found_below(self, sequence: Sequence) -> range:
        """The next blocks of a sequence that has a prompt to compute, as far as tiers have them: their indices.

        They go up to those that were fetched before, or are none.
        """
        first = blocks_for(sequence.num_computed)
        if self.tiers is None or sequence.num_uncomputed <= BLOCK_SIZE:
            return range(0)
        if sequence.ready:
            missing = sequence.names_before(sequence.ready.start * BLOCK_SIZE)[first:]
            first = first if self.tiers.count(missing) == len(missing) else sequence.ready.start
            return range(first, sequence.ready.start)
        # One token at least is left to compute, for its logits are wanted.
        names = sequence.names_before(sequence.num_tokens - 1)[first:]
        return range(first, first + self.tiers.count(names))

    def _store(self, batch: list[Scheduled]) -> None:
        """Has full blocks stored: those that a prompt fills in this pass, and those that have waited for it."""
        if self.tiers is None:
            return
        prompts = [item for item in batch if item.num_new > 1]
        for sequence, start, num_new in prompts:
            num_full = min(start + num_new, sequence.num_tokens) // BLOCK_SIZE
            names = sequence.names_before(num_full * BLOCK_SIZE)
            for index in range(start // BLOCK_SIZE, len(names)):
                self.tiers.store(names[index], sequence.table.blocks.item(index))
        self.tiers.store_waiting(self.blocks.block_of, is_urgent=bool(prompts))

    def _settle(self, batch: list[Scheduled], fetched: PassFetch) -> list[Sequence]:
        """Tells the tiers how the pass went. Returns the sequences of `batch` that have a block it could not fetch."""
        if self.tiers is None:
            return []
        self.tiers.settle(fetched.failed)
        sequences = dict.fromkeys(item.sequence for item in batch) if fetched.failed else {}
        missed = [each for each in sequences if not fetched.failed.isdisjoint(each.table.blocks.tolist())]
        for sequence in self._fetching:
            if sequence not in missed:
                sequence.fetch_s += fetched.fetch_s
                sequence.fetch_waited_s += fetched.waited_s
        self._fetching.clear()
        return missed

    def _try_again(self, sequence: Sequence, behind: int) -> None:
        """Its pass could not fetch a block: what it computed from the token `behind` on is wrong, and found no more.

        It keeps its place and its blocks, and the next pass computes what they lack.
        """
        self._withdraw(sequence.names_before(sequence.num_tokens)[behind // BLOCK_SIZE :])
        sequence.lose_fetched()

    def _publish(self, sequence: Sequence) -> None:
        """Has the blocks found that are full now. One whose last token is pending waits until it is known."""
        num_full = min(sequence.num_computed, sequence.num_tokens) // BLOCK_SIZE
        if sequence.names is None or num_full == sequence.num_published:
            return
        names, blocks = sequence.names_before(num_full * BLOCK_SIZE), sequence.table.blocks
        for index in range(sequence.num_published, num_full):
            sequence.table.replace(index, self.blocks.publish(blocks.item(index), names[index]))
            if self.tiers is not None:
                self.tiers.filled(names[index])
        sequence.num_published = num_full

    def _leave_blocks(self, sequence: Sequence) -> None:
        self._publish(sequence)
        if self.tiers is not None:
            self.tiers.touch(sequence.names_before(min(sequence.num_computed, sequence.num_tokens)))
        self.blocks.free(sequence.drop_blocks())

    def _make_room(self, sequence: Sequence, num_new: int) -> bool:
        """Blocks for `num_new` more tokens, by preempting the latest-arrived; False if that is `sequence`."""
        num_wanted = sequence.table.num_missing(sequence.num_computed + num_new)
        while num_wanted > self.blocks.num_free:
            if self._preempt_latest() is sequence:
                return False
        if num_wanted > 0:
            sequence.table.extend(self.blocks.allocate(num_wanted))
        return True

    def _preempt_latest(self) -> Sequence:
        """Recomputed later: it keeps its tokens, loses its blocks and goes first in the queue."""
        victim = self.running.pop()
        self._leave_blocks(victim)
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(victim)
        return victim

    def _admit(self, budget: int, batch: list[Scheduled]) -> None:
        """Starts waiting sequences, in order. Each gets blocks for all its tokens at once.

        It shares the blocks that are found of them. One token at least is left to compute, for its logits are wanted.
        One free block is left for every sequence that then runs beside others: without that slack, a sequence
        just preempted would return at once, only to be preempted at the next block boundary.
        """
        while budget > 0 and self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            found = self.blocks.find(sequence.names_before(sequence.num_tokens - 1))
            num_wanted = sequence.table.num_missing(sequence.num_tokens) - len(found)
            num_taken = num_wanted + self.blocks.num_kept_of(found)
            if self.running and num_taken + len(self.running) > self.blocks.num_free:
                return
            self.running.append(self.waiting.popleft())
            self.blocks.share(found)
            sequence.take_found(found)
            sequence.table.extend(self.blocks.allocate(num_wanted))
            if sequence.first_scheduled_s is None:
                sequence.first_scheduled_s = time.perf_counter()
            if sequence.is_new:
                sequence.num_cached = sequence.num_computed
            budget -= self._schedule(sequence, budget, batch)
