"""Which blocks go down, and when: a tier that has no time for them costs misses."""

from __future__ import annotations

import pytest

from interlace.engine.cache import tiers as module
from interlace.engine.cache.tiers import Tiers
from interlace.models.moves import LOCAL, MoveKind

NAMES = [bytes([number]) for number in range(5)]


def filled(write: str, *, is_busy: bool = False) -> Tiers:
    """With blocks that are full under NAMES, each in the block of its number."""
    tiers = Tiers([8], "lru", write, lambda: is_busy)
    for name in NAMES:
        tiers.filled(name)
    return tiers


def store(tiers: Tiers) -> list[int]:
    """The blocks that are stored by a pass over a prompt."""
    tiers.store_waiting(lambda name: name[0], is_urgent=True)
    return [move.from_index for move in tiers.take_moves() if move.kind is MoveKind.STORE]


def test_a_full_block_is_stored_once_and_what_is_stored_need_not_be_evicted() -> None:
    tiers = filled("through")
    assert store(tiers) == [0, 1, 2, 3, 4]
    assert store(tiers) == []
    tiers.evict(NAMES[0], 0)
    assert tiers.take_moves() == []


@pytest.mark.parametrize("write", ["through", "back"])
def test_a_block_that_was_not_stored_is_written_down_before_its_memory_is_given_away(write: str) -> None:
    tiers = filled(write)
    tiers.evict(NAMES[3], 3)
    assert [move[:3] for move in tiers.take_moves()] == [(MoveKind.EVICT, LOCAL, 3)]


def test_no_pass_waits_for_a_busy_tier_to_take_a_block() -> None:
    tiers = filled("through", is_busy=True)
    assert store(tiers) == []
    tiers.evict(NAMES[3], 3)
    tiers.store(b"new", 7)
    assert tiers.take_moves() == []
    assert tiers.index.find(NAMES[3]) is None


def test_blocks_that_have_waited_long_are_stored_over_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    tiers = filled("through")
    assert [store(tiers) for _ in range(4)] == [[0, 1], [2, 3], [4], []]


@pytest.mark.parametrize("forget", ["withdraw", "forget"])
def test_a_block_that_is_forgotten_is_not_stored(forget: str) -> None:
    tiers = filled("through")
    if forget == "withdraw":
        tiers.withdraw(NAMES)
    else:
        tiers.forget()
    assert store(tiers) == []


def test_a_tier_that_a_rank_gave_up_is_closed_at_once() -> None:
    tiers = Tiers([2, 2])
    tiers.store(NAMES[0], 0)
    tiers.take_moves()
    tiers.settle({-1})
    assert tiers.index.find(NAMES[0]) is None
    tiers.store(NAMES[1], 1)
    assert [move.to_place for move in tiers.take_moves()] == [2]


def test_a_tier_is_closed_when_it_fails_several_times_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    tiers = Tiers([64])
    for number, fails in enumerate([True, True, False, True, True, False, True, True, True]):
        assert not caplog.records, "now and then is not in a row"
        tiers.store(bytes([number, 1]), 0)
        tiers.fetch([bytes([number, 1])], [1])
        tiers.take_moves()
        tiers.settle({1} if fails else ())
    assert "is used no more: 3 passes in a row could not fetch from it" in caplog.text
    assert len(caplog.records) == 1
