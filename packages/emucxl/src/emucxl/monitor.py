"""Reads the state of contexts and links while they run, in this user's processes.

A context keeps its figures in a memfd named "emucxl-context" (native/include/emucxl/monitor.h), a link in one named
"emucxl-link", or in a file of its own (link_layout.h). They are found through /proc/PID/fd, so a process that is killed
leaves nothing behind.
They are read, not mapped: a process may end at any moment without harm.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Iterator
from ctypes import c_double, c_uint32, c_uint64
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

CONTEXT_NAME, LINK_NAME = "emucxl-context", "emucxl-link"
PROVIDERS = ("anon", "shm", "numa", "dax", "null", "region")  # by emx_provider
_CONTEXT_MAGIC, _CONTEXT_VERSION = 0x31786E6F4D786D65, 1
_LINK_MAGIC, _LINK_VERSION = 0x316B6E696C786D65, 2
_LINK_FILE_BYTES = 4096
_MAX_TIERS, _SHARDS = 16, 16


class _Counters(ctypes.Structure):
    _fields_ = (
        ("read_bytes", c_uint64),
        ("write_bytes", c_uint64),
        ("read_accesses", c_uint64),
        ("write_accesses", c_uint64),
        ("delayed_ns", c_uint64),
        ("unused", c_uint64 * 3),
    )


class _TierCounters(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 32),
        ("provider", c_uint32),
        ("modelled", c_uint32),
        ("capacity_bytes", c_uint64),
        ("allocated_bytes", c_uint64),
        ("reserved_bytes", c_uint64),
        ("num_allocations", c_uint64),
        ("unused", c_uint64 * 7),
        ("shards", _Counters * _SHARDS),
    )


class _ContextPage(ctypes.Structure):
    _fields_ = (
        ("magic", c_uint64),
        ("version", c_uint32),
        ("page_bytes", c_uint32),
        ("pid", c_uint32),
        ("clock", c_uint32),
        ("num_tiers", c_uint32),
        ("reserved", c_uint32),
        ("name", ctypes.c_char * 32),
        ("unused", c_uint64 * 8),
        ("tiers", _TierCounters * _MAX_TIERS),
    )


class _Lane(ctypes.Structure):
    _fields_ = (
        ("free_ns", c_uint64),
        ("fraction", c_uint32),
        ("reserved", c_uint32),
        ("latest_ns", c_uint64),
        ("queued_ns", c_uint64),
        ("bytes", c_uint64 * 2),
        ("transfers", c_uint64 * 2),
        ("busy_ns", c_uint64 * 2),
        ("windows", c_uint64 * 4),
        ("padding", c_uint64 * 2),
    )


class _LinkPage(ctypes.Structure):
    _fields_ = (
        ("magic", c_uint64),
        ("version", c_uint32),
        ("struct_bytes", c_uint32),
        ("full_duplex", c_uint32),
        ("clock", c_uint32),
        ("read_bandwidth_gbps", c_double),
        ("write_bandwidth_gbps", c_double),
        ("latency_ns", c_double),
        ("check", c_uint64),
        ("creator_pid", c_uint64),
        ("boot_id", c_uint64),
        ("padding", c_uint64 * 7),
        ("lanes", _Lane * 2),
    )


@dataclass(frozen=True)
class TierView:
    """A tier's figures. What was allocated lags a little behind; `delayed_ns` is modelled."""

    name: str
    provider: str
    modelled: bool
    capacity_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    num_allocations: int
    read_bytes: int
    write_bytes: int
    read_accesses: int
    write_accesses: int
    delayed_ns: int


@dataclass(frozen=True)
class ContextView:
    """A context of a running process."""

    id: str
    pid: int
    command: str
    name: str
    """Given by the program; empty where it gave none."""
    clock: str
    tiers: tuple[TierView, ...]


@dataclass(frozen=True)
class LinkView:
    """A link, and the processes that hold it. All of it is modelled."""

    id: str
    pids: tuple[int, ...]
    clock: str
    full_duplex: bool
    read_bandwidth_gbps: float
    write_bandwidth_gbps: float
    latency_ns: float
    read_bytes: int
    write_bytes: int
    read_transfers: int
    write_transfers: int
    read_busy_ns: int
    write_busy_ns: int
    queued_ns: int


@dataclass(frozen=True)
class Sample:
    """The contexts and links at one moment."""

    time_ns: int
    contexts: tuple[ContextView, ...] = ()
    links: tuple[LinkView, ...] = ()


@dataclass
class _Found:
    """A memfd, and who holds it: (pid, descriptor) pairs."""

    name: str
    holders: list[tuple[int, int]] = field(default_factory=list)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(sorted({pid for pid, _ in self.holders}))


