"""Tiers that are only counted: what the applications need of emucxl's, and failures on demand."""

from __future__ import annotations

from itertools import count

from emucxl.errors import ClosedError, OutOfBoundsError, TierFullError

_ADDRESSES = count(0x1000, 0x1000)  # every allocation has its own


class FakeTier:
    """`capacity_bytes` of memory; the calls whose numbers are in `failing` find it full."""

    def __init__(self, name: str, capacity_bytes: int = 1 << 40) -> None:
        self.name, self.capacity_bytes = name, capacity_bytes
        self.allocated_bytes = self.calls = 0
        self.failing: set[int] = set()

    def alloc(self, size_bytes: int, alignment: int = 0) -> FakeBuffer:
        self.take(size_bytes)
        return FakeBuffer(self, size_bytes)

    def take(self, size_bytes: int) -> None:
        self.calls += 1
        if self.calls in self.failing or self.allocated_bytes + size_bytes > self.capacity_bytes:
            raise TierFullError(f"tier {self.name!r} is full")
        self.allocated_bytes += size_bytes


class FakeBuffer:
    def __init__(self, tier: FakeTier, size_bytes: int) -> None:
        self.tier, self.size_bytes, self.freed = tier, size_bytes, False
        self.address = next(_ADDRESSES)
        self._bytes = bytearray(size_bytes)

    def read(self, size: int | None = None, offset: int = 0) -> bytes:
        size = self.size_bytes - offset if size is None else size
        self._check(offset, size)
        return bytes(self._bytes[offset : offset + size])

    def write(self, data: bytes, offset: int = 0) -> None:
        self._check(offset, len(data))
        self._bytes[offset : offset + len(data)] = data

    def fill(self, value: int, offset: int = 0, size: int | None = None) -> None:
        size = self.size_bytes - offset if size is None else size
        self.write(bytes([value]) * size, offset)

    def migrate(self, tier: FakeTier) -> None:
        self._check(0, 0)
        tier.take(self.size_bytes)
        self.tier.allocated_bytes -= self.size_bytes
        self.tier = tier
        self.address = next(_ADDRESSES)

    def free(self) -> None:
        self._check(0, 0)
        self.freed = True
        self.tier.allocated_bytes -= self.size_bytes

    def _check(self, offset: int, size: int) -> None:
        if self.freed:
            raise ClosedError("the buffer was freed")
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise OutOfBoundsError(f"{offset}+{size} of {self.size_bytes}")
