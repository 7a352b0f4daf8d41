"""Records of a pool, its hosts and its regions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from emucxl.pool import abi as pool_abi


class HostState(IntEnum):
    JOINING = 1
    ACTIVE = 2
    FENCED = 3  # its lease ran out; what it held waits until its process lets go or is gone
    DRAINED = 4  # it touches nothing any more; what it held is being freed


class RegionState(IntEnum):
    CARVING = 1
    LIVE = 2
    RESIZING = 3
    DYING = 4


class Sharing(IntEnum):
    """The access to a region that its owner grants other hosts."""

    WRITE = 0
    READ = 1
    NONE = 2


@dataclass(frozen=True)
class PoolStats:
    """A pool's geometry and what is in it. Free, held and retired extents add up to num_extents."""

    uuid: str
    file_bytes: int
    extent_bytes: int
    num_extents: int
    free_extents: int
    held_extents: int
    retired_extents: int
    poisoned_extents: int  # held ones with poison; retired when they are let go
    max_hosts: int
    max_regions: int
    num_hosts: int
    num_regions: int
    num_poison_ranges: int
    created_ns: int  # since 1970

    @property
    def size_bytes(self) -> int:
        return self.num_extents * self.extent_bytes

    @property
    def free_bytes(self) -> int:
        return self.free_extents * self.extent_bytes


@dataclass(frozen=True)
class HostInfo:
    name: str
    slot: int
    epoch: int
    state: HostState
    is_here: bool  # its PID counts on this machine
    pid: int
    start_time: int
    lease_s: float
    quota_bytes: int | None
    owned_bytes: int  # what counts against the quota
    silence_s: float | None  # since its last heartbeat; None where it is on another machine's clock
    heartbeats: int


@dataclass(frozen=True)
class RegionInfo:
    tag: str
    slot: int
    state: RegionState
    persistent: bool
    sharing: Sharing
    owner: int | None  # a host's slot
    size_bytes: int
    max_bytes: int
    num_extents: int
    poisoned_extents: int
    readers: tuple[int, ...]  # slots of the hosts that have it open to read
    writers: tuple[int, ...]  # ... to read and write


@dataclass(frozen=True)
class PoisonRange:
    offset: int  # from the first extent of the pool
    size_bytes: int


@dataclass(frozen=True)
class ReclaimReport:
    """The counts of a reclaim."""

    fenced_hosts: int
    freed_hosts: int
    freed_regions: int
    freed_extents: int
    quarantined_hosts: int  # fenced, and perhaps still able to write to what they held

    def followed_by(self, later: ReclaimReport) -> ReclaimReport:
        """Adds up both reports. In quarantine is what was there in the end."""
        return ReclaimReport(
            self.fenced_hosts + later.fenced_hosts,
            self.freed_hosts + later.freed_hosts,
            self.freed_regions + later.freed_regions,
            self.freed_extents + later.freed_extents,
            later.quarantined_hosts,
        )


def host_info(entry: pool_abi.RawHostInfo) -> HostInfo:
    unseen = entry.silence_ns == 2**64 - 1
    return HostInfo(
        name=entry.name.decode(errors="replace"),
        slot=entry.slot,
        epoch=entry.epoch,
        state=HostState(entry.state),
        is_here=bool(entry.is_here),
        pid=entry.pid,
        start_time=entry.start_time,
        lease_s=entry.lease_ns / 1e9,
        quota_bytes=entry.quota_bytes or None,
        owned_bytes=entry.owned_bytes,
        silence_s=None if unseen else entry.silence_ns / 1e9,
        heartbeats=entry.heartbeats,
    )


def region_info(entry: pool_abi.RegionEntry) -> RegionInfo:
    return RegionInfo(
        tag=entry.tag.decode(errors="replace"),
        slot=entry.slot,
        state=RegionState(entry.state),
        persistent=bool(entry.persistent),
        sharing=Sharing(min(entry.sharing, max(Sharing))),
        owner=None if entry.owner < 0 else entry.owner,
        size_bytes=entry.size_bytes,
        max_bytes=entry.max_bytes,
        num_extents=entry.num_extents,
        poisoned_extents=entry.poisoned_extents,
        readers=_bits(entry.readers),
        writers=_bits(entry.writers),
    )


def _bits(mask: int) -> tuple[int, ...]:
    return tuple(bit for bit in range(64) if mask >> bit & 1)
