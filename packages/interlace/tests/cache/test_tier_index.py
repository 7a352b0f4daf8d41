"""The index of the tiers against a plain model of what it does."""

from __future__ import annotations

from collections import OrderedDict

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emucxl.apps.policies import TinyLfu
from interlace.cache.tier_index import POLICY_NAMES, Descent, Place, TierIndex
from interlace.errors import EngineError

NAMES = [bytes([number]) for number in range(12)]
names_strategy = st.sampled_from(NAMES)


def test_a_policy_that_there_is_not_is_refused() -> None:
    with pytest.raises(EngineError, match="got kv_tier_policy='leave': expected one of lru, tinylfu"):
        TierIndex([1], "leave")


def test_what_leaves_a_tier_goes_to_the_next_one_before_its_slot_is_written() -> None:
    index = TierIndex([1, 1])
    assert index.put(b"a") == (Place(0, 0), [])
    assert index.put(b"b") == (Place(0, 0), [Descent(Place(0, 0), Place(1, 0))])
    # The lowest one moves first, out of the way of the one above it; below the last tier it is lost.
    assert index.put(b"c") == (Place(0, 0), [Descent(Place(0, 0), Place(1, 0))])
    assert (index.find(b"a"), index.find(b"b"), index.find(b"c")) == (None, Place(1, 0), Place(0, 0))
    index.check()


def test_a_cascade_of_three_tiers_is_told_from_the_bottom() -> None:
    index = TierIndex([1, 1, 1])
    for name in (b"a", b"b"):
        index.put(name)
    assert index.put(b"c") == (
        Place(0, 0),
        [Descent(Place(1, 0), Place(2, 0)), Descent(Place(0, 0), Place(1, 0))],
    )


def test_a_name_below_comes_up_when_it_is_put_again() -> None:
    index = TierIndex([1, 2])
    for name in (b"a", b"b"):
        index.put(name)
    assert index.find(b"a") == Place(1, 0)
    found = index.put(b"a")
    assert found is not None
    assert found[0] == Place(0, 0)
    assert index.put(b"a") is None, "it is in the top tier"
    assert len(index) == 2
    index.check()


def test_a_name_that_is_used_often_takes_that_with_it_to_the_tier_below() -> None:
    """Else nothing that goes down would take the place of anything there."""
    upper, lower = TinyLfu(reads_per_entry=100), TinyLfu(reads_per_entry=100)
    upper.inserted(b"hot", is_local=True)
    lower.inserted(b"cold", is_local=True)
    for policy, name, count in ((upper, b"hot", 3), (lower, b"cold", 2)):
        for _ in range(count):
            policy.used(name)
    assert not lower.gives_way(b"cold", b"hot")
    upper.tells(b"hot", lower)
    assert lower.gives_way(b"cold", b"hot")


def test_the_tier_below_is_told_of_a_name_before_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []
    monkeypatch.setattr(TinyLfu, "tells", lambda self, key, other: told.append(key))
    index = TierIndex([1, 1], "tinylfu")
    index.put(b"cold")
    index.put(b"hot")
    assert told == [b"cold"]


def test_the_last_block_of_a_text_leaves_first() -> None:
    index = TierIndex([3])
    for name in (b"c", b"a", b"b"):
        index.put(name)
    index.touch([b"a", b"b", b"c", b"of nobody"])
    index.put(b"d")
    assert sorted(index) == [b"a", b"b", b"d"]


def test_a_pinned_name_stays_and_nothing_takes_its_place() -> None:
    index = TierIndex([1, 1])
    index.put(b"a")
    index.pin(b"a")
    assert index.put(b"b") == (Place(1, 0), []), "in the tier below, which has room"
    index.pin(b"b")
    assert index.put(b"c") is None
    index.unpin_all()
    assert index.put(b"c") is not None


def test_a_lost_slot_is_used_no_more_and_a_closed_tier_not_at_all() -> None:
    index = TierIndex([2, 1])
    for name in (b"a", b"b"):
        index.put(name)
    index.lose([b"a", b"of nobody"])
    place = index.find(b"b")
    assert [index.put(name) is not None for name in (b"c", b"d", b"e")] == [True] * 3
    assert index.find(b"e") == place, "the one slot that the tier has left"
    assert index.num_held(0) == 1
    index.close(0)
    assert (index.num_held(0), index.find(b"e")) == (0, None)
    index.put(b"f")
    assert index.find(b"f") == Place(1, 0)
    index.close(1)
    assert index.put(b"g") is None
    assert len(index) == 0
    index.check()


def test_a_name_that_is_read_often_keeps_its_slot_from_those_that_are_not() -> None:
    index = TierIndex([1, 1], "tinylfu")
    index.put(b"hot")
    for _ in range(4):
        index.touch([b"hot"])
    assert index.put(b"cold") == (Place(1, 0), [])
    assert index.find(b"hot") == Place(0, 0)


