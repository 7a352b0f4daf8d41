"""Contexts and tiers: what they hold, whom they outlive, and who may close them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl import abi
from emucxl.calibration import Calibration
from emucxl.context import Context, resolve_timing
from emucxl.errors import (
    ArgumentError,
    BadPointerError,
    ClosedError,
    InUseError,
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


@pytest.fixture
def context() -> Iterator[Context]:
    with Context("virtual") as context:
        yield context


@pytest.fixture
def tier(context: Context) -> Tier:
    return context.add_tier("local", 4 * MIB)


def open_fds() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


# ---- tiers -----------------------------------------------------------------------------------------------------------


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


# ---- clocks ----------------------------------------------------------------------------------------------------------


def test_the_virtual_clock_stands_still_until_it_is_moved(context: Context) -> None:
    before = context.now_ns
    assert context.now_ns == before
    context.advance(1500)
    assert context.now_ns == before + 1500
    with pytest.raises(ArgumentError):
        context.advance(-1)


def test_the_real_clock_runs_and_waiting_for_it_waits() -> None:
    with Context() as context:
        before = context.now_ns
        context.advance(2_000_000)
        assert context.now_ns >= before + 2_000_000


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_does_what_its_accesses_would(context: Context, tier: Tier) -> None:
    first, second = tier.alloc(100), context.add_tier("cxl", MIB).alloc(100)
    context.write_batch([(first, 0, b"abc"), (second, 10, bytearray(b"defg"))])
    targets = [bytearray(3), bytearray(2)]
    context.read_batch([(first, 0, targets[0]), (second, 11, targets[1])])
    assert targets == [b"abc", b"ef"]
    context.read_batch([])


def test_a_bad_access_leaves_a_batch_undone(context: Context, tier: Tier) -> None:
    buffer = tier.alloc(100)
    freed = tier.alloc(100)
    freed.free()
    with Context() as other:
        foreign = other.add_tier("local", MIB).alloc(10)
        for bad, error in [
            ((buffer, 99, b"xy"), OutOfBoundsError),
            ((buffer, -1, b"x"), ArgumentError),
            ((buffer, 0, "text"), TypeError),
            ((buffer, 0), TypeError),
            ((b"bytes", 0, b"x"), TypeError),
            ((freed, 0, b"x"), ClosedError),
            ((foreign, 0, b"x"), ArgumentError),
            (None, TypeError),
        ]:
            with pytest.raises(error):
                context.write_batch([(buffer, 0, b"abc"), bad])  # type: ignore[list-item]
            assert buffer.read() == bytes(100)
    with pytest.raises(ArgumentError, match="no contiguous writable bytes"):
        context.read_batch([(buffer, 0, b"read-only")])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        context.read_batch(7)  # type: ignore[arg-type]
    buffer.resize(200)  # nothing is left in use


# ---- life ------------------------------------------------------------------------------------------------------------


def test_closing_frees_buffers_and_ends_all_use() -> None:
    context = Context()
    tier = context.add_tier("local", MIB)
    buffer = tier.alloc(100)
    context.close()
    context.close()
    assert context.closed
    assert buffer.freed
    assert repr(context) == "<Context, closed>"
    assert repr(buffer) == "<Buffer, freed>"
    buffer.free()
    for use in (
        lambda: buffer.read(),
        lambda: buffer.write(b"x"),
        lambda: buffer.address,
        lambda: memoryview(buffer),
        lambda: tier.alloc(1),
        lambda: tier.stats(),
        lambda: tier.info,
        lambda: context.now_ns,
        lambda: context.advance(1),
        lambda: context.check(),
        lambda: context.query(0),
        lambda: context.add_tier("more", MIB),
        lambda: context.read_batch([]),
        lambda: context.handle,
    ):
        with pytest.raises(ClosedError, match="the context is closed"):
            use()


def test_a_context_in_use_is_not_closed() -> None:
    context = Context()
    buffer = context.add_tier("local", MIB).alloc(100)
    view = memoryview(buffer)
    with pytest.raises(InUseError, match=r"uses in progress: 1 \(views"):
        context.close()
    assert not context.closed
    view[0] = 7
    assert buffer.read(1) == b"\7"
    view.release()
    with context.held() as handle:
        assert handle == context.handle
        with pytest.raises(InUseError):
            context.close()
    context.close()


def test_an_error_inside_a_block_is_not_hidden_by_the_views_it_leaves() -> None:
    with pytest.raises(ZeroDivisionError), Context() as context:  # noqa: PT012
        tier = context.add_tier("local", MIB)
        with tier.alloc(100) as buffer:
            view = memoryview(buffer)
            _ = 1 // 0
    assert not context.closed
    view.release()
    context.close()


def test_everything_is_freed_with_the_last_reference() -> None:
    before = open_fds()
    context = Context()
    tier = context.add_tier("local", MIB, Shm())
    buffer = tier.alloc(100)
    gone = weakref.ref(context)
    del context, tier
    gc.collect()
    assert gone() is not None, "a buffer keeps its context"
    buffer.write(b"still there")
    del buffer
    gc.collect()
    assert gone() is None
    assert open_fds() == before


def test_contexts_in_reference_cycles_are_collected() -> None:
    before = open_fds()

    class Owner:
        pass

    for _ in range(20):
        owner = Owner()
        owner.context = Context()  # type: ignore[attr-defined]
        owner.tier = owner.context.add_tier("local", MIB)  # type: ignore[attr-defined]
        owner.buffer = owner.tier.alloc(100)  # type: ignore[attr-defined]
        owner.view = memoryview(owner.buffer)  # type: ignore[attr-defined]
        owner.tier.owner = owner  # type: ignore[attr-defined]
    del owner
    assert open_fds() == before


def test_a_context_is_opened_once() -> None:
    with Context() as context, pytest.raises(ArgumentError, match="open already"):
        context._adopt(1)


def test_tiers_can_be_added_and_used_by_many_threads_at_once() -> None:
    with Context() as context:

        def work(number: int) -> None:
            tier = context.add_tier(f"tier {number}", MIB)
            for size in range(1, 300):
                with tier.alloc(size) as buffer:
                    buffer.fill(number)
                    assert buffer.read() == bytes([number]) * size

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        context.check()
        assert [context.tiers[f"tier {n}"].stats().num_allocations for n in range(8)] == [0] * 8
        assert sorted(tier.number for tier in context.tiers.values()) == list(range(8))


def test_a_forks_child_finds_contexts_closed_and_views_alive() -> None:
    """And what it collects takes nothing from the parent."""
    with Context() as context:
        tier = context.add_tier("shared", MIB, Shm())
        buffer, other = tier.alloc(100), tier.alloc(100)
        other.write(b"theirs")
        with memoryview(buffer) as view:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    view[0] = 42
                    del other
                    try:
                        buffer.read()
                    except ClosedError as error:
                        code = 0 if "belongs to the parent process" in str(error) else 2
                    buffer.free()
                    context.close()
                    with Context() as own:
                        own.add_tier("local", MIB).alloc(100).write(b"mine")
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert buffer.read(1) == b"\x2a"
        assert other.read(6) == b"theirs"
        context.check()


EXIT = """
import sys, threading
import emucxl
context = emucxl.Context()
tier = context.add_tier("local", 1 << 20)
buffer = tier.alloc(1000)
view = memoryview(buffer)
sys.keep = [context, tier, buffer, view, tier.alloc(3)]
"""


@pytest.mark.parametrize(
    "more", ["", "del sys.keep", "sys.exit(0)", "def hold(b=buffer): pass", "import os; os.fork()"]
)
def test_leaving_the_interpreter_with_everything_open_is_quiet(more: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", EXIT + more], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_pulls_in_few_modules_and_neither_numpy_nor_torch() -> None:
    """An import of emucxl costs some 30 modules of Python's own, and with a first context 130."""
    code = (
        "import sys; before = set(sys.modules); import emucxl; imported = set(sys.modules) - before;"
        "emucxl.Context().add_tier('local', 1 << 20).alloc(1);"
        "assert not {'numpy', 'torch', 'typer', 'rich'} & set(sys.modules);"
        "print(len(imported), len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
    imported, used = map(int, done.stdout.split())
    assert imported < 60
    assert used < 200
