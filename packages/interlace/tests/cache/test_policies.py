"""Each policy against a model of it that is as plain as can be, on small random traces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest

from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import NOWHERE, POLICIES, Belady, Cache, Lru, TinyLfu
from interlace.errors import BlockTraceError
from support.block_traces import random_trace, trace_of

SEEDS = range(8)
TIERS: list[list[int | None]] = [[0], [1], [5], [17], [None], [3, 6], [0, 4], [2, 3, 5], [3, None]]


def replay(cache: Cache, trace: BlockTrace) -> list[list[int]]:
    """The hits of each request in each tier; the invariants hold after each."""
    found = []
    for blocks in trace.blocks:
        found.append(cache.serve(blocks))
        for tier, capacity in enumerate(cache.capacities):
            assert cache.tier_of.count(tier) <= capacity
    return found


def prefix(blocks: Sequence[int], tiers: Sequence[list[int]]) -> list[int]:
    hits = [0] * len(tiers)
    for block in blocks:
        where = [at for at, tier in enumerate(tiers) if block in tier]
        if not where:
            break
        hits[where[0]] += 1
    return hits


def plain_lru(trace: BlockTrace, capacities: Sequence[int | None]) -> list[list[int]]:
    """One list of all blocks, the latest first; the tiers are cut off its front."""
    order: list[int] = []
    found = []
    for blocks in trace.blocks:
        tiers, begin = [], 0
        for capacity in capacities:
            end = len(order) if capacity is None else begin + capacity
            tiers.append(order[begin:end])
            begin = end
        found.append(prefix(blocks, tiers))
        order = [*blocks, *(each for each in order if each not in blocks)]
    return found


def plain_tinylfu(
    trace: BlockTrace, capacities: Sequence[int | None], reads_per_block: int
) -> list[list[int]]:
    """Lists of blocks, the oldest first, and counts that are all halved at once."""
    tiers: list[list[int]] = [[] for _ in capacities]
    counts = dict.fromkeys(range(trace.num_distinct), 0)
    reads, found = 0, []
    for blocks in trace.blocks:
        found.append(prefix(blocks, tiers))
        for block in reversed(blocks):
            counts[block] += 1
            was_top = block in tiers[0]
            for tier in tiers:
                if block in tier:
                    tier.remove(block)
            falling: int | None = block
            for tier, capacity in zip(tiers, capacities, strict=True):
                if falling is None or capacity == 0:
                    continue
                if was_top or capacity is None or len(tier) < capacity:
                    tier.append(falling)
                    falling = None
                    was_top = False
                elif counts[falling] > counts[tier[0]]:
                    tier.append(falling)
                    falling = tier.pop(0)
        reads += len(blocks)
        if None not in capacities and reads >= max(1, reads_per_block * sum(filter(None, capacities))):
            reads = 0
            counts = {block: count // 2 for block, count in counts.items()}
    return found


def most_hits(trace: BlockTrace, capacity: int) -> int:
    """The most that any way to keep blocks can reach: every set of them after each request is tried."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for blocks in trace.blocks:
        reached: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            total = hits + len(held & set(blocks))
            at_hand = held | set(blocks)
            for size in range(min(capacity, len(at_hand)) + 1):
                for kept in map(frozenset, combinations(sorted(at_hand), size)):
                    reached[kept] = max(reached.get(kept, 0), total)
        best = reached
    return max(best.values())


@pytest.mark.parametrize("capacities", TIERS, ids=str)
def test_lru_does_as_a_plain_model_does(capacities: list[int | None]) -> None:
    for seed in SEEDS:
        trace = random_trace(seed)
        assert replay(Lru(trace, capacities), trace) == plain_lru(trace, capacities)


@pytest.mark.parametrize("reads_per_block", [1, 3, 10])
@pytest.mark.parametrize("capacities", TIERS, ids=str)
def test_tinylfu_does_as_a_plain_model_does(capacities: list[int | None], reads_per_block: int) -> None:
    for seed in SEEDS:
        trace = random_trace(seed)
        found = replay(TinyLfu(trace, capacities, reads_per_block), trace)
        assert found == plain_tinylfu(trace, capacities, reads_per_block)


@pytest.mark.parametrize("capacity", [0, 1, 2, 3])
def test_belady_reaches_the_most_hits_that_there_are(capacity: int) -> None:
    for seed in SEEDS:
        trace = random_trace(seed, 7)
        assert sum(map(sum, replay(Belady(trace, [capacity]), trace))) == most_hits(trace, capacity)


@pytest.mark.parametrize("policy", ["lru", "tinylfu"])
@pytest.mark.parametrize("capacities", TIERS, ids=str)
def test_belady_bounds_the_others(policy: str, capacities: list[int | None]) -> None:
    for seed in SEEDS:
        trace = random_trace(seed)
        found = sum(map(sum, replay(POLICIES[policy](trace, capacities), trace)))
        assert found <= sum(map(sum, replay(Belady(trace, capacities), trace)))


@pytest.mark.parametrize("policy", ["lru", "belady"])
def test_where_tiers_are_cut_changes_no_hit(policy: str) -> None:
    for seed in SEEDS:
        trace = random_trace(seed)
        whole, cut = (replay(POLICIES[policy](trace, each), trace) for each in ([10], [2, 5, 3]))
        assert [sum(each) for each in cut] == [sum(each) for each in whole]


def test_the_hits_of_belady_are_unbroken_prefixes() -> None:
    for seed in SEEDS:
        trace = random_trace(seed)
        cache = Belady(trace, [2, 6])
        for blocks in trace.blocks:
            is_held = [cache.tier_of[block] != NOWHERE for block in blocks]
            assert is_held == sorted(is_held, reverse=True)
            assert sum(cache.serve(blocks)) == sum(is_held)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_limit_every_block_seen_before_is_a_hit(policy: str) -> None:
    trace = random_trace(3)
    hits = sum(map(sum, replay(POLICIES[policy](trace, [None]), trace)))
    assert hits == len(trace.asked) - trace.num_distinct


def test_the_last_block_of_a_prompt_leaves_first() -> None:
    trace = trace_of([0, 1, 2], [3], [0, 1, 2])
    assert replay(Lru(trace, [3]), trace) == [[0], [0], [2]]


def test_a_block_behind_a_missing_one_is_no_hit() -> None:
    """After the second prompt, which names 1 and 2 but not 0 before them, the third finds 1 and 2 without 0."""
    trace = trace_of([0, 1, 2], [1, 2], [0, 1, 2])
    assert replay(Lru(trace, [2]), trace) == [[0], [1], [0]]


def test_a_block_that_comes_once_does_not_push_one_out_that_comes_often() -> None:
    trace = trace_of([0], [0], [1], [2], [0])
    assert replay(TinyLfu(trace, [1]), trace) == [[0], [1], [0], [0], [1]]
    assert replay(Lru(trace, [1]), trace) == [[0], [1], [0], [0], [0]]


@pytest.mark.parametrize("capacities", [[], [-1], [4, -2]], ids=str)
def test_capacities_that_make_no_sense_are_refused(capacities: list[int | None]) -> None:
    with pytest.raises(BlockTraceError, match="got capacities"):
        Lru(random_trace(0), capacities)


def test_tinylfu_refuses_to_halve_without_reads() -> None:
    with pytest.raises(BlockTraceError, match="got reads_per_block=0"):
        TinyLfu(random_trace(0), [4], 0)