class TierIndexMachine(RuleBasedStateMachine):
    """Follows by what the index says it does what is where; with LRU, it predicts what leaves."""

    @initialize(
        capacities=st.lists(st.integers(1, 4), min_size=1, max_size=3), policy=st.sampled_from(POLICY_NAMES)
    )
    def start(self, capacities: list[int], policy: str) -> None:
        self.index, self.capacities, self.is_lru = TierIndex(capacities, policy), capacities, policy == "lru"
        self.slots: dict[Place, bytes] = {}  # what was last written there, and is there yet
        self.unusable: set[Place] = set()
        self.pinned: set[bytes] = set()
        self.orders: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in capacities]  # latest last

    def place_of(self, name: bytes) -> Place | None:
        return next((place for place, held in self.slots.items() if held == name), None)

    def drop(self, name: bytes) -> Place | None:
        place = self.place_of(name)
        if place is not None:
            del self.slots[place], self.orders[place.tier][name]
        return place

    @rule(name=names_strategy)
    def put(self, name: bytes) -> None:
        before, own = dict(self.slots), self.place_of(name)
        expected = self.expected_victims(name)
        found = self.index.put(name)
        if found is None:
            assert {held: self.index.find(held) for held in before.values()} == {
                held: place for place, held in before.items()
            }, "nothing has changed"
            assert not self.is_lru or expected is None
            return
        place, descents = found
        assert name not in self.pinned
        assert own is None or place.tier < own.tier
        overwritten = []
        for source, destination in descents:
            assert destination.tier == source.tier + 1
            assert source not in overwritten, "it goes down before something is written in its place"
            assert self.slots[source] not in self.pinned
            overwritten.append(destination)
            self.write(destination, self.slots[source])
        assert self.slots.get(place) not in self.pinned
        self.drop(name)
        self.write(place, name)
        if self.is_lru:
            assert expected is not None
            assert set(before.values()) - set(self.slots.values()) <= expected

    def expected_victims(self, name: bytes) -> set[bytes] | None:
        """With LRU: the names that may be lost when `name` is put, the least recent of each tier; None: it is not."""
        if name in self.pinned:
            return None
        own = self.place_of(name)
        usable = range(len(self.capacities) if own is None else own.tier)
        oldest = [next((held for held in order if held != name), None) for order in self.orders]
        if not any(
            self.num_usable(tier) > len(self.orders[tier])
            or (oldest[tier] is not None and oldest[tier] not in self.pinned)
            for tier in usable
        ):
            return None
        return {each for each in oldest if each is not None}

    def num_usable(self, tier: int) -> int:
        return self.capacities[tier] - sum(place.tier == tier for place in self.unusable)

    def write(self, place: Place, name: bytes) -> None:
        assert place not in self.unusable
        assert place.slot < self.capacities[place.tier]
        gone = self.slots.get(place)
        if gone is not None:
            self.drop(gone)
        self.drop(name)
        self.slots[place] = name
        self.orders[place.tier][name] = None

    @rule(names=st.lists(names_strategy, max_size=5))
    def touch(self, names: list[bytes]) -> None:
        self.index.touch(names)
        for name in reversed(names):
            place = self.place_of(name)
            if place is not None:
                self.orders[place.tier].move_to_end(name)

    @rule(name=names_strategy)
    def pin(self, name: bytes) -> None:
        self.index.pin(name)
        self.pinned.add(name)

    @rule()
    def unpin_all(self) -> None:
        self.index.unpin_all()
        self.pinned.clear()

    @rule(names=st.lists(names_strategy, max_size=4))
    def withdraw(self, names: list[bytes]) -> None:
        self.index.withdraw(names)
        for name in names:
            self.drop(name)

    @rule(names=st.lists(names_strategy, max_size=2))
    def lose(self, names: list[bytes]) -> None:
        self.index.lose(names)
        self.unusable |= {place for name in names if (place := self.drop(name)) is not None}

    @rule(tier=st.integers(0, 2), is_closed=st.booleans())
    def give_up(self, tier: int, is_closed: bool) -> None:
        if tier >= len(self.capacities):
            self.index.forget()
        elif is_closed:
            self.index.close(tier)
            self.unusable |= {Place(tier, slot) for slot in range(self.capacities[tier])}
        else:
            self.index.forget(tier)
        for name in list(self.slots.values()):
            if self.place_of(name).tier == tier or tier >= len(self.capacities):  # type: ignore[union-attr]
                self.drop(name)

    @invariant()
    def every_name_is_in_one_slot_and_every_slot_has_one_name(self) -> None:
        if hasattr(self, "index"):
            self.index.check()
            assert {name: self.index.find(name) for name in NAMES} == {
                name: self.place_of(name) for name in NAMES
            }
            assert sorted(self.index) == sorted(self.slots.values())
            for tier in range(len(self.capacities)):
                assert self.index.num_held(tier) == len(self.orders[tier]) <= self.num_usable(tier)


TestTierIndexMachine = TierIndexMachine.TestCase
TestTierIndexMachine.settings = settings(max_examples=60, stateful_step_count=30)
