"""Buffers behave as bytearrays do, at an address of their own, and never crash."""

from __future__ import annotations

import array
import contextlib
import gc
import random
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from emucxl import _buffer
from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import ArgumentError, BadPointerError, ClosedError, InUseError, OutOfBoundsError
from emucxl.providers import Shm
from emucxl.tiers import Tier

MIB = 1 << 20
SIZES = [
    1,
    15,
    16,
    64,
    100,
    4096,
    16383,
    16384,
    100_000,
    3 * MIB,
]  # both sides of what is done without the GIL


@pytest.fixture
def context() -> Iterator[Context]:
    with Context("virtual") as context:
        context.add_tier("local", 16 * MIB)
        context.add_tier("shared", 16 * MIB, Shm())
        yield context


@pytest.fixture
def tier(context: Context) -> Tier:
    return context.tiers["local"]


# ---- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(tier: Tier, size: int) -> None:
    data = random.Random(size).randbytes(size)
    buffer = tier.alloc(size)
    assert len(buffer) == buffer.size_bytes == size
    buffer.write(data)
    target = bytearray(size)
    buffer.read_into(target)
    assert target == buffer.read() == bytes(buffer) == data  # type: ignore[call-overload]
    assert buffer.read(size // 2, size // 4) == data[size // 4 :][: size // 2]
    assert buffer.read(size=0, offset=size) == b""
    buffer.fill(0xA5, size // 3)
    assert buffer.read() == data[: size // 3] + b"\xa5" * (size - size // 3)


@pytest.mark.parametrize(
    "data",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"xx12345678")[2:],
        array.array("I", [1, 2]),
        (lambda view: view.cast("H", (2, 2)))(memoryview(bytearray(b"12345678"))),
    ],
    ids=lambda data: type(data).__name__,
)
def test_any_contiguous_bytes_are_written(tier: Tier, data: bytes) -> None:
    buffer = tier.alloc(10)
    buffer.write(data, 1)
    assert buffer.read(8, 1) == bytes(data)


def test_a_buffer_can_be_written_to_itself(tier: Tier) -> None:
    buffer = tier.alloc(100)
    buffer.write(bytes(range(100)))
    with memoryview(buffer) as view:
        buffer.write(view[:50], 10)
    expected = bytearray(range(100))
    expected[10:60] = expected[:50]
    assert buffer.read() == expected
    buffer.copy_from(buffer, 0, 20, 50)
    expected[:50] = expected[20:70]
    assert buffer.read() == expected


def test_copies_cross_tiers_of_a_context(context: Context, tier: Tier) -> None:
    source, target = tier.alloc(100), context.alloc(200, "shared")
    source.write(bytes(range(100)))
    target.copy_from(source)
    assert target.read() == bytes(range(100)) + bytes(100)
    target.copy_from(source, offset=150, source_offset=90)
    assert target.read(size=10, offset=150) == bytes(range(90, 100))
    with Context() as other, pytest.raises(ArgumentError, match="of another context"):
        other.add_tier("local", MIB).alloc(100).copy_from(source)


def test_ranges_that_leave_the_buffer_are_refused(tier: Tier) -> None:
    buffer, other = tier.alloc(100), tier.alloc(200)
    calls: list[Callable[[], object]] = [
        lambda: buffer.read(101),
        lambda: buffer.read(1, 100),
        lambda: buffer.read(offset=101),
        lambda: buffer.read(sys.maxsize, 1),
        lambda: buffer.read(1, sys.maxsize),
        lambda: buffer.read(1 << 63),
        lambda: buffer.read(1, 1 << 100),
        lambda: buffer.write(bytes(101)),
        lambda: buffer.write(b"x", 100),
        lambda: buffer.write(b"", 101),
        lambda: buffer.read_into(bytearray(101)),
        lambda: buffer.read_into(bytearray(2), 99),
        lambda: buffer.fill(0, 99, 2),
        lambda: buffer.copy_from(other),
        lambda: buffer.copy_from(other, 0, 150, 51),
        lambda: buffer.copy_from(other, 100, 0, 1),
    ]
    for call in calls:
        with pytest.raises(OutOfBoundsError, match=r"got .*expected"):
            call()
    with pytest.raises(
        OutOfBoundsError, match="got offset 99 and size 2; expected a range within the buffer's 100 bytes"
    ):
        buffer.read(2, 99)
    assert buffer.read() == bytes(100)


def test_arguments_that_make_no_sense_are_refused(tier: Tier) -> None:
    buffer = tier.alloc(100)
    for call in [
        lambda: buffer.read(-1),
        lambda: buffer.read(1, -1),
        lambda: buffer.write(b"x", -(1 << 70)),
        lambda: buffer.write(b"x", offset=-5),
        lambda: buffer.fill(256),
        lambda: buffer.fill(-1),
        lambda: buffer.resize(-1),
        lambda: buffer.resize(0),
        lambda: buffer.write(memoryview(b"123456")[::2]),
        lambda: buffer.read_into(memoryview(bytearray(6))[::2]),
        lambda: buffer.read_into(b"constant"),  # type: ignore[arg-type]
    ]:
        with pytest.raises((ArgumentError, OutOfBoundsError), match="got"):
            call()


def test_arguments_of_a_wrong_type_are_refused(tier: Tier) -> None:
    buffer: object = tier.alloc(100)
    for arguments in [
        ("read", "1"),
        ("read", 1.0),
        ("read", 1, None),
        ("read", 1, 2, 3),
        ("write",),
        ("write", "text"),
        ("write", 5),
        ("write", [1, 2]),
        ("write", b"", 0, 0),
        ("read_into",),
        ("read_into", None),
        ("fill",),
        ("fill", b"x"),
        ("copy_from", b"bytes"),
        ("copy_from",),
        ("resize", None),
        ("migrate", 1),
        ("migrate",),
        ("free", 1),
    ]:
        with pytest.raises(TypeError):
            getattr(buffer, arguments[0])(*arguments[1:])


def test_keywords_are_checked(tier: Tier) -> None:
    buffer = tier.alloc(100)
    assert buffer.read(offset=98) == bytes(2)
    with pytest.raises(TypeError, match=r"read\(\) has no parameter 'length'"):
        buffer.read(length=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"read\(\) got 'size' twice"):
        buffer.read(1, size=1)  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"write\(\) needs the argument 'data'"):
        buffer.write(offset=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"fill\(\) takes at most 3 arguments; got 4"):
        buffer.fill(1, 2, 3, 4)  # type: ignore[call-arg]


