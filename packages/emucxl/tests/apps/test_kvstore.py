from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emucxl.apps.kvstore import KVStore, Limit
from emucxl.apps.policies import POLICIES
from emucxl.errors import ArgumentError, ClosedError, TierFullError
from support.fake_tiers import FakeTier

KEYS = [b"a", b"b", b"c", b"d"]


def small_store(policy: str = "lru", local: int = 2, remote: int | None = None) -> KVStore:
    """Room for `local` entries in the local tier; a, b, c and d put, in this order."""
    store = KVStore(
        FakeTier("local"), FakeTier("remote"), policy, Limit(entries=local), Limit(entries=remote)
    )
    for key in KEYS:
        store.put(key, b"value of " + key)
    return store


def test_values_come_back_from_either_tier(make_tiers: Any) -> None:
    local, remote = make_tiers()
    with KVStore(local, remote, local_limit=Limit(entries=2)) as store:
        values = {b"": b"", b"k": b"v", b"key" * 1000: bytes(range(256)) * 999, b"last": b""}
        for key, value in values.items():
            store.put(key, value)
        assert [store.tier_of(key) for key in values] == [remote, remote, local, local]
        for key, value in values.items():
            assert store.get(key) == value
        store.check()
        assert (len(store), set(store)) == (4, set(values))
        assert b"k" in store
        assert b"nonesuch" not in store
    assert local.capacity_bytes > 0


def test_a_key_that_is_not_there() -> None:
    store = small_store()
    assert store.get(b"nonesuch") is None
    assert store.tier_of(b"nonesuch") is None
    assert store.delete(b"nonesuch") is False
    assert store.stats().misses == 1


def test_deleting_frees_the_memory_in_both_tiers(make_tiers: Any) -> None:
    local, remote = make_tiers()
    store = KVStore(local, remote, local_limit=Limit(entries=1))
    store.put(b"x", b"1")
    store.put(b"y", b"2")
    assert (store.delete(b"x"), store.delete(b"y")) == (True, True)
    stats = store.stats()
    assert (stats.local_entries, stats.remote_entries, stats.local_bytes, stats.remote_bytes) == (0, 0, 0, 0)
    assert len(store) == 0
    store.check()


def test_the_oldest_local_entry_makes_room_for_a_new_one() -> None:
    store = small_store()
    assert (store.local_keys(), store.remote_keys()) == ([b"d", b"c"], [b"b", b"a"])


def test_leave_moves_nothing() -> None:
    store = small_store("leave")
    assert store.get(b"a") == b"value of a"
    assert store.get(b"c") == b"value of c"
    assert (store.local_keys(), store.remote_keys()) == ([b"c", b"d"], [b"b", b"a"])


def test_promote_puts_a_remote_hit_at_the_tail_as_published() -> None:
    store = small_store("promote")
    assert store.get(b"a") == b"value of a"
    assert (store.local_keys(), store.remote_keys()) == ([b"d", b"a"], [b"c", b"b"])
    store.get(b"b")
    assert (store.local_keys(), store.remote_keys()) == ([b"d", b"b"], [b"a", b"c"])


def test_lru_puts_a_remote_hit_at_the_head() -> None:
    store = small_store("lru")
    store.get(b"a")
    assert (store.local_keys(), store.remote_keys()) == ([b"a", b"d"], [b"c", b"b"])


def test_tinylfu_keeps_what_is_read_more_often() -> None:
    store = small_store("tinylfu")
    store.get(b"c")
    store.get(b"d")
    store.get(b"a")
    assert store.local_keys() == [b"d", b"c"], "as often as the victim is not more often"
    store.get(b"a")
    assert store.local_keys() == [b"a", b"d"]


def test_tinylfu_forgets_the_favourites_of_the_past() -> None:
    store = small_store("tinylfu")
    for _ in range(1000):
        store.get(b"c")
        store.get(b"d")
    for _ in range(20):
        store.get(b"a")
        store.get(b"b")
    assert set(store.local_keys()) == {b"a", b"b"}


def test_hits_are_counted_where_the_entry_was_found() -> None:
    store = small_store("lru")
    store.get(b"a")
    store.get(b"a")
    stats = store.stats()
    assert (stats.local_hits, stats.remote_hits, stats.promotions, stats.evictions) == (1, 1, 1, 3)
    assert stats.local_fraction == 0.5


def test_putting_again_replaces_the_value_and_counts_no_hit() -> None:
    store = small_store("leave")
    store.put(b"a", b"VALUE OF A")
    store.put(b"a", b"longer than it was before")
    assert store.get(b"a") == b"longer than it was before"
    assert store.remote_keys() == [b"b", b"a"], "it stays where it was"
    assert store.stats().local_hits + store.stats().remote_hits == 1
    store.check()


