"""Tiers: the memories of a context, each with a provider, a capacity and a timing. `Context.add_tier` makes them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emucxl import abi, native
from emucxl._buffer import ContextBase, TierBase
from emucxl.arguments import natural
from emucxl.providers import Null, Provider

if TYPE_CHECKING:
    from emucxl.links import Link
    from emucxl.timing import Timing


@dataclass(frozen=True)
class TierInfo:
    """The properties of a tier."""

    name: str
    capacity_bytes: int
    base_address: int
    """Of the tier's one range of addresses."""
    numa_node: int | None
    """Where the pages are; None when that is unknown."""
    fd: int | None
    """That other processes can map (it stays the tier's), or None."""
    modelled: bool


@dataclass(frozen=True)
class TierStats:
    """Counts of a tier's bytes and accesses. `delayed_ns` is modelled time."""

    capacity_bytes: int
    allocated_bytes: int
    """As asked for."""
    reserved_bytes: int
    """Taken from the capacity: with rounding, and what caches hold."""
    num_allocations: int
    """Live."""
    total_allocations: int
    """Ever."""
    peak_reserved_bytes: int
    read_bytes: int
    """Through `read`, `write` and the like; what views load and store is not counted."""
    write_bytes: int
    read_accesses: int
    write_accesses: int
    delayed_ns: int
    """Modelled time that accesses took."""
    poisoned_bytes: int


class Tier(TierBase):
    """One memory of a context.

    Thread safety: any call from any thread.
    """

    def __init__(
        self,
        context: ContextBase,
        number: int,
        modelled: bool,
        touchable: bool,
        provider: Provider,
        timing: Timing | None,
        link: Link | None,
    ) -> None:
        self._provider, self._timing, self._link = provider, timing, link
        info = self.info
        self._name, self._capacity_bytes = info.name, info.capacity_bytes

    @property
    def name(self) -> str:
        return self._name

    @property
    def capacity_bytes(self) -> int:
        """As given, rounded up to whole pages; what poison has taken away is in `stats`."""
        return self._capacity_bytes

    @property
    def provider(self) -> Provider:
        return self._provider

    @property
    def timing(self) -> Timing | None:
        """The modelled time of its accesses; None if they are not modelled."""
        return self._timing

    @property
    def link(self) -> Link | None:
        """The link that its traffic queues on."""
        return self._link

    @property
    def info(self) -> TierInfo:
        """Where its memory is.

        Raises:
            ClosedError: the context is closed.
        """
        raw = abi.RawTierInfo()
        with self.context.held() as handle:
            native.check(abi.load().emx_tier_get_info(handle, self.number, ctypes.byref(raw)))
        return TierInfo(
            name=raw.name.decode(errors="surrogateescape"),
            capacity_bytes=raw.capacity_bytes,
            base_address=raw.base or 0,
            numa_node=raw.numa_node if raw.numa_node >= 0 else None,
            fd=raw.fd if raw.fd >= 0 else None,
            modelled=bool(raw.modelled),
        )

    def stats(self) -> TierStats:
        """Its figures now.

        Raises:
            ClosedError: the context is closed.
        """
        raw = abi.RawTierStats()
        with self.context.held() as handle:
            native.check(abi.load().emx_tier_get_stats(handle, self.number, ctypes.byref(raw)))
        return TierStats(*(getattr(raw, name) for name, _ in abi.RawTierStats._fields_))

    def trim(self) -> None:
        """Gives memory that is free back to the system."""
        with self.context.held() as handle:
            native.check(abi.load().emx_tier_trim(handle, self.number))

    def poison(self, address: int, size_bytes: int) -> None:
        """Marks the 64-byte lines of a range as bad, as a device reports them.

        Priced accesses to them raise PoisonedError from now on; views still reach them. The pages are retired when
        their buffer is freed, and leave the capacity.

        Raises:
            OutOfBoundsError, ArgumentError: the range is not in the tier.
        """
        with self.context.held() as handle:
            native.check(
                abi.load().emx_poison(
                    handle, self.number, natural("address", address), natural("size_bytes", size_bytes)
                )
            )

    def __repr__(self) -> str:
        kind = "modelled" if self.modelled else "unmodelled"
        return f"<Tier {self._name!r} of {self._capacity_bytes:,} bytes, {kind}>"


def is_touchable(provider: Provider) -> bool:
    """Whether there is memory behind the addresses."""
    return not isinstance(provider, Null)
