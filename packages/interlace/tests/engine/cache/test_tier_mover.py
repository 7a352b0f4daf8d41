"""The moves of a rank, against NumPy: the bytes that each kind of move leaves where, whatever is slow or broken."""

from __future__ import annotations

import random
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from interlace.models.moves import LOCAL, Move
from support.tier_bench import (
    EVICT,
    FAST,
    FETCH,
    NUM_BLOCKS,
    NUM_LAYERS,
    SLOW,
    STORE,
    Bench,
    batch,
    contents,
    opened,
)


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


class Model:
    """The numbers of `contents` that every place has, by index."""

    def __init__(self, chance: random.Random, num_slots: Sequence[int]) -> None:
        self.chance, self.num_slots = chance, num_slots
        self.held = {(LOCAL, block): 0 for block in range(NUM_BLOCKS)}
        self.next_number = 1

    def slot(self) -> tuple[int, int]:
        place = self.chance.randrange(len(self.num_slots))
        return place + 1, self.chance.randrange(self.num_slots[place])

    def plan(self) -> tuple[list[Move], dict[int, int], dict[int, int]]:
        """Moves of a pass, what it writes, and what it is to find where it fetches, by block."""
        moves, fetched, written = [], {}, {}
        blocks = self.chance.sample(range(NUM_BLOCKS), NUM_BLOCKS)
        for _ in range(self.chance.randrange(4)):
            source, target = self.chance.choice([*self.held]), self.slot()
            if source != target:
                moves.append(Move(EVICT, *source, *target))
                self.held[target] = self.held[source]
        touched = {move[3:] for move in moves}
        slots = [slot for slot in self.held if slot[0] != LOCAL]
        for source in self.chance.sample(slots, min(len(slots), self.chance.randrange(3))):
            block = blocks.pop()
            moves.append(Move(FETCH, *source, LOCAL, block))
            fetched[block] = self.held[source]
            touched.add(source)
        for block in blocks[: self.chance.randrange(3)]:
            written[block] = self.held[LOCAL, block] = self.next_number
            self.next_number += 1
        for block in self.chance.sample(blocks, self.chance.randrange(3)):
            target = self.slot()
            if target not in touched:
                touched.add(target)
                moves.append(Move(STORE, LOCAL, block, *target))
                self.held[target] = self.held[LOCAL, block]
        return moves, written, fetched

    def arrive(self, bench: Bench, fetched: dict[int, int], failed: set[int]) -> None:
        """Every block that was fetched has what was last written to its slot; the others have nonsense."""
        for block, number in fetched.items():
            self.held[LOCAL, block] = number
            if block not in failed:
                read = [bench.read[layer, block] for layer in range(NUM_LAYERS)]
                np.testing.assert_array_equal(read, contents(number).numpy())
            else:
                self.held[LOCAL, block] = self.next_number  # as if it were computed anew
                bench.cache[:, block] = contents(self.next_number)
                self.next_number += 1
        for (place, block), number in self.held.items():
            if place == LOCAL:
                np.testing.assert_array_equal(bench.local(block), contents(number).numpy())


@given(seed=st.integers(0, 2**32), poison_rate=st.sampled_from([0.0, 0.0, 0.3]))
@settings(max_examples=10)
def test_passes_of_any_moves_find_what_was_last_written(seed: int, poison_rate: float) -> None:
    chance = random.Random(seed)
    with opened(SLOW, SLOW.replace("cxl", "far"), FAST) as bench:
        for block in range(NUM_BLOCKS):
            bench.cache[:, block] = contents(0)
        model = Model(chance, [2, 2, 3])
        for _ in range(10):
            moves, written, fetched = model.plan()
            failed = bench.run(*moves, writes=written)
            assert failed <= fetched.keys()
            assert poison_rate or not failed
            model.arrive(bench, fetched, failed)
            if chance.random() < poison_rate:
                bench.poison(*model.slot(), chance.randrange(NUM_LAYERS))