def test_whatever_has_an_index_is_an_offset(tier: Tier) -> None:
    class Seven:
        def __index__(self) -> int:
            return 7

    class Broken:
        def __index__(self) -> int:
            raise RuntimeError("of its own")

    buffer = tier.alloc(100)
    buffer.write(b"x", Seven())  # type: ignore[arg-type]
    assert buffer.read(1, 7) == b"x"
    with pytest.raises(RuntimeError, match="of its own"):
        buffer.read(1, Broken())  # type: ignore[arg-type]


def test_an_index_that_frees_the_buffer_is_noticed(tier: Tier) -> None:
    class Freeing:
        def __index__(self) -> int:
            buffer.free()
            return 0

    calls: list[Callable[[Buffer], object]] = [
        lambda buffer: buffer.read(1, Freeing()),  # type: ignore[arg-type]
        lambda buffer: buffer.write(b"x", Freeing()),  # type: ignore[arg-type]
        lambda buffer: buffer.fill(Freeing()),  # type: ignore[arg-type]
        lambda buffer: buffer.resize(Freeing()),  # type: ignore[arg-type]
        lambda buffer: buffer.copy_from(buffer, Freeing()),  # type: ignore[arg-type]
        lambda buffer: tier.context.write_batch([(buffer, Freeing(), b"x")]),  # type: ignore[list-item]
    ]
    for call in calls:
        buffer = tier.alloc(100)
        with pytest.raises(ClosedError, match="the buffer was freed"):
            call(buffer)


# ---- life ------------------------------------------------------------------------------------------------------------


