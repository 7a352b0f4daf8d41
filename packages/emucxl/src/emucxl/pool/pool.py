"""Pool: a pool as one process has it open, to look at it, to join it, and to take back what its dead hosts held.

    pool = Pool.create("demo", size_bytes=64 << 20)
    host = pool.join("trainer", lease_s=5.0)
    region = host.carve("weights", size_bytes=1 << 20, persistent=True)
    region.write(b"...")

Another process opens the pool by name, joins, and opens the region by its tag.

Thread safety: every object may be used from several threads. Closing one that another thread uses at that moment, or of
whose memory a view is alive, raises InUseError and changes nothing.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from emucxl import errors, native
from emucxl.arguments import natural, number, path_text, text_bytes
from emucxl.pool import abi as pool_abi
from emucxl.pool.cells import take_all
from emucxl.pool.hosts import Host
from emucxl.pool.objects import OpenPool
from emucxl.pool.patience import Patience
from emucxl.pool.records import (
    HostInfo,
    PoisonRange,
    PoolStats,
    ReclaimReport,
    RegionInfo,
    host_info,
    region_info,
)

if TYPE_CHECKING:
    from typing import Self

DEFAULT_EXTENT_BYTES = 2 << 20
_Structure = TypeVar("_Structure", bound=ctypes.Structure)


class Pool(OpenPool):
    """An open pool. Hosts that joined through it leave when it is closed; its file stays."""

    def __init__(self, path: Path, handle: int, read_only: bool) -> None:
        """Takes ownership of `handle`; use `create` or `open`."""
        super().__init__(path, handle)
        self.read_only = read_only

    @classmethod
    def create(
        cls,
        path_or_name: str | os.PathLike[str],
        size_bytes: int,
        *,
        extent_bytes: int = DEFAULT_EXTENT_BYTES,
        max_regions: int = 256,
    ) -> Self:
        """A new pool with `size_bytes` to hand out, rounded up to whole extents, in a file of mode 0600.

        `path_or_name` is a path if it has a "/", else the name of a pool in /dev/shm. Every page is reserved now.

        Raises:
            NameTakenError: there is such a file.
            SystemMemoryError: the filesystem, or the memory, has too little room.
            ArgumentError: bad sizes.
        """
        return cls._create(path_or_name, size_bytes, extent_bytes, max_regions, 0)

    @classmethod
    def format(
        cls,
        path: str | os.PathLike[str],
        size_bytes: int = 0,
        *,
        extent_bytes: int = DEFAULT_EXTENT_BYTES,
        max_regions: int = 256,
        overwrite: bool = False,
    ) -> Self:
        """A new pool in the dax device, or the file, that is at `path`; 0 bytes: all that fits.

        Raises:
            NameTakenError: it holds a pool, and `overwrite` is False.
            AccessDeniedError: a file of another user, or one that others may open.
        """
        flags = pool_abi.POOL_FORMAT | (pool_abi.POOL_OVERWRITE if overwrite else 0)
        return cls._create(path, size_bytes, extent_bytes, max_regions, flags)

    @classmethod
    def _create(
        cls,
        path_or_name: str | os.PathLike[str],
        size_bytes: int,
        extent_bytes: int,
        max_regions: int,
        flags: int,
    ) -> Self:
        config = pool_abi.PoolConfig(
            struct_bytes=ctypes.sizeof(pool_abi.PoolConfig),
            flags=flags,
            size_bytes=natural("size_bytes", size_bytes),
            extent_bytes=natural("extent_bytes", extent_bytes),
            max_regions=natural("max_regions", max_regions, 32),
        )
        path = pool_path(path_or_name)
        handle = ctypes.c_void_p()
        native.check(
            pool_abi.library().emx_pool_create(os.fsencode(path), ctypes.byref(config), ctypes.byref(handle))
        )
        return cls(path, handle.value or 0, read_only=False)

    @classmethod
    def open(cls, path_or_name: str | os.PathLike[str], *, read_only: bool = False) -> Self:
        """The pool at a path, or of a name.

        Args:
            read_only: for looking only; nobody can join through it.

        Raises:
            NotFoundError: there is no such file.
            AccessDeniedError: it is another user's, or others may open it.
            ForeignError, CorruptError: it is no pool of this version; it is damaged.
        """
        path = pool_path(path_or_name)
        handle = ctypes.c_void_p()
        flags = pool_abi.POOL_READ_ONLY if read_only else 0
        native.check(pool_abi.library().emx_pool_open(os.fsencode(path), flags, ctypes.byref(handle)))
        return cls(path, handle.value or 0, read_only)

    def join(
        self,
        name: str,
        *,
        lease_s: float = 5.0,
        quota_bytes: int | None = None,
        heartbeat: bool = True,
        fault_on_fence: bool = False,
    ) -> Host:
        """Joins as a host: others take it for dead once it is silent for `lease_s`, or its process is gone.

        Args:
            quota_bytes: how much it may own, in whole extents; None: as much as there is.
            heartbeat: a thread prolongs the lease; with False the caller does (`Host.heartbeat`).
            fault_on_fence: once fenced, touching a view of a region ends the process (SIGSEGV); otherwise views
                lead to zeroes that are nobody's.

        Raises:
            PoolFullError: all 64 host slots are taken.
        """
        flags = (0 if heartbeat else pool_abi.JOIN_NO_HEARTBEAT) | (
            pool_abi.JOIN_FAULT_ON_FENCE if fault_on_fence else 0
        )
        config = pool_abi.JoinConfig(
            struct_bytes=ctypes.sizeof(pool_abi.JoinConfig),
            flags=flags,
            lease_ns=max(1, natural("lease_s", _nanoseconds("lease_s", lease_s))),
            quota_bytes=0 if quota_bytes is None else max(1, natural("quota_bytes", quota_bytes)),
        )
        handle = ctypes.c_void_p()
        with self._cell as pool:
            native.check(
                pool_abi.library().emx_pool_join(
                    pool, text_bytes("name", name), ctypes.byref(config), ctypes.byref(handle)
                )
            )
            host = Host(self, name, handle.value or 0)
            self.hosts_here.append(host._cells)
            return host

    def stats(self) -> PoolStats:
        info = pool_abi.PoolInfo()
        with self._cell as pool:
            native.check(pool_abi.library().emx_pool_get_info(pool, ctypes.byref(info)))
        fields = {name: getattr(info, name) for name in PoolStats.__dataclass_fields__ if name != "uuid"}
        return PoolStats(uuid=info.uuid.decode(), **fields)

    def hosts(self) -> list[HostInfo]:
        """Every host that joined and has not been cleaned up after."""
        return [host_info(entry) for entry in self._list(pool_abi.RawHostInfo, "emx_pool_list_hosts")]

    def regions(self) -> list[RegionInfo]:
        return [region_info(entry) for entry in self._list(pool_abi.RegionEntry, "emx_pool_list_regions")]

    def poison_ranges(self) -> list[PoisonRange]:
        """All ranges that were ever reported bad, in lines of 64 bytes, retired extents included."""
        entries = self._list(pool_abi.RawPoisonRange, "emx_pool_list_poison")
        return [PoisonRange(entry.offset, entry.size_bytes) for entry in entries]

    def poison(self, offset: int, size_bytes: int) -> None:
        """Marks lines as bad, counted from the first extent, as a device reports them."""
        with self._cell as pool:
            native.check(
                pool_abi.library().emx_pool_poison(
                    pool, natural("offset", offset), natural("size_bytes", size_bytes)
                )
            )

    def reclaim(self, *, kill: bool = False, wait: bool = False) -> ReclaimReport:
        """Fences hosts that are gone or silent, and finishes or undoes what hosts left half-done.

        Args:
            kill: sends SIGKILL to processes of this machine whose hosts are fenced but hold on to memory.
            wait: waits until it is clear which of the hosts live that cannot be looked at (another machine's, or from
                before a restart): a lease to fence a silent one, another to free what it held. Without it, the
                silence that this object has seen in earlier calls counts.
        """
        total, patience = self._reclaim(kill), Patience()
        while wait and (silent := patience.waits_for(self.hosts(), time.monotonic())):
            time.sleep(min([0.1, *(host.lease_s / 4 for host in silent)]))
            total = total.followed_by(self._reclaim(kill))
        return total

    def _reclaim(self, kill: bool) -> ReclaimReport:
        report = pool_abi.RawReclaimReport()
        flags = pool_abi.RECLAIM_KILL if kill else 0
        with self._cell as pool:
            native.check(pool_abi.library().emx_pool_reclaim(pool, flags, ctypes.byref(report)))
        return ReclaimReport(**{name: getattr(report, name) for name in ReclaimReport.__dataclass_fields__})

    def check(self) -> None:
        """Verifies every invariant of the pool's tables; it may be in use meanwhile.

        Raises:
            CorruptError: one does not hold; the message names it.
        """
        with self._cell as pool:
            native.check(pool_abi.library().emx_pool_check(pool))

    def close(self) -> None:
        """Hosts that joined through it leave. A second call does nothing.

        Raises:
            InUseError: a view of a region is alive, or another thread is inside a call; the pool stays as it is.
        """
        cells = [cell for host in self.hosts_here for cell in host.all()]
        handle = take_all(cells, self._cell)
        if handle is not None:
            pool_abi.library().emx_pool_close(handle)

    def _list(self, kind: type[_Structure], call: str) -> list[_Structure]:
        function = getattr(pool_abi.library(), call)
        count = ctypes.c_uint32()
        with self._cell as pool:
            native.check(function(pool, None, 0, ctypes.byref(count)))
            while True:
                capacity = count.value + 8
                entries = (kind * capacity)()
                native.check(function(pool, entries, capacity, ctypes.byref(count)))
                if count.value <= capacity:
                    return list(entries[: count.value])

    def __repr__(self) -> str:
        return f"<Pool {self.path}{', closed' if self.closed else ''}>"


def _nanoseconds(name: str, seconds: float) -> int:
    if number(name, seconds) in (float("inf"), -float("inf")):
        raise errors.ArgumentError(f"got {name}={seconds}; expected a finite number")
    return round(seconds * 1e9)


def pool_path(path_or_name: str | os.PathLike[str]) -> Path:
    """Where a pool lies: a path is itself, a name means a file in /dev/shm."""
    text = path_text("path or name of a pool", path_or_name)
    return Path(text) if "/" in text else Path(pool_abi.DIRECTORY) / f"{pool_abi.PREFIX}{text}"


def named_pools() -> list[str]:
    """The names of the pools in /dev/shm, whether or not this user may open them."""
    return sorted(
        path.name.removeprefix(pool_abi.PREFIX)
        for path in Path(pool_abi.DIRECTORY).glob(f"{pool_abi.PREFIX}*")
    )
