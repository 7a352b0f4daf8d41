"""Tiers that don't answer: what waits for them ends, and nothing else goes with it."""

from __future__ import annotations

import numpy as np
import pytest

from interlace.engine.cache import tier_copies, tier_stores
from interlace.errors import EngineError
from interlace.models.moves import LOCAL, Move
from support.patience import PATIENCE_S, wait_until
from support.tier_bench import (
    EVICT,
    FAST,
    FETCH,
    NUM_BLOCKS,
    SLOT_BYTES,
    SLOW,
    STALLED,
    STALLED_PLACE,
    STORE,
    batch,
    contents,
    opened,
)


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
