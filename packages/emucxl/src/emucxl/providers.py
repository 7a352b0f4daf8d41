"""Providers: where a tier's pages come from. Each is a small description, checked when a tier is added with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, Protocol

from emucxl import abi
from emucxl.arguments import instance, path_text
from emucxl.errors import ArgumentError, ArgumentTypeError


class Borrowed(Protocol):
    """Keeps what it was borrowed from open until its `end`."""

    def end(self) -> None: ...


class HeldRegion(Protocol):
    """The part of `emucxl.pool.Region` that a tier uses."""

    @property
    def handle(self) -> int | None: ...

    def borrow(self) -> Borrowed: ...


@dataclass(frozen=True)
class Provider:
    """Base of the providers."""

    kind: ClassVar[int]
    """Its number in the native core (emx_provider)."""

    def unavailable_reason(self) -> str | None:
        """Why it cannot be used here, or None if it can."""
        reason: bytes | None = abi.load().emx_provider_unavailable(self.kind)
        return reason.decode() if reason is not None else None

    def configure(self, config: abi.TierConfig) -> None:
        """Fills in its part of a tier's configuration."""
        config.provider = self.kind

    def borrow(self) -> Borrowed | None:
        """Returns the object that has to stay open as long as the tier, if there is one."""
        return None


@dataclass(frozen=True)
class Anon(Provider):
    """This process's own memory."""

    kind: ClassVar[int] = abi.PROVIDER_ANON


@dataclass(frozen=True)
class Shm(Provider):
    """Memory that other processes can map: a memfd, the file at `path` (made if missing), or what is behind `fd`."""

    path: str | os.PathLike[str] | None = None
    fd: int | None = None
    """Stays the caller's."""

    kind: ClassVar[int] = abi.PROVIDER_SHM

    def __post_init__(self) -> None:
        if self.path is not None and self.fd is not None:
            raise ArgumentError(f"got path {self.path!r} and fd {self.fd}; expected one of them, or neither")
        if self.path is not None:
            path_text("path", self.path)
        if self.fd is not None:
            instance("fd", self.fd, int, "an open descriptor")
        if self.fd is not None and not 0 <= self.fd < 1 << 31:
            raise ArgumentError(f"got fd {self.fd}; expected an open descriptor, or None for a new memfd")

    def configure(self, config: abi.TierConfig) -> None:
        super().configure(config)
        if self.path is not None:
            config.path = os.fsencode(self.path)
        if self.fd is not None:
            config.fd = self.fd


@dataclass(frozen=True)
class Numa(Provider):
    """Memory of one NUMA node; where it really is is asked of the kernel."""

    node: int

    kind: ClassVar[int] = abi.PROVIDER_NUMA

    def configure(self, config: abi.TierConfig) -> None:
        super().configure(config)
        instance("node", self.node, int, "the number of a NUMA node")
        config.numa_node = max(-1, min(self.node, (1 << 31) - 1))


@dataclass(frozen=True)
class Dax(Provider):
    """The device at `path` (/dev/daxX.Y), or an ordinary file that stands in for it."""

    path: str | os.PathLike[str]

    kind: ClassVar[int] = abi.PROVIDER_DAX

    def configure(self, config: abi.TierConfig) -> None:
        super().configure(config)
        config.path = os.fsencode(path_text("path", self.path))


@dataclass(frozen=True)
class Null(Provider):
    """Addresses without memory: allocates and prices anything, reads as zero, forgets what is written."""

    kind: ClassVar[int] = abi.PROVIDER_NULL


@dataclass(frozen=True)
class RegionMemory(Provider):
    """A region of a pool. It cannot be closed as long as the tier's context is open."""

    region: HeldRegion

    kind: ClassVar[int] = abi.PROVIDER_REGION

    def configure(self, config: abi.TierConfig) -> None:
        super().configure(config)
        config.region = self.region.handle

    def borrow(self) -> Borrowed:
        if not hasattr(self.region, "borrow"):
            raise ArgumentTypeError(f"got the region {self.region!r}; expected a Region of a pool")
        return self.region.borrow()
