"""Buffers against a model: bytearrays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import ArgumentError, OutOfBoundsError
from emucxl.providers import Shm

MIB = 1 << 20


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