def test_a_freed_buffer_can_do_nothing(context: Context, tier: Tier) -> None:
    buffer, other = tier.alloc(100), tier.alloc(100)
    assert not buffer.freed
    buffer.free()
    buffer.free()
    assert buffer.freed
    assert repr(buffer) == "<Buffer, freed>"
    assert buffer.tier is tier
    calls: list[Callable[[], object]] = [
        lambda: buffer.read(),
        lambda: buffer.read_into(bytearray(1)),
        lambda: buffer.write(b"x"),
        lambda: buffer.fill(0),
        lambda: buffer.copy_from(other),
        lambda: other.copy_from(buffer),
        lambda: other.write(buffer),
        lambda: buffer.resize(1),
        lambda: buffer.migrate("shared"),
        lambda: buffer.address,
        lambda: buffer.size_bytes,
        lambda: len(buffer),
        lambda: memoryview(buffer),
        lambda: buffer.__dlpack__(),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="the buffer was freed"):
            call()
    assert tier.stats().num_allocations == 1


def test_a_block_frees_its_buffer(tier: Tier) -> None:
    with tier.alloc(100) as buffer:
        assert repr(buffer) == "<Buffer of 100 bytes in tier 'local'>"
    assert buffer.freed


def test_the_last_reference_frees(tier: Tier) -> None:
    buffer = tier.alloc(100)
    gone = weakref.ref(buffer)
    assert tier.stats().num_allocations == 1
    del buffer
    assert gone() is None
    assert tier.stats().num_allocations == 0


def test_resizing_keeps_the_common_bytes_and_adds_zeros(tier: Tier) -> None:
    buffer = tier.alloc(100)
    buffer.write(bytes(range(100)))
    for size in (50, 200, 100_000, 3, 3 * MIB):
        before = buffer.read()
        buffer.resize(size)
        assert len(buffer) == size
        assert buffer.read() == before[:size] + bytes(max(0, size - len(before)))
    from emucxl.errors import TierFullError

    with pytest.raises(TierFullError):
        buffer.resize(64 * MIB)
    assert len(buffer) == 3 * MIB


def test_migrating_keeps_the_object_and_its_bytes(context: Context, tier: Tier) -> None:
    buffer = tier.alloc(1000)
    buffer.write(bytes(range(250)))
    address = buffer.address
    buffer.migrate("shared")
    assert buffer.tier is context.tiers["shared"]
    assert buffer.address != address
    assert buffer.read(250) == bytes(range(250))
    with pytest.raises(BadPointerError):
        context.query(address)
    buffer.migrate(tier)
    assert buffer.tier is tier
    assert context.tiers["shared"].stats().num_allocations == 0
    with Context() as other, pytest.raises(ArgumentError, match="of another context"):
        buffer.migrate(other.add_tier("local", MIB))
    from emucxl.errors import NotFoundError

    with pytest.raises(NotFoundError, match="expected one of 'local', 'shared'"):
        buffer.migrate("cxl")


def test_buffers_are_made_by_tiers_alone() -> None:
    with pytest.raises(TypeError):
        Buffer()
    with pytest.raises(TypeError):
        type("Mine", (Buffer,), {})
    with pytest.raises(TypeError):
        _buffer.TierBase()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        _buffer.TierBase(None, 0, False, True)  # type: ignore[arg-type]


# ---- views -----------------------------------------------------------------------------------------------------------


def test_a_view_shares_the_memory(tier: Tier) -> None:
    buffer = tier.alloc(8)
    with memoryview(buffer) as view:
        assert (view.format, view.itemsize, view.ndim, view.shape, view.readonly) == ("B", 1, 1, (8,), False)
        assert view.obj.buffer is buffer  # type: ignore[attr-defined]
        view[2] = 5
        assert buffer.read() == b"\0\0\5\0\0\0\0\0"
        buffer.write(b"\7", 3)
        assert view[3] == 7
        view.cast("Q")[0] = 1
    assert buffer.read(1) == b"\1"


def test_while_a_view_lives_the_buffer_stays(tier: Tier) -> None:
    buffer = tier.alloc(100)
    address = buffer.address
    outer = memoryview(buffer)
    inner = outer[10:20]
    for call in (buffer.free, lambda: buffer.resize(1), lambda: buffer.migrate("shared")):
        with pytest.raises(InUseError, match=r"uses in progress: 1 \(views") as caught:
            call()
        assert isinstance(caught.value, BufferError)
    with pytest.raises(InUseError), buffer:
        pass
    assert (buffer.address, buffer.freed) == (address, False)
    buffer.write(b"x")
    outer.release()
    with pytest.raises(InUseError):
        buffer.free()
    inner.release()
    buffer.free()


