"""Tiers of a context: what they hold, what they say, and what makes none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emucxl import abi
from emucxl.calibration import Calibration
from emucxl.context import Context, resolve_timing
from emucxl.errors import (
    ArgumentError,
    BadPointerError,
    ClosedError,
    NameTakenError,
    NotFoundError,
    OutOfBoundsError,
    PoisonedError,
    SystemMemoryError,
    TierFullError,
    TooFastError,
)
from emucxl.links import Link
from emucxl.presets import preset
from emucxl.providers import Anon, Null, Shm
from emucxl.tiers import Tier
from emucxl.timing import Timing

MIB = 1 << 20


def test_tiers_are_found_by_name_in_the_order_they_were_added(context: Context) -> None:
    added = [context.add_tier(name, MIB) for name in ("local", "cxl", "far")]
    assert list(context.tiers.values()) == added
    assert list(context.tiers) == ["local", "cxl", "far"]
    assert context.tier("cxl") is context.tier(added[1]) is added[1]
    with pytest.raises(TypeError):
        context.tiers["more"] = added[0]  # type: ignore[index]


def test_a_tier_says_what_it_is(context: Context) -> None:
    tier = context.add_tier("local", 4 * MIB + 1)
    assert (tier.name, tier.capacity_bytes) == ("local", 4 * MIB + 4096)
    assert (tier.provider, tier.timing, tier.link, tier.modelled) == (Anon(), None, None, False)
    assert tier.context is context
    assert tier.info.base_address % (2 * MIB) == 0
    assert (tier.info.capacity_bytes, tier.info.modelled, tier.info.fd) == (tier.capacity_bytes, False, None)
    assert repr(tier) == "<Tier 'local' of 4,198,400 bytes, unmodelled>"
    assert repr(context) == "<Context on the virtual clock with 'local'>"


def test_statistics_follow_allocations_and_accesses(tier: Tier) -> None:
    before = tier.stats()
    assert (before.num_allocations, before.allocated_bytes) == (0, 0)
    buffer = tier.alloc(1000)
    buffer.write(bytes(100))
    buffer.read(10)
    buffer.read(20)
    stats = tier.stats()
    assert (stats.allocated_bytes, stats.num_allocations, stats.total_allocations) == (1000, 1, 1)
    assert (stats.write_bytes, stats.write_accesses, stats.read_bytes, stats.read_accesses) == (100, 1, 30, 2)
    assert stats.reserved_bytes >= 1000
    assert stats.capacity_bytes == tier.capacity_bytes
    buffer.free()
    assert tier.stats().allocated_bytes == 0
    assert tier.stats().total_allocations == 1


def test_the_statistics_are_in_the_order_of_the_native_structure() -> None:
    import dataclasses

    from emucxl.tiers import TierStats

    assert [f.name for f in dataclasses.fields(TierStats)] == [name for name, _ in abi.RawTierStats._fields_]


def test_a_full_tier_says_so_and_stays_usable(tier: Tier) -> None:
    buffer = tier.alloc(3 * MIB)
    with pytest.raises(TierFullError, match="local"):
        tier.alloc(3 * MIB)
    buffer.free()
    tier.alloc(3 * MIB).free()
    tier.trim()
    tier.context.check()


@pytest.mark.parametrize(
    ("name", "capacity", "error"),
    [
        ("", MIB, ArgumentError),
        ("x" * 32, MIB, ArgumentError),
        ("a\0b", MIB, ArgumentError),
        ("local", 0, ArgumentError),
        ("local", -1, ArgumentError),
        ("local", 1 << 64, ArgumentError),
        ("local", 1 << 60, SystemMemoryError),
    ],
)
def test_what_makes_no_tier_is_refused(
    context: Context, name: str, capacity: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"got|bytes|memory"):
        context.add_tier(name, capacity)
    assert not context.tiers


def test_a_name_is_taken_once(context: Context, tier: Tier) -> None:
    with pytest.raises(NameTakenError, match="local"):
        context.add_tier("local", MIB)
    assert list(context.tiers.values()) == [tier]


def test_more_tiers_than_there_is_room_for_are_refused(context: Context) -> None:
    for number in range(abi.MAX_TIERS):
        context.add_tier(str(number), 4096, Null())
    with pytest.raises(ArgumentError, match="16"):
        context.add_tier("one more", 4096, Null())


def test_an_unknown_tier_is_named(context: Context, tier: Tier) -> None:
    with pytest.raises(NotFoundError, match="got the tier 'cxl'; expected one of 'local'"):
        context.alloc(64, "cxl")
    with pytest.raises(TypeError, match="expected a Tier or the name of one"):
        context.alloc(64, 0)  # type: ignore[arg-type]
    with Context() as other, pytest.raises(ArgumentError, match="of another context"):
        other.alloc(64, tier)


def test_alloc_gives_zeros_aligned_as_asked(context: Context, tier: Tier) -> None:
    for alignment in (0, 16, 4096, 2 * MIB):
        buffer = context.alloc(100, "local", alignment)
        assert buffer.address % (alignment or 16) == 0
        assert buffer.read() == bytes(100)
        assert buffer.tier is tier
        assert buffer.context is context
    with pytest.raises(ArgumentError, match="alignment"):
        tier.alloc(100, 3)
    with pytest.raises(ArgumentError):
        tier.alloc(0)
    with pytest.raises(ArgumentError, match="got size_bytes -1; expected at least 0"):
        tier.alloc(-1)
    with pytest.raises(OutOfBoundsError, match="fits the address space"):
        tier.alloc(1 << 70)
    with pytest.raises(TypeError, match="expected an integer"):
        tier.alloc("many")  # type: ignore[arg-type]


def test_query_finds_what_an_address_points_into(context: Context, tier: Tier) -> None:
    buffer = tier.alloc(1000)
    found = context.query(buffer.address + 10)
    assert (found.base, found.size_bytes, found.offset, found.tier) == (buffer.address, 1000, 10, tier)
    address = buffer.address
    buffer.free()
    with pytest.raises(BadPointerError):
        context.query(address)
    with pytest.raises(BadPointerError):
        context.query(0)


def test_poisoned_lines_are_told_of(tier: Tier) -> None:
    buffer = tier.alloc(4096)
    tier.poison(buffer.address + 128, 1)
    buffer.read(128)
    with pytest.raises(PoisonedError):
        buffer.read(1, 190)
    with pytest.raises(PoisonedError):
        buffer.fill(0)
    assert tier.stats().poisoned_bytes > 0


def test_a_null_tier_allocates_what_no_machine_has(context: Context) -> None:
    tier = context.add_tier("null", 1 << 43, Null())
    buffer = tier.alloc(1 << 40)
    buffer.write(b"hello", 1 << 39)
    assert buffer.read(5, 1 << 39) == bytes(5)
    from emucxl.errors import UnavailableError

    with pytest.raises(UnavailableError, match="no bytes to view"):
        memoryview(buffer)
    assert tier.stats().write_bytes == 5


def test_a_shared_tier_has_a_descriptor_that_another_process_can_map(context: Context) -> None:
    tier = context.add_tier("shared", MIB, Shm())
    buffer = tier.alloc(5)
    buffer.write(b"hello")
    offset = buffer.address - tier.info.base_address
    fd = tier.info.fd
    assert fd is not None
    reader = (
        f"import mmap; print(mmap.mmap({fd}, {tier.capacity_bytes})[{offset}:{offset + 5}].decode(), end='')"
    )
    done = subprocess.run([sys.executable, "-c", reader], pass_fds=[fd], capture_output=True, timeout=120)
    assert done.stdout == b"hello"


def test_a_timing_is_given_by_itself_by_its_preset_or_by_name(context: Context) -> None:
    far = Timing(1000, 2000, 1.0, 1.0)
    assert context.add_tier("far", MIB, timing=far).timing == far
    named = context.add_tier("named", MIB, timing="cxl-direct")
    assert named.timing == preset("cxl-direct").timing
    assert context.add_tier("preset", MIB, timing=preset("cxl-direct")).timing == named.timing
    assert all(tier.modelled for tier in context.tiers.values())
    assert resolve_timing(None) is None
    with pytest.raises(TypeError, match="expected a Timing, a Preset"):
        context.add_tier("local", MIB, timing=300)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="'cxl-direct'"):
        context.add_tier("local", MIB, timing="cxl")
    assert "local" not in context.tiers


def test_modelled_accesses_move_the_virtual_clock_and_are_counted(context: Context) -> None:
    buffer = context.add_tier("far", MIB, timing=Timing(1000, 2000)).alloc(4096)
    for call, expected_ns in [
        (lambda: buffer.read(64), 1000),
        (lambda: buffer.read_into(bytearray(64)), 1000),
        (lambda: buffer.write(bytes(64)), 2000),
        (lambda: buffer.fill(1), 2000),
        (lambda: context.read_batch([(buffer, 0, bytearray(8)), (buffer, 64, bytearray(8))]), 1000),
        (lambda: memoryview(buffer).release(), 0),
        (lambda: buffer.read(0), 0),
    ]:
        before_ns = context.now_ns
        call()
        assert context.now_ns - before_ns == expected_ns
    assert buffer.tier.stats().delayed_ns == 7000


def test_a_link_is_shared_by_the_tiers_that_are_on_it(context: Context) -> None:
    with Link.create(1.0) as link:
        tiers = [context.add_tier(name, MIB, link=link) for name in ("a", "b")]
    assert all(tier.link is link and tier.modelled for tier in tiers)
    before_ns = context.now_ns
    for tier in tiers:
        tier.alloc(100_000).read()
    assert context.now_ns - before_ns == pytest.approx(200_000, rel=0.01)
    with pytest.raises(ClosedError, match="the link is closed"):
        context.add_tier("late", MIB, link=link)


def test_the_real_clock_needs_a_calibration_and_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Calibration] = []
    calibration = Calibration(100, 100, 50, 50, 20, 50_000, 50, num_cores=2)

    def of_this_machine() -> Calibration:
        asked.append(calibration)
        return calibration

    monkeypatch.setattr("emucxl.calibration.of_this_machine", of_this_machine)
    slow = Timing(1_000_000, 1_000_000)
    with Context() as context:
        context.add_tier("local", MIB)
        assert not asked
        buffer = context.add_tier("far", MIB, timing=slow).alloc(64)
        context.add_tier("farther", MIB, timing=slow)
        assert len(asked) == 1
        before_ns = context.now_ns
        buffer.read()
        assert context.now_ns - before_ns >= 900_000
        with pytest.raises(TooFastError):
            context.add_tier("faster than memory", MIB, timing=Timing(10, 10))
    with Context(calibration=calibration) as context:
        context.add_tier("far", MIB, timing=slow)
    with Context("virtual") as context:
        context.add_tier("far", MIB, timing=slow)
    assert len(asked) == 1


def test_an_unknown_clock_is_refused() -> None:
    with pytest.raises(ArgumentError, match="got the clock 'wall'; expected 'real' or 'virtual'"):
        Context("wall")  # type: ignore[arg-type]
