"""A tier's heap against a model: a dictionary of blocks, each with the bytes it must hold."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from emucxl import errors
from support.native_context import NativeContext

CAPACITY = 1 << 20
PAGE = 4096
SIZES = st.one_of(
    st.integers(1, 300),
    st.sampled_from([4095, 4096, 4097, 32767, 32768, 32769, 65536]),
    st.integers(1, CAPACITY // 3),
)
ALIGNMENTS = st.one_of(st.just(0), st.integers(0, 21).map(lambda power: 1 << power))


class HeapMachine(RuleBasedStateMachine):
    """Every block's address maps to its size and the byte it was filled with."""

    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.context = NativeContext()
        self.tier = self.context.add_tier(capacity_bytes=CAPACITY)
        self.base = self.context.info(self.tier).base
        self.live: dict[int, tuple[int, int]] = {}
        self.poisoned_pages: set[int] = set()
        self.total = 0

    def teardown(self) -> None:
        for address in list(self.live):
            self.context.free(address)
        self.context.trim(self.tier)
        assert self.context.stats(self.tier).reserved_bytes == 0
        self.context.check()
        self.context.close()

    @rule(target=blocks, size=SIZES, alignment=ALIGNMENTS, value=st.integers(1, 255))
    def alloc(self, size: int, alignment: int, value: int) -> object:
        try:
            address = self.context.alloc(self.tier, size, alignment)
        except errors.TierFullError as error:
            self._says_what_is_full(str(error), size)
            return multiple()
        self.total += 1
        assert address % max(alignment, 16) == 0
        assert self.base <= address <= self.base + CAPACITY - size
        assert not self._overlaps(address, size)
        assert not self._touches_poison(address, size)
        assert ctypes.string_at(address, size) == bytes(size)
        self._fill(address, size, value)
        return address

    @rule(address=consumes(blocks))
    def free(self, address: int) -> None:
        if address not in self.live:  # moved away, or freed through another of its bundle's entries
            return
        self._verify(address)
        self.context.free(address)
        del self.live[address]
        with pytest.raises(errors.BadPointerError):
            self.context.free(address)

    @rule(address=blocks, fraction=st.floats(0, 1, exclude_max=True))
    def an_inner_pointer_leads_to_its_block(self, address: int, fraction: float) -> None:
        if address not in self.live:
            return
        size = self.live[address][0]
        offset = int(fraction * size)
        found = self.context.query(address + offset)
        assert (found.base, found.size_bytes, found.offset) == (address, size, offset)
        if offset:
            with pytest.raises(errors.BadPointerError):
                self.context.free(address + offset)

    @rule(target=blocks, address=consumes(blocks), size=SIZES)
    def resize(self, address: int, size: int) -> object:
        if address not in self.live:
            return multiple()
        old_size, value = self.live[address]
        try:
            moved = self.context.resize(address, size)
        except (errors.TierFullError, errors.PoisonedError):
            self._verify(address)
            return address
        common = min(old_size, size)
        del self.live[address]
        assert not self._overlaps(moved, size)
        assert ctypes.string_at(moved, size) == bytes([value]) * common + bytes(size - common)
        self.total += moved != address
        self._fill(moved, size, value)
        return moved

    @rule(offset=st.integers(0, CAPACITY - 1))
    def any_address_may_be_asked_about(self, offset: int) -> None:
        address = self.base + offset
        inside = [base for base, (size, _) in self.live.items() if base <= address < base + size]
        try:
            assert [self.context.query(address).base] == inside
        except errors.BadPointerError:
            assert not inside

    @rule(offset=st.integers(0, CAPACITY - 1), rare=st.integers(0, 9))
    def poison(self, offset: int, rare: int) -> None:
        if rare == 0:
            self.context.poison(self.tier, self.base + offset, 1)
            self.poisoned_pages.add(offset // PAGE)

    @rule()
    def trim(self) -> None:
        self.context.trim(self.tier)

    @invariant()
    def statistics_are_exact(self) -> None:
        stats = self.context.stats(self.tier)
        assert stats.num_allocations == len(self.live)
        assert stats.allocated_bytes == sum(size for size, _ in self.live.values())
        assert stats.total_allocations == self.total
        assert stats.allocated_bytes <= stats.reserved_bytes <= stats.peak_reserved_bytes <= CAPACITY
        assert stats.poisoned_bytes == len(self.poisoned_pages) * PAGE

    @invariant()
    def the_heap_is_sound(self) -> None:
        self.context.check()

    def _says_what_is_full(self, message: str, size: int) -> None:
        assert str(size) in message
        assert str(CAPACITY) in message

    def _overlaps(self, address: int, size: int) -> bool:
        return any(address < base + other and base < address + size for base, (other, _) in self.live.items())

    def _touches_poison(self, address: int, size: int) -> bool:
        first, last = (address - self.base) // PAGE, (address + size - 1 - self.base) // PAGE
        return any(first <= page <= last for page in self.poisoned_pages)

    def _fill(self, address: int, size: int, value: int) -> None:
        ctypes.memset(address, value, size)
        self.live[address] = (size, value)

    def _verify(self, address: int) -> None:
        size, value = self.live[address]
        assert ctypes.string_at(address, size) == bytes([value]) * size


class TestHeap(HeapMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestHeapLonger(HeapMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=600, stateful_step_count=100, deadline=None)