def test_a_view_keeps_the_buffer_its_tier_and_its_context() -> None:
    def make() -> memoryview:
        context = Context()
        return memoryview(context.add_tier("local", MIB).alloc(100))

    view = make()
    gc.collect()
    view[99] = 1
    assert view[99] == 1
    view.release()


# ---- against a model -------------------------------------------------------------------------------------------------


class Buffers(RuleBasedStateMachine):
    """Many buffers in two tiers, each beside the bytearray that it should equal."""

    buffers = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        self.context = Context("virtual")
        self.context.add_tier("local", 8 * MIB)
        self.context.add_tier("shared", 8 * MIB, Shm())
        self.model: dict[Buffer, bytearray] = {}

    @rule(target=buffers, tier=st.sampled_from(["local", "shared"]), size=st.integers(1, 40_000))
    def alloc(self, tier: str, size: int) -> Buffer:
        buffer = self.context.alloc(size, tier)
        self.model[buffer] = bytearray(size)
        return buffer

    @rule(buffer=buffers, data=st.data())
    def write(self, buffer: Buffer, data: st.DataObject) -> None:
        offset, size = data.draw(ranges(len(buffer)))
        value = data.draw(st.binary(min_size=size, max_size=size)) if size < 100 else b"\xee" * size
        buffer.write(value, offset)
        self.model[buffer][offset : offset + size] = value

    @rule(buffer=buffers, value=st.integers(0, 255), data=st.data())
    def fill(self, buffer: Buffer, value: int, data: st.DataObject) -> None:
        offset, size = data.draw(ranges(len(buffer)))
        buffer.fill(value, offset, size)
        self.model[buffer][offset : offset + size] = bytes([value]) * size

    @rule(buffer=buffers, source=buffers, data=st.data())
    def copy(self, buffer: Buffer, source: Buffer, data: st.DataObject) -> None:
        source_offset, size = data.draw(ranges(len(source)))
        size = min(size, len(buffer))
        offset = data.draw(st.integers(0, len(buffer) - size))
        buffer.copy_from(source, offset, source_offset, size)
        self.model[buffer][offset : offset + size] = self.model[source][source_offset : source_offset + size]

    @rule(buffer=buffers, data=st.data())
    def read(self, buffer: Buffer, data: st.DataObject) -> None:
        offset, size = data.draw(ranges(len(buffer)))
        expected = self.model[buffer][offset : offset + size]
        target = bytearray(size)
        buffer.read_into(target, offset)
        assert buffer.read(size, offset) == target == expected

    @rule(buffer=buffers, size=st.integers(1, 40_000))
    def resize(self, buffer: Buffer, size: int) -> None:
        buffer.resize(size)
        model = self.model[buffer]
        model[:] = model[:size] + bytes(max(0, size - len(model)))

    @rule(buffer=buffers, tier=st.sampled_from(["local", "shared"]))
    def migrate(self, buffer: Buffer, tier: str) -> None:
        buffer.migrate(tier)
        assert buffer.tier.name == tier

    @rule(buffer=consumes(buffers))
    def free(self, buffer: Buffer) -> None:
        del self.model[buffer]
        buffer.free()

    @invariant()
    def every_buffer_equals_its_model(self) -> None:
        for buffer, model in self.model.items():
            with memoryview(buffer) as view:
                assert view == model
        allocated = sum(tier.stats().allocated_bytes for tier in self.context.tiers.values())
        assert allocated == sum(map(len, self.model.values()))

    def teardown(self) -> None:
        self.context.check()
        self.context.close()


