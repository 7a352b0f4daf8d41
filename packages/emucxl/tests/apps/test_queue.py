from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emucxl.apps.queue import Queue
from emucxl.errors import CapacityError, ClosedError, NotFoundError, TierFullError
from support.fake_tiers import FakeTier


def test_values_come_out_in_order(make_tiers: Any) -> None:
    queue = Queue(make_tiers()[0])
    values = [b"", b"a", bytes(range(256)) * 40, b"end"]
    for value in values:
        queue.enqueue(value)
    assert list(queue) == values
    assert queue.peek() == b""
    assert [queue.dequeue() for _ in values] == values
    assert len(queue) == 0


def test_an_empty_queue_says_so() -> None:
    queue = Queue(FakeTier("local"))
    for call in (queue.dequeue, queue.peek):
        with pytest.raises(NotFoundError, match="empty"):
            call()


def test_nodes_lie_in_the_tier_and_are_given_back(make_tiers: Any) -> None:
    local, remote = make_tiers()
    queue = Queue(remote)
    before = _allocated(local), _allocated(remote)
    queue.enqueue(bytes(1000))
    assert _allocated(local) == before[0]
    assert _allocated(remote) == before[1] + 1008
    queue.dequeue()
    assert (_allocated(local), _allocated(remote)) == before


def test_a_full_tier_refuses_and_loses_nothing(make_tiers: Any) -> None:
    queue = Queue(make_tiers(1 << 20)[0])
    values = [bytes([number]) * 10_000 for number in range(200)]

    def fill() -> None:
        for value in values:
            queue.enqueue(value)

    with pytest.raises(CapacityError):
        fill()
    queue.check()
    stored = len(queue)
    assert list(queue) == values[:stored]
    assert queue.dequeue() == values[0]
    queue.enqueue(values[stored])
    assert list(queue) == values[1 : stored + 1]


def test_what_overflows_goes_to_the_second_tier_in_the_same_order(make_tiers: Any) -> None:
    local, remote = make_tiers(1 << 20)
    with Queue(local, overflow=remote) as queue:
        values = [bytes([number]) * 10_000 for number in range(200)]
        for value in values:
            queue.enqueue(value)
        assert _allocated(remote) > 0
        queue.check()
        assert list(queue) == values
    assert (_allocated(local), _allocated(remote)) == (0, 0)


def test_a_closed_queue_holds_nothing_and_refuses() -> None:
    tier = FakeTier("local")
    queue = Queue(tier)
    queue.enqueue(b"x")
    queue.close()
    queue.close()
    assert tier.allocated_bytes == 0
    with pytest.raises(ClosedError):
        queue.enqueue(b"x")
    with pytest.raises(ClosedError):
        queue.dequeue()


def test_a_cleared_queue_goes_on() -> None:
    queue = Queue(FakeTier("local"))
    queue.enqueue(b"x")
    queue.clear()
    queue.enqueue(b"y")
    assert list(queue) == [b"y"]


@given(st.lists(st.one_of(st.binary(max_size=40), st.none()), max_size=60), st.sets(st.integers(1, 60)))
def test_it_is_a_queue_whatever_fails(steps: list[bytes | None], failing: set[int]) -> None:
    """`None` takes a value out; the allocations in `failing` find the tier full."""
    tier, model = FakeTier("local"), deque[bytes]()
    tier.failing = failing
    queue = Queue(tier)
    for step in steps:
        if step is not None:
            try:
                queue.enqueue(step)
                model.append(step)
            except TierFullError:
                pass
        elif model:
            assert queue.dequeue() == model.popleft()
        queue.check()
        assert list(queue) == list(model)
        assert tier.allocated_bytes == sum(8 + len(value) for value in model)


def _allocated(tier: Any) -> int:
    return tier.allocated_bytes if isinstance(tier, FakeTier) else tier.stats().allocated_bytes


def test_threads_lose_no_value_and_see_none_twice(make_tiers: Any) -> None:
    queue = Queue(make_tiers()[0])
    taken: list[bytes] = []

    def produce(first: int) -> None:
        for number in range(first, first + 300):
            queue.enqueue(number.to_bytes(4, "little"))

    def consume() -> None:
        while len(taken) < 900:
            with contextlib.suppress(NotFoundError):
                taken.append(queue.dequeue())

    threads = [threading.Thread(target=produce, args=(first,)) for first in (0, 300, 600)]
    threads += [threading.Thread(target=consume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.check()
    assert sorted(int.from_bytes(value, "little") for value in taken) == list(range(900))
