"""Buffers that end, grow, move, and are looked at through views."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from emucxl import _buffer
from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import ArgumentError, BadPointerError, ClosedError, InUseError
from emucxl.tiers import Tier

MIB = 1 << 20


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
