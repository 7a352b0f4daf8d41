"""Buffers are read and written as bytearrays are, and never crash."""

from __future__ import annotations

import array
import random
import sys
from collections.abc import Callable

import pytest

from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import ArgumentError, ClosedError, OutOfBoundsError
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
