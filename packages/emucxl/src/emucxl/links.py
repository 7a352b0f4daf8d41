"""Links: bandwidth that tiers, threads and processes share. Whatever a link tells is *modelled*.

A link lies in shared memory, so that all who use it wait for each other. Hand its `fd` to a child (`pass_fds`), which
`attach`es to it; or name a file that unrelated processes `open`.

A link follows one kind of clock, that of the first tier on it. Among contexts with virtual clocks each has its own
time, and whoever calls later queues behind what was there: use a fresh link for each simulation.

Thread safety: every call may run in any number of threads, except `close`, which must be the last.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emucxl import abi, native
from emucxl.arguments import instance, natural, path_text
from emucxl.closing import Closing
from emucxl.errors import ArgumentError, ClosedError
from emucxl.timing import MOST_LATENCY_NS, check_bandwidth, check_number

if TYPE_CHECKING:
    from typing import Self

Direction = Literal["read", "write"]
_DIRECTIONS: dict[str, int] = {"read": abi.READ, "write": abi.WRITE}


@dataclass(frozen=True)
class LinkConfig:
    """The bandwidths and the latency of a link. Without `write_bandwidth_gbps`, writes have the bandwidth of reads."""

    read_bandwidth_gbps: float
    write_bandwidth_gbps: float | None = None
    latency_ns: float = 0.0
    """Added to every transfer."""
    full_duplex: bool = True
    """Reads and writes queue apart, as on PCIe; False: they share one queue."""

    def __post_init__(self) -> None:
        if self.write_bandwidth_gbps is None:
            object.__setattr__(self, "write_bandwidth_gbps", self.read_bandwidth_gbps)
        check_bandwidth("read_bandwidth_gbps", self.read_bandwidth_gbps)
        check_bandwidth("write_bandwidth_gbps", self.write_bandwidth_gbps or 0)
        check_number("latency_ns", self.latency_ns, 0, MOST_LATENCY_NS)

    def to_abi(self) -> abi.RawLinkConfig:
        return abi.RawLinkConfig(
            full_duplex=int(self.full_duplex),
            read_bandwidth_gbps=self.read_bandwidth_gbps,
            write_bandwidth_gbps=self.write_bandwidth_gbps,
            latency_ns=self.latency_ns,
        )


@dataclass(frozen=True)
class LinkStats:
    """Counts of a link's traffic, of all its users together. Times are modelled."""

    read_bytes: int
    write_bytes: int
    read_transfers: int
    write_transfers: int
    read_busy_ns: int
    """Time that the queue was occupied, or is reserved."""
    write_busy_ns: int
    queued_ns: int
    """Time that transfers waited for others."""
    read_utilisation: float
    """Of the last 100 to 200 microseconds, 0 to 1."""
    write_utilisation: float


class Link(Closing):
    """A shared link; `create`, `attach` or `open` one."""

    def __init__(self, handle: int) -> None:
        """Takes over a native link."""
        self._library = abi.load()
        self._handle: int | None = handle
        raw = abi.RawLinkConfig()
        native.check(self._library.emx_link_get_config(handle, ctypes.byref(raw)))
        self._config = LinkConfig(
            raw.read_bandwidth_gbps, raw.write_bandwidth_gbps, raw.latency_ns, bool(raw.full_duplex)
        )

    @classmethod
    def create(
        cls,
        read_bandwidth_gbps: float,
        write_bandwidth_gbps: float | None = None,
        latency_ns: float = 0.0,
        full_duplex: bool = True,
    ) -> Self:
        """A link of this process and of those that get its `fd`; it goes with its last user.

        Raises:
            ArgumentError: a figure is out of its range.
        """
        config = LinkConfig(read_bandwidth_gbps, write_bandwidth_gbps, latency_ns, full_duplex)
        handle, raw = ctypes.c_void_p(), config.to_abi()
        native.check(abi.load().emx_link_create(ctypes.byref(raw), ctypes.byref(handle)))
        return cls(handle.value or 0)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """The link behind a descriptor that another process passed on, which stays the caller's.

        Raises:
            ForeignError, CorruptError: it is no link, or a damaged one.
            ArgumentError: there is no such descriptor.
        """
        handle = ctypes.c_void_p()
        native.check(abi.load().emx_link_attach(natural("fd", fd, 31), ctypes.byref(handle)))
        return cls(handle.value or 0)

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: LinkConfig | None = None) -> Self:
        """The link in the file at `path`, made with `config` if there is none.

        Raises:
            NotFoundError: there is none, and no config to make it with.
            NameTakenError: there is one, of another config.
            AccessDeniedError: the file is another user's, or open to others.
            ForeignError, CorruptError: it is no link, or a damaged one.
        """
        handle = ctypes.c_void_p()
        instance("config", config, LinkConfig | None, "a LinkConfig")
        raw = ctypes.byref(config.to_abi()) if config is not None else None
        native.check(
            abi.load().emx_link_open(os.fsencode(path_text("path", path)), raw, ctypes.byref(handle))
        )
        return cls(handle.value or 0)

    @property
    def handle(self) -> int:
        """The native link.

        Raises:
            ClosedError: the link is closed.
        """
        if self._handle is None:
            raise ClosedError("the link is closed")
        return self._handle

    @property
    def config(self) -> LinkConfig:
        return self._config

    @property
    def fd(self) -> int:
        """The descriptor, owned by the link, to be passed to other processes (pass_fds)."""
        fd: int = self._library.emx_link_fd(self.handle)
        return fd

    @property
    def closed(self) -> bool:
        return self._handle is None

    def stats(self) -> LinkStats:
        """Counts of the traffic so far."""
        raw = abi.RawLinkStats()
        native.check(self._library.emx_link_get_stats(self.handle, ctypes.byref(raw)))
        return LinkStats(*(getattr(raw, name) for name, _ in abi.RawLinkStats._fields_))

    def reserve(self, direction: Direction, size_bytes: int, now_ns: int) -> int:
        """Queues bytes that arrive at `now_ns`; returns when the last of them has passed. Does not wait, and adds no
        latency."""
        if not isinstance(direction, str) or direction not in _DIRECTIONS:
            raise ArgumentError(f"got the direction {direction!r}; expected 'read' or 'write'")
        size_bytes, now_ns = natural("size_bytes", size_bytes, 63), natural("now_ns", now_ns, 63)
        release_ns = ctypes.c_uint64()
        native.check(
            self._library.emx_link_reserve(
                self.handle, _DIRECTIONS[direction], size_bytes, now_ns, ctypes.byref(release_ns)
            )
        )
        return release_ns.value

    def close(self) -> None:
        """Lets go of the link; tiers that use it keep it. A second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.emx_link_close(handle)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "full duplex" if self._config.full_duplex else "half duplex"
        config = self._config
        return f"<Link of {config.read_bandwidth_gbps:g} and {config.write_bandwidth_gbps:g} GB/s, modelled, {state}>"