@pytest.mark.parametrize("policy", ["promote", "lru"])
@pytest.mark.parametrize("value", [b"value of A", b"", b"much longer than before"])
def test_putting_again_moves_a_remote_entry_as_reading_it_would(policy: str, value: bytes) -> None:
    store, other = small_store(policy), small_store(policy)
    store.put(b"a", value)
    other.get(b"a")
    assert (store.local_keys(), store.remote_keys()) == (other.local_keys(), other.remote_keys())
    assert store.get(b"a") == value
    store.check()


def test_limits_in_bytes_hold_and_evict_as_many_as_it_takes() -> None:
    store = KVStore(FakeTier("local"), FakeTier("remote"), "lru", Limit(size_bytes=100))
    for number in range(10):
        store.put(b"%d" % number, bytes(9))
    assert store.stats().local_bytes == 100
    store.put(b"x", bytes(54))
    assert store.local_keys() == [b"x", b"9", b"8", b"7", b"6"]
    assert store.stats().local_bytes == 95
    store.check()


def test_an_entry_that_no_local_tier_could_hold_goes_to_the_remote_one() -> None:
    store = KVStore(FakeTier("local"), FakeTier("remote"), "lru", Limit(size_bytes=100))
    store.put(b"small", b"x")
    store.put(b"large", bytes(1000))
    assert (store.local_keys(), store.remote_keys()) == ([b"small"], [b"large"])
    assert store.get(b"large") == bytes(1000)
    store.put(b"small", bytes(500))
    assert store.remote_keys() == [b"small", b"large"]
    store.put(b"small", b"y")
    assert (store.local_keys(), store.get(b"small")) == ([b"small"], b"y")
    store.check()


def test_an_eviction_that_does_not_fit_changes_nothing() -> None:
    store = small_store("lru", local=2, remote=2)
    before = store.local_keys(), store.remote_keys(), store.stats()
    with pytest.raises(TierFullError, match="2 of 2 entries"):
        store.put(b"e", b"one too many")
    assert (store.local_keys(), store.remote_keys(), store.stats()) == before
    assert [store.get(key) for key in KEYS] == [b"value of " + key for key in KEYS]
    store.check()


def test_full_stores_still_swap_entries_between_the_tiers() -> None:
    store = small_store("lru", local=2, remote=2)
    store.get(b"a")
    assert (store.local_keys(), store.remote_keys()) == ([b"a", b"d"], [b"c", b"b"])
    store.check()


def test_a_tier_without_limits_is_filled_to_its_capacity(make_tiers: Any) -> None:
    local, remote = make_tiers(1 << 20, 64 << 20)
    with KVStore(local, remote) as store:
        values = {b"%d" % number: bytes([number]) * 50_000 for number in range(60)}
        for key, value in values.items():
            store.put(key, value)
        assert store.stats().remote_entries > 0
        assert store.stats().local_entries >= 10
        assert all(store.get(key) == value for key, value in values.items())
        store.check()


def test_when_both_tiers_are_full_a_put_raises_and_every_value_is_there(make_tiers: Any) -> None:
    store = KVStore(*make_tiers(1 << 20, 1 << 20))
    put: dict[bytes, bytes] = {}

    def fill() -> None:
        for number in range(100):
            store.put(b"%d" % number, bytes([number]) * 50_000)
            put[b"%d" % number] = bytes([number]) * 50_000

    with pytest.raises(TierFullError):
        fill()
    before = store.local_keys(), store.remote_keys()
    with pytest.raises(TierFullError):
        store.put(b"more", bytes(50_000))
    assert (store.local_keys(), store.remote_keys()) == before
    assert all(store.get(key) == value for key, value in put.items())
    store.check()


@pytest.mark.parametrize("failing", range(1, 4))
def test_evictions_are_taken_back_when_a_later_step_fails(failing: int) -> None:
    local, remote = FakeTier("local"), FakeTier("remote")
    store = KVStore(local, remote, "lru", Limit(size_bytes=100), Limit())
    for number in range(10):
        store.put(b"%d" % number, bytes(9))
    before = store.local_keys(), store.remote_keys(), store.stats()
    remote.failing = {remote.calls + failing}
    with pytest.raises(TierFullError):
        store.put(b"x", bytes(60))
    assert (store.local_keys(), store.remote_keys(), store.stats()) == before
    store.check()


def test_a_promotion_that_finds_no_room_leaves_the_entry_where_it_is() -> None:
    store = small_store("lru")
    store._remote.tier.failing = {store._remote.tier.calls + 1}
    assert store.get(b"a") == b"value of a"
    assert (store.local_keys(), store.remote_keys()) == ([b"d", b"c"], [b"b", b"a"])
    assert store.stats().promotions == 0
    store.check()


