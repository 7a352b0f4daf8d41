from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emucxl.apps.slab import SlabAllocator, SlabObject
from emucxl.errors import (
    ArgumentError,
    BadPointerError,
    CapacityError,
    ClosedError,
    InUseError,
    OutOfBoundsError,
    TierFullError,
)
from support.fake_tiers import FakeTier


def test_objects_hold_their_bytes(make_tiers: Any) -> None:
    with SlabAllocator(make_tiers()[0], object_bytes=100) as slabs:
        taken = [slabs.alloc() for _ in range(2000)]
        for number, one in enumerate(taken):
            one.write(number.to_bytes(4, "little") * 25)
        assert all(one.read() == number.to_bytes(4, "little") * 25 for number, one in enumerate(taken))
        assert all(one.address % 16 == 0 for one in taken[:100])
        assert slabs.stats().num_slabs == -(-2000 // slabs.objects_per_slab)
        slabs.check()


def test_one_slab_serves_many_objects() -> None:
    tier = FakeTier("local")
    slabs = SlabAllocator(tier, object_bytes=64, slab_bytes=6400)
    for _ in range(100):
        slabs.alloc()
    assert tier.calls == 1


def test_a_double_free_is_told_and_harms_nothing(make_tiers: Any) -> None:
    slabs = SlabAllocator(make_tiers()[0], object_bytes=32)
    one = slabs.alloc()
    one.free()
    other = slabs.alloc()
    for free in (one.free, lambda: slabs.free(one)):
        with pytest.raises(BadPointerError, match="freed"):
            free()
    assert (len(slabs), other.freed) == (1, False)
    slabs.check()


def test_a_freed_object_can_not_be_touched() -> None:
    slabs = SlabAllocator(FakeTier("local"), object_bytes=32)
    one = slabs.alloc()
    one.free()
    for touch in (one.read, lambda: one.write(b"x"), lambda: one.address):
        with pytest.raises(ClosedError):
            touch()


def test_an_object_of_another_allocator_is_refused() -> None:
    tier = FakeTier("local")
    one, other = SlabAllocator(tier, 32), SlabAllocator(tier, 32)
    with pytest.raises(BadPointerError, match="another allocator"):
        one.free(other.alloc())


@pytest.mark.parametrize(("offset", "size"), [(0, 33), (32, 1), (-1, 1), (0, -1), (33, None)])
def test_an_object_ends_where_the_next_begins(offset: int, size: int | None) -> None:
    slabs = SlabAllocator(FakeTier("local"), object_bytes=32)
    one, neighbour = slabs.alloc(), slabs.alloc()
    with pytest.raises(OutOfBoundsError):
        one.read(size, offset)
    if size is None or size > 0:
        with pytest.raises(OutOfBoundsError):
            one.write(bytes(size or 1), offset)
    assert neighbour.read() == bytes(32)


def test_a_reused_object_is_zero(make_tiers: Any) -> None:
    slabs = SlabAllocator(make_tiers()[0], object_bytes=50)
    one = slabs.alloc()
    address = one.address
    one.write(b"\xff" * 50)
    one.free()
    other = slabs.alloc()
    assert (other.address, other.read()) == (address, bytes(50))


def test_empty_slabs_go_back_but_for_the_spare_ones() -> None:
    tier = FakeTier("local")
    slabs = SlabAllocator(tier, object_bytes=64, slab_bytes=640, spare_slabs=1)
    taken = [slabs.alloc() for _ in range(50)]
    assert slabs.stats().num_slabs == 5
    for one in taken:
        one.free()
    assert (slabs.stats().num_slabs, slabs.stats().slabs_returned) == (1, 4)
    assert slabs.trim() == 1
    assert tier.allocated_bytes == 0


def test_swinging_around_the_edge_of_a_slab_asks_the_tier_for_nothing() -> None:
    tier = FakeTier("local")
    slabs = SlabAllocator(tier, object_bytes=64, slab_bytes=640)
    for _ in range(10):
        slabs.alloc()
    for _ in range(20):
        slabs.alloc().free()
    assert tier.calls == 2


def test_reserved_room_needs_no_memory_later_and_stays_until_it_is_trimmed() -> None:
    tier = FakeTier("local")
    slabs = SlabAllocator(tier, object_bytes=64, slab_bytes=640)
    slabs.reserve(35)
    assert (slabs.stats().num_slots, tier.calls) == (40, 4)
    slabs.alloc().free()
    for _ in range(35):
        slabs.alloc()
    assert tier.calls == 4


def test_a_full_tier_refuses_and_keeps_every_object(make_tiers: Any) -> None:
    slabs = SlabAllocator(make_tiers(1 << 20)[0], object_bytes=4096)
    taken: list[SlabObject] = []

    def fill() -> None:
        while True:
            taken.append(slabs.alloc())
            taken[-1].write(len(taken).to_bytes(4, "little"))

    with pytest.raises(CapacityError):
        fill()
    slabs.check()
    assert [int.from_bytes(one.read(4), "little") for one in taken] == list(range(1, len(taken) + 1))
    taken.pop().free()
    slabs.alloc()


def test_live_objects_keep_an_allocator_open() -> None:
    tier = FakeTier("local")
    slabs = SlabAllocator(tier, object_bytes=64)
    one = slabs.alloc()
    with pytest.raises(InUseError, match="1 objects are live"):
        slabs.close()
    slabs.close(force=True)
    slabs.close()
    assert (tier.allocated_bytes, one.freed) == (0, True)
    with pytest.raises(ClosedError):
        slabs.alloc()


@pytest.mark.parametrize(
    "arguments",
    [
        {"object_bytes": 0},
        {"object_bytes": 8, "slab_bytes": 7},
        {"object_bytes": 8, "alignment": 3},
        {"object_bytes": 8, "alignment": 8192},
        {"object_bytes": 8, "spare_slabs": -1},
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        SlabAllocator(FakeTier("local"), **arguments)


class SlabMachine(RuleBasedStateMachine):
    """Allocations, frees and trims, against a dict; some allocations of slabs find the tier full."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = FakeTier("local", capacity_bytes=6 * 512)
        self.slabs = SlabAllocator(self.tier, object_bytes=60, slab_bytes=512)
        self.live: dict[SlabObject, bytes] = {}

    @rule(pattern=st.integers(1, 255))
    def alloc(self, pattern: int) -> None:
        try:
            one = self.slabs.alloc()
        except TierFullError:
            assert len(self.live) == 6 * 8
            return
        assert one.read() == bytes(60)
        one.write(bytes([pattern]) * 60)
        self.live[one] = bytes([pattern]) * 60

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(list(self.live)))
        assert one.read() == self.live.pop(one)
        one.free()

    @rule()
    def trim(self) -> None:
        self.slabs.trim()
        assert self.tier.allocated_bytes == self.slabs.stats().num_slabs * 512

    @invariant()
    def holds(self) -> None:
        self.slabs.check()
        assert len(self.slabs) == len(self.live)
        assert all(one.read() == content for one, content in self.live.items())


TestSlabMachine = SlabMachine.TestCase
TestSlabMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