def sample(proc: Path = Path("/proc")) -> Sample:
    """Reads the contexts and links of this user's processes. Those that end meanwhile are left out."""
    contexts: list[ContextView] = []
    links: list[LinkView] = []
    for id, found in _find(proc).items():
        if found.name == CONTEXT_NAME:
            context = _read(proc, found, _ContextPage)
            if context is not None and (context.magic, context.version) == (_CONTEXT_MAGIC, _CONTEXT_VERSION):
                contexts.append(_context_view(proc, id, found, context))
        else:
            link = _read(proc, found, _LinkPage)
            if link is not None and (link.magic, link.version) == (_LINK_MAGIC, _LINK_VERSION):
                links.append(_link_view(id, found, link))
    return Sample(
        time.monotonic_ns(),
        tuple(sorted(contexts, key=lambda view: (view.pid, view.id))),
        tuple(sorted(links, key=lambda view: (view.pids, view.id))),
    )


def _find(proc: Path) -> dict[str, _Found]:
    """Finds files that may be contexts and links, by inode: a child, or whoever was passed a link, has the same."""
    found: dict[str, _Found] = {}
    for pid, descriptor, target in _descriptors(proc):
        try:
            status = os.stat(proc / str(pid) / "fd" / str(descriptor))
        except OSError:
            continue
        name = _kind(target, status)
        if name is not None:
            key = f"{status.st_dev}:{status.st_ino}"
            found.setdefault(key, _Found(name)).holders.append((pid, descriptor))
    return found


def _kind(target: str, status: os.stat_result) -> str | None:
    """Whether a descriptor may be a context's or a link's; what is in it tells for sure."""
    for name in (CONTEXT_NAME, LINK_NAME):
        if target == f"/memfd:{name} (deleted)":
            return name
    is_small_file = stat.S_ISREG(status.st_mode) and status.st_size == _LINK_FILE_BYTES
    return LINK_NAME if is_small_file and not target.startswith("/memfd:") else None


def _descriptors(proc: Path) -> Iterator[tuple[int, int, str]]:
    """(pid, descriptor, what it is) of every process that may be looked at."""
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        directory = proc / str(pid) / "fd"
        try:
            descriptors = os.listdir(directory)
        except OSError:  # another user's, or gone
            continue
        for descriptor in descriptors:
            try:
                yield pid, int(descriptor), os.readlink(directory / descriptor)
            except OSError:
                continue


Page = TypeVar("Page", _ContextPage, _LinkPage)


def _read(proc: Path, found: _Found, kind: type[Page]) -> Page | None:
    """The page behind the first holder that still has it."""
    for pid, descriptor in found.holders:
        try:
            with open(proc / str(pid) / "fd" / str(descriptor), "rb", buffering=0) as file:
                content = file.read(ctypes.sizeof(kind))
        except OSError:
            continue
        if len(content) == ctypes.sizeof(kind):
            return kind.from_buffer_copy(content)
    return None


def _context_view(proc: Path, id: str, found: _Found, page: _ContextPage) -> ContextView:
    pid = page.pid if page.pid in found.pids else found.pids[0]
    return ContextView(
        id=id,
        pid=pid,
        command=_command(proc, pid),
        name=page.name.decode(errors="replace"),
        clock="virtual" if page.clock else "real",
        tiers=tuple(_tier_view(tier) for tier in page.tiers[: min(page.num_tiers, _MAX_TIERS)]),
    )


def _tier_view(tier: _TierCounters) -> TierView:
    names = ("read_bytes", "write_bytes", "read_accesses", "write_accesses", "delayed_ns")
    return TierView(
        name=tier.name.decode(errors="replace"),
        provider=PROVIDERS[tier.provider] if tier.provider < len(PROVIDERS) else f"provider {tier.provider}",
        modelled=bool(tier.modelled),
        capacity_bytes=tier.capacity_bytes,
        allocated_bytes=tier.allocated_bytes,
        reserved_bytes=tier.reserved_bytes,
        num_allocations=tier.num_allocations,
        **{name: sum(getattr(shard, name) for shard in tier.shards) for name in names},
    )


def _link_view(id: str, found: _Found, page: _LinkPage) -> LinkView:
    lanes = page.lanes

    def both(name: str, direction: int) -> int:
        return sum(getattr(lane, name)[direction] for lane in lanes)

    return LinkView(
        id=id,
        pids=found.pids,
        clock={1: "real", 2: "virtual"}.get(page.clock, "unused"),
        full_duplex=bool(page.full_duplex),
        read_bandwidth_gbps=page.read_bandwidth_gbps,
        write_bandwidth_gbps=page.write_bandwidth_gbps,
        latency_ns=page.latency_ns,
        read_bytes=both("bytes", 0),
        write_bytes=both("bytes", 1),
        read_transfers=both("transfers", 0),
        write_transfers=both("transfers", 1),
        read_busy_ns=both("busy_ns", 0),
        write_busy_ns=both("busy_ns", 1),
        queued_ns=sum(lane.queued_ns for lane in lanes),
    )


def _command(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "(ended)"