def test_room_that_somebody_else_takes_loses_nothing() -> None:
    """The victim makes room, another user of the tier takes it, and the victim can not come back."""
    store = small_store("lru")
    local = store._local.tier
    local.failing = set(range(local.calls + 1, local.calls + 100))
    assert store.get(b"a") == b"value of a"
    local.failing = set()
    assert all(store.get(key) == b"value of " + key for key in KEYS)
    store.check()


def test_a_closed_store_holds_nothing_and_refuses() -> None:
    store = small_store()
    store.close()
    store.close()
    assert (len(store), store._local.tier.allocated_bytes, store._remote.tier.allocated_bytes) == (0, 0, 0)
    for call in (lambda: store.get(b"a"), lambda: store.put(b"a", b""), lambda: store.delete(b"a")):
        with pytest.raises(ClosedError):
            call()


@pytest.mark.parametrize("key", ["text", 5, None])
def test_a_key_that_is_not_bytes_is_refused(key: Any) -> None:
    store = small_store()
    for call in (lambda: store.get(key), lambda: store.put(key, b""), lambda: store.put(b"a", key)):
        with pytest.raises(ArgumentError, match="expected bytes"):
            call()


def test_whatever_holds_bytes_is_a_value() -> None:
    store = small_store()
    store.put(bytearray(b"k"), memoryview(b"value"))
    assert store.get(memoryview(b"k")) == b"value"


def test_bad_limits_and_policies_are_refused() -> None:
    with pytest.raises(ArgumentError, match="entries=-1"):
        Limit(entries=-1)
    with pytest.raises(ArgumentError, match="expected one of promote, leave, lru, tinylfu"):
        KVStore(FakeTier("l"), FakeTier("r"), "best")
    policy = small_store()._policy
    with pytest.raises(ArgumentError, match="policy of its own"):
        KVStore(FakeTier("l"), FakeTier("r"), policy)


class StoreMachine(RuleBasedStateMachine):
    """A store against a dict, in every policy, with limits of both kinds and tiers that fail."""

    @initialize(
        policy=st.sampled_from(sorted(POLICIES)),
        entries=st.one_of(st.none(), st.integers(0, 4)),
        size_bytes=st.one_of(st.none(), st.integers(0, 60)),
        remote_entries=st.one_of(st.none(), st.integers(0, 6)),
    )
    def begin(
        self, policy: str, entries: int | None, size_bytes: int | None, remote_entries: int | None
    ) -> None:
        self.remote_entries = remote_entries
        self.local, self.remote = FakeTier("local", 120), FakeTier("remote", 300)
        self.store = KVStore(
            self.local, self.remote, policy, Limit(entries, size_bytes), Limit(remote_entries)
        )
        self.model: dict[bytes, bytes] = {}

    @rule(key=st.sampled_from([b"%d" % number for number in range(12)]), value=st.binary(max_size=50))
    def put(self, key: bytes, value: bytes) -> None:
        before = set(self.store.local_keys())
        try:
            self.store.put(key, value)
        except TierFullError:
            if not self.local.failing:
                assert set(self.store.local_keys()) == before
            return
        self.model[key] = value

    @rule(key=st.sampled_from([b"%d" % number for number in range(12)]))
    def get(self, key: bytes) -> None:
        assert self.store.get(key) == self.model.get(key)

    @rule(key=st.sampled_from([b"%d" % number for number in range(12)]))
    def delete(self, key: bytes) -> None:
        assert self.store.delete(key) == (self.model.pop(key, None) is not None)

    @rule(is_local=st.booleans(), steps=st.sets(st.integers(1, 5)))
    def fail(self, is_local: bool, steps: set[int]) -> None:
        if self.remote_entries is not None:  # else entries that can't come back stay remote, above the limit
            is_local = False
        tier = self.local if is_local else self.remote
        tier.failing = {tier.calls + step for step in steps}

    @invariant()
    def holds(self) -> None:
        self.store.check()
        assert set(self.store) == self.model.keys()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_find_every_value_while_entries_move(make_tiers: Any, policy: str) -> None:
    store = KVStore(*make_tiers(), policy, Limit(entries=5), Limit(entries=100))
    wrong: list[object] = []

    def use(thread: int) -> None:
        for step in range(300):
            key = b"%d %d" % (thread, step % 7)
            store.put(key, b"%d" % step)
            if store.get(key) != b"%d" % step:
                wrong.append(key)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.check()
    assert (wrong, len(store)) == ([], 28)
    store.close()
