"""The moves of a rank, against NumPy: the bytes that each kind of move leaves where, whatever is slow or broken.

Slow tiers are modelled ones. They make the windows wide in which something could be read or overwritten too early; what
is asserted are contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import pytest
import torch

from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.cache import tier_copies, tier_mover, tier_stores
from interlace.engine.cache.tier_memory import SlotMemory
from interlace.engine.cache.tier_mover import TierMover
from interlace.errors import EngineError
from interlace.models.batch import ForwardBatch
from interlace.models.moves import LOCAL, Move, MoveKind, moves_tensor
from support.patience import PATIENCE_S, wait_until

NUM_LAYERS, NUM_BLOCKS, BLOCK = 3, 6, (2, 16, 8)
PIECE_BYTES = 2 * 16 * 8 * 4
SLOT_BYTES = NUM_LAYERS * PIECE_BYTES
FAST = "dram:64KiB"
SLOW = "cxl:64KiB@0.001GB/s,1us"  # 3 ms for a block
STALLED = "cxl:64KiB@1GB/s,9900ms"  # answers after ten seconds, and nobody expects that
STALLED_PLACE = 2
EVICT, FETCH, STORE = MoveKind.EVICT, MoveKind.FETCH, MoveKind.STORE


class Bench:
    """A cache, its tiers, and passes that write what they are told to."""

    def __init__(self, tiers: Sequence[str], num_slots: int = 8) -> None:
        self.cache = torch.zeros((NUM_LAYERS, NUM_BLOCKS, *BLOCK))
        self.memory = SlotMemory([KvTierSpec.parse(text) for text in tiers], SLOT_BYTES)
        self.memory.allocate([num_slots] * len(tiers))
        self.mover = TierMover(self.cache, self.memory, PATIENCE_S)

    def run(self, *moves: Move, writes: dict[int, int] | None = None) -> set[int]:
        """One pass that writes a number over each block of `writes`, layer by layer. Returns what failed."""
        self.mover.begin(batch(moves, writes or {}))
        for layer in range(NUM_LAYERS):
            self.run_layer(layer, moves, writes or {})
        for layer in range(NUM_LAYERS):
            if any(move.kind is STORE for move in moves):
                self.mover.store(layer)
        found = self.mover.end().failed
        self.given_up = [-number for number in found if number < 0]
        return {number for number in found if number >= 0}

    def run_layer(self, layer: int, moves: tuple[Move, ...], writes: dict[int, int]) -> None:
        kinds = {move.kind for move in moves}
        if EVICT in kinds:
            self.mover.evict(layer)
        if FETCH in kinds:
            self.mover.fetch(layer)
        for block, number in writes.items():
            self.cache[layer, block] = contents(number)[layer]

    def write(self, *numbers: int) -> None:
        """Fills the first blocks."""
        for block, number in enumerate(numbers):
            self.cache[:, block] = contents(number)

    def local(self, block: int) -> npt.NDArray[np.float32]:
        return self.cache[:, block].numpy()

    def run_too_long(self, *moves: Move, writes: dict[int, int] | None = None) -> set[int]:
        """A pass that waits no longer when what is not behind a tier that stalls is there."""
        begin_moving = self.mover._begin_moving

        def late(moving: tier_mover._Pass) -> None:
            begin_moving(moving)
            for copies in chain.from_iterable(moving.under_way.values()):
                if STALLED_PLACE in copies.rows[:, [tier_copies.FROM, tier_copies.TO]]:
                    break
                copies.completion.wait(PATIENCE_S)
            moving.deadline_s = 0.0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.mover, "_begin_moving", late)
            return self.run(*moves, writes=writes)

    def settle(self) -> None:
        """Returns when no store is under way."""
        for stores in self.mover._stores._pending:
            stores.completion.wait(PATIENCE_S)
        assert not self.mover.is_busy

    def slot(self, place: int, index: int) -> npt.NDArray[np.float32]:
        """The contents of a slot, when nothing is under way."""
        self.settle()
        held = np.asarray(self.memory.buffers[place - 1]).view(np.uint8)
        own = held[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]
        return own.view(np.float32).reshape(NUM_LAYERS, *BLOCK)

    def poison(self, place: int, index: int, layer: int = 0) -> None:
        buffer = self.memory.buffers[place - 1]
        buffer.tier.poison(buffer.address + index * SLOT_BYTES + layer * PIECE_BYTES + 64, 64)


def batch(moves: tuple[Move, ...], writes: dict[int, int]) -> ForwardBatch:
    """One that writes the last token of each block of `writes`."""
    made = ForwardBatch.prefill(max(1, len(writes)), vocab_size=16)
    slots = [block * 16 + 15 for block in writes] or [-1]
    return replace(made, slots=torch.tensor(slots, dtype=torch.int32), moves=moves_tensor([*moves]))


def contents(number: int) -> torch.Tensor:
    """The contents of a block that `number` names: different ones in every layer and place."""
    size = NUM_LAYERS * int(np.prod(BLOCK))
    return (torch.arange(size, dtype=torch.float32) + number * 10_000).reshape(NUM_LAYERS, *BLOCK)


@contextmanager
def opened(*tiers: str) -> Iterator[Bench]:
    bench = Bench(tiers)
    try:
        yield bench
    finally:
        bench.mover.close()
        assert bench.memory.context.closed


@pytest.mark.parametrize("tier", [FAST, SLOW])
def test_every_kind_of_move_takes_every_layer_to_its_place(tier: str) -> None:
    with opened(tier, FAST.replace("dram", "low")) as bench:
        bench.write(1, 2, 3)
        assert not bench.run(Move(STORE, LOCAL, 0, 1, 5), Move(STORE, LOCAL, 2, 1, 0), writes={2: 33})
        assert not bench.run(
            Move(EVICT, 1, 5, 2, 7), Move(EVICT, LOCAL, 1, 1, 5), Move(FETCH, 1, 0, LOCAL, 4), writes={1: 22}
        )
        for found, number in (
            (bench.slot(1, 0), 33),  # as the pass wrote it
            (bench.slot(2, 7), 1),  # gone down before block 1 took its slot
            (bench.slot(1, 5), 2),  # as it was before the pass overwrote it
            (bench.local(1), 22),
            (bench.local(4), 33),
            (bench.local(0), 1),
        ):
            np.testing.assert_array_equal(found, contents(number).numpy())
        assert not bench.run(Move(FETCH, 2, 7, LOCAL, 0), Move(FETCH, 1, 5, LOCAL, 3))
        np.testing.assert_array_equal(bench.local(0), contents(1).numpy())
        np.testing.assert_array_equal(bench.local(3), contents(2).numpy())


def test_a_block_that_is_evicted_may_be_fetched_by_the_same_pass() -> None:
    with opened(SLOW) as bench:
        bench.write(1)
        assert not bench.run(Move(EVICT, LOCAL, 0, 1, 3), Move(FETCH, 1, 3, LOCAL, 5), writes={0: 9})
        np.testing.assert_array_equal(bench.local(5), contents(1).numpy())
        np.testing.assert_array_equal(bench.local(0), contents(9).numpy())


def test_a_pass_does_not_overwrite_a_block_whose_store_is_under_way() -> None:
    with opened(SLOW) as bench:
        bench.write(1, 2, 3, 4)
        bench.run(*(Move(STORE, LOCAL, block, 1, block) for block in range(4)))
        bench.run(writes={3: 99})
        bench.run(Move(FETCH, 1, 1, LOCAL, 2), writes={0: 98})
        for block in range(4):
            np.testing.assert_array_equal(bench.slot(1, block), contents(block + 1).numpy())


def test_a_slot_is_not_read_while_it_is_written() -> None:
    with opened(SLOW, FAST) as bench:
        bench.write(1, 2)
        bench.run(Move(STORE, LOCAL, 0, 1, 0), Move(STORE, LOCAL, 1, 1, 1))
        bench.run(Move(EVICT, 1, 1, 2, 0), Move(FETCH, 1, 0, LOCAL, 5))
        np.testing.assert_array_equal(bench.local(5), contents(1).numpy())
        np.testing.assert_array_equal(bench.slot(2, 0), contents(2).numpy())


def test_the_last_of_two_stores_to_a_slot_is_what_is_there() -> None:
    """As after a reset of the prefix cache, which frees slots that are being written."""
    with opened(SLOW) as bench:
        bench.write(1, 2)
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        bench.run(Move(STORE, LOCAL, 1, 1, 0))
        bench.run(Move(FETCH, 1, 0, LOCAL, 5))
        np.testing.assert_array_equal(bench.local(5), contents(2).numpy())


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_a_poisoned_slot_fails_alone(layer: int, caplog: pytest.LogCaptureFixture) -> None:
    with opened(FAST) as bench:
        bench.write(1, 2, 3)
        bench.run(*(Move(STORE, LOCAL, block, 1, block) for block in range(3)))
        bench.settle()
        bench.poison(1, 1, layer)
        assert bench.run(*(Move(FETCH, 1, block, LOCAL, block + 3) for block in range(3))) == {4}
        np.testing.assert_array_equal(bench.local(3), contents(1).numpy())
        np.testing.assert_array_equal(bench.local(5), contents(3).numpy())
        assert bench.mover.traffic[0].num_failures == 1
        assert len(caplog.records) == 1, caplog.text
        assert "'dram:64KiB' below the KV cache has failed to move 1 block(s) so far" in caplog.text
        assert not bench.mover.traffic[0].is_given_up


def test_poison_that_comes_while_blocks_are_fetched_costs_those_it_is_in() -> None:
    with opened(SLOW) as bench:
        bench.write(1, 2, 3)
        moves = tuple(Move(FETCH, 1, block, LOCAL, block + 3) for block in range(3))
        bench.run(*(Move(STORE, LOCAL, block, 1, block) for block in range(3)))
        bench.settle()
        bench.mover.begin(batch(moves, {}))
        bench.run_layer(0, moves, {})
        bench.poison(1, 2, layer=2)
        for layer in (1, 2):
            bench.run_layer(layer, moves, {})
        failed = bench.mover.end().failed
        assert failed <= {5}
        for block in {3, 4, 5} - failed:
            np.testing.assert_array_equal(bench.local(block), contents(block - 2).numpy())


def test_what_could_not_be_stored_fails_when_it_is_fetched() -> None:
    with opened(FAST) as bench:
        bench.write(1, 2)
        bench.poison(1, 0, layer=1)
        bench.run(Move(STORE, LOCAL, 0, 1, 0), Move(STORE, LOCAL, 1, 1, 1))
        assert bench.run(Move(FETCH, 1, 0, LOCAL, 4), Move(FETCH, 1, 1, LOCAL, 5)) == {4}
        np.testing.assert_array_equal(bench.local(5), contents(2).numpy())


def test_what_could_not_be_evicted_fails_for_whoever_reads_it_in_the_same_pass_or_later() -> None:
    with opened(FAST, FAST.replace("dram", "low")) as bench:
        bench.write(1, 2, 3)
        bench.run(Move(STORE, LOCAL, 2, 1, 2))
        bench.poison(1, 0, layer=2)
        evicted = bench.run(
            Move(EVICT, LOCAL, 0, 1, 0),
            Move(EVICT, LOCAL, 1, 1, 1),
            Move(FETCH, 1, 0, LOCAL, 3),
            Move(FETCH, 1, 1, LOCAL, 4),
            Move(FETCH, 1, 2, LOCAL, 5),
            writes={0: 9, 1: 9},
        )
        assert evicted == {3}, "the others were written and read"
        assert bench.run(Move(EVICT, 1, 0, 2, 4)) == set()
        assert bench.run(Move(FETCH, 2, 4, LOCAL, 0)) == {0}, "nonsense is not handed down"
        np.testing.assert_array_equal(bench.local(4), contents(2).numpy())
        np.testing.assert_array_equal(bench.local(5), contents(3).numpy())


def test_what_goes_on_from_a_slot_that_was_not_written_is_not_there() -> None:
    with opened(FAST, FAST.replace("dram", "low"), FAST.replace("dram", "last")) as bench:
        bench.write(1)
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        bench.poison(2, 0)
        bench.run(Move(EVICT, 1, 0, 2, 0), Move(EVICT, 2, 0, 3, 0))
        assert bench.run(Move(FETCH, 3, 0, LOCAL, 5)) == {5}


def test_a_store_that_failed_late_is_not_handed_down() -> None:
    """The pass behind it moves the slot on; what became of the store is known when that pass begins."""
    with opened(SLOW, FAST) as bench:
        bench.write(1)
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        for stores in bench.mover._stores._pending:
            stores.completion.cancel()
        bench.run(Move(EVICT, 1, 0, 2, 0))
        assert bench.run(Move(FETCH, 2, 0, LOCAL, 5)) == {5}


def test_a_slot_that_is_written_anew_is_good_again() -> None:
    with opened(SLOW) as bench:
        bench.write(1, 2)
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        for stores in bench.mover._stores._pending:
            stores.completion.cancel()
        bench.run(Move(STORE, LOCAL, 1, 1, 0))
        assert not bench.run(Move(FETCH, 1, 0, LOCAL, 5))
        np.testing.assert_array_equal(bench.local(5), contents(2).numpy())


def test_a_stalled_tier_fails_what_is_fetched_and_is_used_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with opened(FAST, STALLED) as bench:
        bench.write(1)
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        fetches = Move(FETCH, 2, 0, LOCAL, 4), Move(FETCH, 1, 0, LOCAL, 5)
        failed = bench.run_too_long(*fetches[:1])
        assert failed == {4}
        assert bench.given_up == [STALLED_PLACE]
        assert [traffic.is_given_up for traffic in bench.mover.traffic] == [False, True]
        assert bench.run(*fetches) == {4}, "at once, and the tier that works is read"
        np.testing.assert_array_equal(bench.local(5), contents(1).numpy())
        bench.run(Move(STORE, LOCAL, 0, 2, 1), Move(EVICT, LOCAL, 0, 2, 2))
        assert not bench.mover._stores
        assert bench.run(Move(FETCH, 2, 2, LOCAL, 3)) == {3}
        assert [record.getMessage() for record in caplog.records] == [
            f"the tier {STALLED!r} below the KV cache is used no more: it did not answer in time "
            f"(kv_tier_timeout_s={PATIENCE_S:g})"
        ]


def test_a_tier_that_works_is_not_given_up_for_one_that_does_not() -> None:
    with opened(FAST, STALLED) as bench:
        bench.write(1)
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        failed = bench.run_too_long(Move(FETCH, 2, 0, LOCAL, 4), Move(FETCH, 1, 0, LOCAL, 5))
        assert 4 in failed
        assert [traffic.is_given_up for traffic in bench.mover.traffic] == [False, True]
        assert not bench.run(Move(FETCH, 1, 0, LOCAL, 5))
        np.testing.assert_array_equal(bench.local(5), contents(1).numpy())


def test_nothing_of_a_fetch_that_was_given_up_arrives_later() -> None:
    with opened(SLOW) as bench:
        bench.write(1, 2)
        moves = tuple(Move(FETCH, 1, slot, LOCAL, slot) for slot in range(NUM_BLOCKS))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.mover._copies, "patience_s", lambda rows: 0.0)
            patch.setattr(bench.mover, "_timeout_s", 0.001)
            assert bench.run(*moves), "18 ms are not 1"
        before = bench.cache.clone()
        bench.mover._up.submit([(bytearray(4), b"last", 4)]).wait(PATIENCE_S)
        np.testing.assert_array_equal(bench.cache.numpy(), before.numpy())


def test_stores_to_a_stalled_tier_end_together(caplog: pytest.LogCaptureFixture) -> None:
    """One of them is waited for, and a pass needs the blocks of all."""
    with opened(FAST, STALLED) as bench:
        bench.write(1, 2, 3, 4, 5)
        for block in range(4):
            bench.run(Move(STORE, LOCAL, block, 2, block))
        bench.run(Move(STORE, LOCAL, 4, 1, 0))
        bench.mover._stores._due_s = 0.0
        assert not bench.run(writes=dict.fromkeys(range(4), 9))
        assert bench.given_up == [STALLED_PLACE], "it is told by a pass that fetches nothing"
        assert [traffic.is_given_up for traffic in bench.mover.traffic] == [False, True]
        assert bench.run(*(Move(FETCH, 2, block, LOCAL, block) for block in range(4))) == {0, 1, 2, 3}
        assert not bench.run(Move(FETCH, 1, 0, LOCAL, 5))
        np.testing.assert_array_equal(bench.local(5), contents(5).numpy())
        assert len(caplog.records) == 1, caplog.text


def test_a_stalled_store_is_noticed_though_nobody_waits_for_it() -> None:
    """Others, to a tier that works, are behind it."""
    with opened(FAST, STALLED) as bench:
        bench.write(1, 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.mover._stores, "timeout_s", 0.0)
            bench.run(Move(STORE, LOCAL, 0, 2, 0))
        bench.run(Move(STORE, LOCAL, 1, 1, 0))
        wait_until(lambda: not bench.mover.is_busy and not bench.mover._stores)
        assert not bench.run(Move(FETCH, 1, 0, LOCAL, 5))
        np.testing.assert_array_equal(bench.local(5), contents(2).numpy())
        assert [traffic.is_given_up for traffic in bench.mover.traffic] == [False, True]


def test_evictions_to_a_stalled_tier_end_and_are_not_there() -> None:
    with opened(FAST, STALLED) as bench:
        bench.write(1)
        moves = Move(EVICT, LOCAL, 0, 2, 0), Move(FETCH, 2, 0, LOCAL, 5)
        assert bench.run_too_long(*moves, writes={0: 9}) == {5}
        np.testing.assert_array_equal(bench.local(0), contents(9).numpy())
        assert bench.run(Move(FETCH, 2, 0, LOCAL, 5)) == {5}


@pytest.mark.slow
@pytest.mark.parametrize("tiers", [(FAST, STALLED), (STALLED, FAST)])
def test_of_the_two_ends_of_a_move_the_one_that_stalls_is_given_up(tiers: tuple[str, str]) -> None:
    with opened(*tiers) as bench, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.mover, "_timeout_s", 2.0)
        bench.run(Move(EVICT, 1, 0, 2, 0))
        assert bench.given_up == [1 + tiers.index(STALLED)]


def test_a_tier_that_refuses_to_be_read_answers() -> None:
    with opened(FAST) as bench:
        buffer = bench.memory.buffers[0]
        buffer.tier.poison(buffer.address, 64)
        assert bench.mover._copies.answers(1, PATIENCE_S)


def test_evictions_may_wait_for_the_stores_before_them() -> None:
    """A slow tier that has much to write is no stalled one."""
    with opened(STALLED.replace("9900ms", "500ms").replace("1GB", "0.001GB")) as bench:
        bench.run(*(Move(STORE, LOCAL, block, 1, block) for block in range(NUM_BLOCKS)))
        bench.mover.begin(batch((Move(EVICT, LOCAL, 0, 1, 7),), {}))
        moving = bench.mover._running
        least_s = PATIENCE_S + 2 * (NUM_BLOCKS + 1) * SLOT_BYTES / 1e6
        assert moving.deadline_s - moving.start_s >= 0.999 * least_s


def test_nothing_is_waited_for_longer_than_other_ranks_wait_for_this_one() -> None:
    with opened(FAST, STALLED) as bench:
        bench.mover._most_s = bench.mover._stores._most_s = 0.01
        bench.run(Move(STORE, LOCAL, 0, 2, 0))
        assert not bench.run(writes={0: 9})
        assert bench.given_up == [STALLED_PLACE]
    with opened(FAST, STALLED) as bench:
        bench.mover._most_s = 0.01
        assert bench.run(Move(FETCH, 2, 0, LOCAL, 5)) == {5}


@pytest.mark.parametrize("limit", ["MAX_BACKLOG_BYTES", "MAX_BACKLOG_S"])
def test_a_mover_is_busy_with_many_stores(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_stores, limit, 0)
    with opened(STALLED) as bench:
        assert not bench.mover.is_busy
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        assert bench.mover.is_busy


def test_closing_ends_stores_and_fetches_under_way() -> None:
    for is_within in (False, True):
        with opened(STALLED) as bench:  # which checks that the context is closed
            bench.run(*(Move(STORE, LOCAL, block, 1, block) for block in range(4)))
            if is_within:
                fetch = (Move(FETCH, 1, 6, LOCAL, 5),)
                bench.mover.begin(batch(fetch, {}))
        assert not bench.memory.buffers


def test_a_copy_that_cannot_be_ended_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(STALLED) as bench:
        bench.run(Move(STORE, LOCAL, 0, 1, 0))
        completion = bench.mover._stores._pending[0].completion
        bench.mover._stores._due_s = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(tier_copies, "CANCEL_S", 0.0)
            patch.setattr(type(completion), "cancel", lambda self: None)
            with pytest.raises(EngineError, match="is its device there"):
                bench.run(writes={0: 9})
            with pytest.raises(EngineError, match="is its device there"):
                bench.mover.close()
