"""Hosts of a pool, and the regions they hold."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emucxl import errors, native
from emucxl.arguments import contents, member, natural, text_bytes
from emucxl.pool import abi as pool_abi
from emucxl.pool.cells import Cell, Use, take_all
from emucxl.pool.objects import HostCells, OpenPool, PoolObject
from emucxl.pool.records import HostInfo, Sharing, host_info

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # from Python 3.12 on


class Host(PoolObject):
    """This process (or a part of it) as a host of a pool, until it leaves or is fenced."""

    def __init__(self, pool: OpenPool, name: str, handle: int) -> None:
        """Takes ownership of `handle`; use `Pool.join`."""
        self.pool = pool
        self.name = name
        self._cell = Cell(f"the host {name!r}", handle)
        self._cells = HostCells(self._cell)

    def carve(
        self,
        tag: str,
        size_bytes: int,
        *,
        persistent: bool = False,
        sharing: Sharing = Sharing.WRITE,
        max_bytes: int | None = None,
    ) -> Region:
        """A new region of `size_bytes` zeroed bytes, which this host owns.

        Args:
            tag: that no other live region of the pool has.
            persistent: it outlives its holders, until somebody releases it.
            sharing: what other hosts may open it for.
            max_bytes: to which it can grow (addresses are set aside for that); None: the pool's size, at most 64 GiB.

        Raises:
            NameTakenError, PoolFullError, QuotaError, FencedError
        """
        config = pool_abi.CarveConfig(
            struct_bytes=ctypes.sizeof(pool_abi.CarveConfig),
            flags=pool_abi.CARVE_PERSISTENT if persistent else 0,
            sharing=int(member("sharing", sharing, Sharing)),
            max_bytes=0 if max_bytes is None else natural("max_bytes", max_bytes),
        )
        size_bytes = natural("size_bytes", size_bytes)
        return self._region(
            tag,
            lambda host, text, out: pool_abi.library().emx_host_carve(
                host, text, size_bytes, ctypes.byref(config), out
            ),
        )

    def open(self, tag: str, *, writable: bool = False) -> Region:
        """The live region of that tag. Opened to write, one without an owner becomes this host's.

        Raises:
            NotFoundError, NameTakenError (it is open here already), AccessDeniedError, QuotaError, FencedError
        """
        return self._region(
            tag, lambda host, text, out: pool_abi.library().emx_host_open(host, text, writable, out)
        )

    def _region(self, tag: str, call: Callable[[int, bytes, Any], int]) -> Region:
        handle = ctypes.c_void_p()
        with self._cell as host:
            native.check(call(host, text_bytes("tag", tag), ctypes.byref(handle)))
            region = Region(self, tag, handle.value or 0)
            self._cells.regions.append(region._cell)
            return region

    def heartbeat(self) -> None:
        """Prolongs the lease.

        Raises:
            FencedError: it ran out before. What the host held is unmapped by now; leave, and join again.
        """
        with self._cell as host:
            native.check(pool_abi.library().emx_host_heartbeat(host))

    def info(self) -> HostInfo:
        """The pool's record of this host.

        Raises:
            FencedError: it is one no longer.
        """
        entry = pool_abi.RawHostInfo()
        with self._cell as host:
            native.check(pool_abi.library().emx_host_get_info(host, ctypes.byref(entry)))
        return host_info(entry)

    def leave(self) -> None:
        """Closes its regions and frees its slot; a second call does nothing.

        Raises:
            InUseError: a view of a region is alive, or another thread is inside a call; nothing has changed.
        """
        handle = take_all(self._cells.all()[:-1], self._cell)
        if handle is not None:
            if self._cells in self.pool.hosts_here:
                self.pool.hosts_here.remove(self._cells)
            pool_abi.library().emx_host_leave(handle)

    close = leave

    def __repr__(self) -> str:
        return f"<Host {self.name!r} of {self.pool.path}{', left' if self.closed else ''}>"


class Region(PoolObject):
    """A region of a pool, mapped here contiguously; its address stays as long as it is open."""

    def __init__(self, host: Host, tag: str, handle: int) -> None:
        """Takes ownership of `handle`; use `Host.carve` or `Host.open`."""
        self.host = host
        self.tag = tag
        self._cell = Cell(f"the region {tag!r}", handle)
        info = self._info()
        self._writable = bool(info.writable)

    def _info(self) -> pool_abi.RawRegionInfo:
        info = pool_abi.RawRegionInfo()
        with self._cell as region:
            native.check(pool_abi.library().emx_region_get_info(region, ctypes.byref(info)))
        return info

    @property
    def handle(self) -> int:
        """The core's emx_region, for calls that take one. Whoever keeps it keeps a `borrow()` too."""
        with self._cell as region:
            return region

    def borrow(self) -> Use:
        """Keeps the region open until the object that this gives is collected, or its `end()` is called."""
        return Use(self._cell, self)

    @property
    def size_bytes(self) -> int:
        """Its size now: it changes when its owner, here or elsewhere, resizes it.

        Raises:
            FencedError: this host's lease ran out.
        """
        return int(self._info().size_bytes)

    @property
    def address(self) -> int:
        return int(self._info().base)

    @property
    def epoch(self) -> int:
        """The epoch of the host that holds it here."""
        return int(self._info().epoch)

    @property
    def writable(self) -> bool:
        return self._writable

    def __len__(self) -> int:
        return self.size_bytes

    def read(self, size: int | None = None, offset: int = 0) -> bytes:
        """`size` bytes from `offset` on; None: to the end.

        Raises:
            OutOfBoundsError, PoisonedError, FencedError
        """
        offset = natural("offset", offset)
        size = max(0, self.size_bytes - offset) if size is None else natural("size", size)
        self.check_access(offset, size)  # before memory is set aside for a size that makes no sense
        target = bytearray(size)
        with self._cell as region:
            native.check(
                pool_abi.library().emx_region_read(
                    region, offset, (ctypes.c_char * size).from_buffer(target), size
                )
            )
        return bytes(target)

    def write(self, data: Buffer, offset: int = 0) -> None:
        """Writes the bytes of `data`, which is contiguous, from `offset` on.

        Raises:
            OutOfBoundsError, PoisonedError, AccessDeniedError (opened read-only), FencedError
        """
        source = contents(data)
        with self._cell as region:
            native.check(
                pool_abi.library().emx_region_write(region, natural("offset", offset), source, len(source))
            )

    def fill(self, value: int, offset: int = 0, size: int | None = None) -> None:
        """Sets `size` bytes (None: to the end) to `value`."""
        value = natural("value", value, 8)
        offset = natural("offset", offset)
        size = max(0, self.size_bytes - offset) if size is None else natural("size", size)
        with self._cell as region:
            native.check(pool_abi.library().emx_region_fill(region, offset, value, size))

    def check_access(self, offset: int, size_bytes: int, *, write: bool = False) -> None:
        """Raises what a read (or write) of that range would raise now."""
        with self._cell as region:
            native.check(
                pool_abi.library().emx_region_check_access(
                    region, natural("offset", offset), natural("size_bytes", size_bytes), write
                )
            )

    def memoryview(self) -> memoryview:
        """The region's bytes without a copy, writable if it was opened so.

        The region, its host and its pool stay open while the view, or anything made of it, is alive. Loads and stores
        through it are not checked: once the host is fenced it shows zeroes that are nobody's, and what is stored is
        lost. In a child of fork() it must not be touched.
        """
        info = self._info()
        use = self.borrow()
        # A subclass, so that it can keep `use`.
        kind: Any = type("RegionBytes", (ctypes.c_ubyte * info.size_bytes,), {})
        array = kind.from_address(info.base)
        array.use = use
        view = memoryview(array).cast("B")
        return view if self._writable else view.toreadonly()

    def resize(self, size_bytes: int) -> None:
        """Grows (new bytes are zero, the address stays) or shrinks. Only the owner may.

        Raises:
            InUseError: shrinking while another host has it open, or a view of it is alive here.
            PoolFullError, QuotaError, AccessDeniedError, FencedError
            ArgumentError: more than it was carved with room for.
        """
        size_bytes = natural("size_bytes", size_bytes)
        if size_bytes < self.size_bytes and self._cell._num_users:
            raise errors.InUseError(
                f"the region {self.tag!r} cannot shrink while a view, a tier or a thread uses it"
            )
        with self._cell as region:
            native.check(pool_abi.library().emx_region_resize(region, size_bytes))

    grow = resize

    def poison(self, offset: int, size_bytes: int) -> None:
        """Marks the 64-byte lines of a range as bad; their extents are retired when the region lets them go."""
        with self._cell as region:
            native.check(
                pool_abi.library().emx_region_poison(
                    region, natural("offset", offset), natural("size_bytes", size_bytes)
                )
            )

    def close(self) -> None:
        """Lets go: the last holder's letting go frees it, unless it is persistent. A second call does nothing.

        Raises:
            InUseError: a view of it is alive, or another thread is inside a call; it stays open.
        """
        handle = self._cell.take()
        if handle is not None:
            pool_abi.library().emx_region_close(handle)

    def release(self) -> None:
        """Lets go of it for good: a persistent region is one no longer, and is freed when the last holder lets go.

        Raises:
            InUseError, AccessDeniedError (opened read-only), FencedError, ClosedError
        """
        handle = self._cell.take()
        if handle is None:
            raise errors.ClosedError(f"the region {self.tag!r} is closed")
        status = pool_abi.library().emx_region_release(handle)
        if status:
            self._cell.put_back(handle)
            native.check(status)

    def __repr__(self) -> str:
        return f"<Region {self.tag!r} of {self.host.pool.path}{', closed' if self.closed else ''}>"
