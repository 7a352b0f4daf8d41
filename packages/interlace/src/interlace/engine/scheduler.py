"""Scheduler: which tokens the next forward pass computes.

Invariants
1. Every running sequence arrived before every waiting one, and both lists are in order of arrival. Sequences
   are admitted only when all running ones are fully scheduled, so at most the last running one is
   mid-prefill: walking `running` in order *is* decode first, then the prompt in progress.
3. Blocks are published when their pass has run, or has been given to a device, which runs it before later ones.
2. The first running sequence is always scheduled, by preempting later ones if need be; it fits alone (see
   `check_fits`). So every request ends.

Thread safety: none; it belongs to the engine's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from interlace.engine.cache.blocks import BlockManager
from interlace.engine.sequence import Sequence
from interlace.errors import CacheTooSmall
from tokenweave.kernels import BLOCK_SIZE, blocks_for


class Scheduled(NamedTuple):
    """`num_new` tokens of `sequence`, beginning at its `num_computed`, go through the next forward pass."""

    sequence: Sequence
    num_new: int

    @property
    def yields_token(self) -> bool:
        """The pass computes its last token, so it has logits to sample from; a partial prefill has none."""
        return self.num_new == self.sequence.num_uncomputed


class Scheduler:
    """First come, first served, within `max_num_seqs` sequences and `max_num_batched_tokens` tokens a pass."""

    def __init__(self, blocks: BlockManager, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
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
            num_new = min(sequence.num_uncomputed, budget)
            if not self._make_room(sequence, num_new):
                break
            batch.append(Scheduled(sequence, num_new))
            budget -= num_new
        if self.num_preemptions == preemptions_before:
            batch.extend(self._admit(budget))
        return batch

    def commit(self, batch: list[Scheduled]) -> None:
        """The pass ran: its tokens' keys and values are in the cache."""
        for sequence, num_new in batch:
            sequence.num_computed += num_new
            self._publish(sequence)

    def forget(self) -> None:
        """Has no block found any more, and none published of the sequences that have any now."""
        for sequence in self.running:
            sequence.names = None
        self.blocks.forget()

    def withdraw(self, sequence: Sequence) -> None:
        """Has no block of its text found, now or later: what the cache has of it may be broken."""
        self.blocks.withdraw(sequence.names_before(sequence.num_tokens))
        sequence.names = None

    def _publish(self, sequence: Sequence) -> None:
        """Has the blocks found that are full now. One whose last token is pending waits until it is known."""
        num_full = min(sequence.num_computed, sequence.num_tokens) // BLOCK_SIZE
        if sequence.names is None or num_full == sequence.num_published:
            return
        names, blocks = sequence.names_before(num_full * BLOCK_SIZE), sequence.table.blocks
        for index in range(sequence.num_published, num_full):
            sequence.table.replace(index, self.blocks.publish(blocks.item(index), names[index]))
        sequence.num_published = num_full

    def _leave_blocks(self, sequence: Sequence) -> None:
        self._publish(sequence)
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

    def _admit(self, budget: int) -> Iterator[Scheduled]:
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
                sequence.num_cached = sequence.num_computed
            num_new = min(sequence.num_uncomputed, budget)
            budget -= num_new
            yield Scheduled(sequence, num_new)