def ranges(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(0, size).flatmap(
        lambda offset: st.tuples(st.just(offset), st.integers(0, size - offset))
    )


TestBuffers = Buffers.TestCase
TestBuffers.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@given(st.integers(1, 64), st.integers(-80, 80), st.integers(-80, 80))
def test_a_read_gives_the_slice_or_an_error(length: int, offset: int, size: int) -> None:
    data = bytes(range(length))
    with Context("virtual") as context:
        buffer = context.add_tier("local", MIB).alloc(length)
        buffer.write(data)
        inside = offset >= 0 and size >= 0 and offset + size <= length
        if inside:
            assert buffer.read(size, offset) == data[offset : offset + size]
        else:
            with pytest.raises((OutOfBoundsError, ArgumentError)):
                buffer.read(size, offset)


# ---- threads and references ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "frees"), [(64, 200), (1 << 20, 5)])
def test_threads_that_use_a_buffer_while_another_frees_it_get_errors(
    tier: Tier, size: int, frees: int
) -> None:
    """With short calls that keep the GIL, and with long ones that don't."""
    unexpected: list[BaseException] = []
    data, target = bytes(size), bytearray(size)
    pause_s = 1e-5 if size < 16384 else 1e-3

    def use(call: Callable[[Buffer], object]) -> None:
        while not stop.is_set():
            try:
                call(shared[0])
            except (ClosedError, InUseError):
                pass
            except BaseException as error:
                unexpected.append(error)
            time.sleep(pause_s)  # so that the buffer is out of use at times

    calls: list[Callable[[Buffer], object]] = [
        lambda buffer: buffer.read(),
        lambda buffer: buffer.write(data),
        lambda buffer: buffer.read_into(target),
        lambda buffer: buffer.fill(1, 0, size),
        lambda buffer: memoryview(buffer).release(),
        lambda buffer: buffer.migrate("shared"),
        lambda buffer: buffer.resize(size),
    ]
    shared, stop = [tier.alloc(size)], threading.Event()
    threads = [threading.Thread(target=use, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    refused = freed = 0
    try:
        while not unexpected and (freed < frees or (size > 16384 and refused == 0)):
            try:
                shared[0].free()
                freed += 1
                shared[0] = tier.alloc(size)
            except InUseError:
                refused += 1
            time.sleep(1e-5)  # or this thread alone would have the GIL for as long as nobody is in the way
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not unexpected
    tier.context.check()


def test_closing_a_context_that_threads_use_is_refused_or_done() -> None:
    for _ in range(20):
        context = Context()
        tier = context.add_tier("local", 4 * MIB)
        buffer = tier.alloc(MIB)
        started = threading.Event()

        def use(buffer: Buffer = buffer, tier: Tier = tier, started: threading.Event = started) -> None:
            with contextlib.suppress(ClosedError):
                while True:
                    buffer.read()
                    tier.alloc(100_000).free()
                    started.set()
                    time.sleep(1e-5)

        thread = threading.Thread(target=use)
        thread.start()
        started.wait()
        while not context.closed:
            with contextlib.suppress(InUseError):
                context.close()
        thread.join()


def test_nothing_leaks_over_many_operations(context: Context, tier: Tier) -> None:
    buffer, data, target = tier.alloc(64), bytes(64), bytearray(64)

    def once() -> None:
        buffer.write(data, offset=0)
        buffer.read(64, offset=0)
        buffer.read_into(target)
        buffer.fill(0)
        buffer.copy_from(buffer, size=10)
        memoryview(buffer).release()
        context.write_batch([(buffer, 0, data)])
        context.read_batch([(buffer, 0, target)])
        with tier.alloc(100) as other:
            other.resize(200)
            other.migrate("shared")
        for bad in (lambda: buffer.read(65), lambda: buffer.write(b"x", -1), lambda: buffer.write("x")):  # type: ignore[arg-type]
            try:
                bad()
            except (OutOfBoundsError, ArgumentError, TypeError):
                pass
            else:
                pytest.fail("no error")
        with memoryview(buffer), contextlib.suppress(InUseError):
            buffer.free()
        buffer.__dlpack__(max_version=(1, 0))
        buffer.__dlpack__(copy=True)

    watched = [
        buffer,
        data,
        target,
        tier,
        context,
        Buffer,
        type(tier),
        context.tiers["shared"],
        None,
        "shared",
    ]
    for _ in range(100):
        once()
    gc.collect()
    references = [sys.getrefcount(thing) for thing in watched]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(6_000):  # of some twenty operations each
        once()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000  # less than a byte per operation
    for thing, count in zip(watched, references, strict=True):
        assert abs(sys.getrefcount(thing) - count) < 50, thing
    assert tier.stats().num_allocations == 1
    buffer.free()
