"""One tier as a key-value store sees it: what the store holds there, and how much it may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emucxl.errors import ArgumentError, CorruptError, TierFullError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emucxl.buffer import Buffer
    from emucxl.tiers import Tier


@dataclass(frozen=True)
class Limit:
    """How much of a tier a store may use, besides what the tier itself can hold. None: no such limit."""

    entries: int | None = None
    size_bytes: int | None = None  # of keys and values, without the rounding of the tier's heap

    def __post_init__(self) -> None:
        for name, value in (("entries", self.entries), ("size_bytes", self.size_bytes)):
            if value is not None and value < 0:
                raise ArgumentError(f"got {name}={value}; expected at least 0, or None for no limit")


class Entry:
    """A key and its value in one buffer: first the key, then the value."""

    __slots__ = ("buffer", "key_bytes", "side", "size_bytes")

    def __init__(self, buffer: Buffer, key_bytes: int, size_bytes: int, side: Side) -> None:
        self.buffer, self.key_bytes, self.size_bytes, self.side = buffer, key_bytes, size_bytes, side

    @property
    def value_bytes(self) -> int:
        return self.size_bytes - self.key_bytes

    def key(self) -> bytes:
        """As it stands in the tier's memory."""
        return self.buffer.read(self.key_bytes)

    def value(self) -> bytes:
        return self.buffer.read(self.value_bytes, self.key_bytes)

    def resize(self, buffer: Buffer, size_bytes: int) -> None:
        """Takes over another buffer, with the same key and a value of another size."""
        self.side.size_bytes += size_bytes - self.size_bytes
        self.buffer, self.size_bytes = buffer, size_bytes


class Side:
    """The entries of a store in `tier`, under a limit."""

    __slots__ = ("entries", "limit", "size_bytes", "tier")

    def __init__(self, tier: Tier, limit: Limit) -> None:
        self.tier, self.limit = tier, limit
        self.entries = self.size_bytes = 0

    def add(self, entry: Entry) -> Entry:
        entry.side = self
        self.entries += 1
        self.size_bytes += entry.size_bytes
        return entry

    def remove(self, entry: Entry) -> None:
        self.entries -= 1
        self.size_bytes -= entry.size_bytes

    def fits(self, size_bytes: int, leaving: Entry | None = None) -> bool:
        """Whether the limit admits one more entry, once `leaving` has left (if it is here)."""
        entries, held_bytes = self.entries, self.size_bytes
        if leaving is not None and leaving.side is self:
            entries, held_bytes = entries - 1, held_bytes - leaving.size_bytes
        return (self.limit.entries is None or entries < self.limit.entries) and (
            self.limit.size_bytes is None or held_bytes + size_bytes <= self.limit.size_bytes
        )

    def could_hold(self, size_bytes: int) -> bool:
        """Whether an entry of that size would fit if it were alone."""
        limit = self.limit
        return (
            size_bytes <= self.tier.capacity_bytes
            and limit.entries != 0
            and (limit.size_bytes is None or size_bytes <= limit.size_bytes)
        )

    def full(self, size_bytes: int) -> TierFullError:
        """The error for an entry of `size_bytes` that does not fit here."""
        return TierFullError(
            f"no room for an entry of {size_bytes:,} bytes: the store holds {_of(self.entries, self.limit.entries)} "
            f"entries and {_of(self.size_bytes, self.limit.size_bytes)} bytes in tier {self.tier.name!r} of "
            f"{self.tier.capacity_bytes:,} bytes; raise the limit, or delete entries"
        )

    def check(self, held: Mapping[bytes, Entry]) -> None:
        """Checks that the books are those of `held`, by key, and that the memory agrees. Raises CorruptError."""
        entries, size_bytes = len(held), sum(entry.size_bytes for entry in held.values())
        if (entries, size_bytes) != (self.entries, self.size_bytes):
            raise CorruptError(
                f"tier {self.tier.name!r} is booked with {self.entries:,} entries of {self.size_bytes:,} bytes; "
                f"it holds {entries:,} of {size_bytes:,}"
            )
        for what, count, limit in (
            ("entries", entries, self.limit.entries),
            ("bytes", size_bytes, self.limit.size_bytes),
        ):
            if limit is not None and count > limit:
                raise CorruptError(f"tier {self.tier.name!r} holds {count:,} {what}; the limit is {limit:,}")
        for key, entry in held.items():
            if entry.buffer.tier.name != self.tier.name or entry.key() != key:
                raise CorruptError(
                    f"the entry of key {key[:40]!r} is not in tier {self.tier.name!r} as booked"
                )


def _of(count: int, limit: int | None) -> str:
    return f"{count:,}" if limit is None else f"{count:,} of {limit:,}"
