"""Shared segments: memory that several processes map, with no name and no owner to outlive them.

A segment is a memfd: nothing appears in /dev/shm, and the kernel frees it with the last process that maps it or
holds its descriptor, however that process ends.

Thread safety: a `SharedSegment` may be used from several threads; close it once they are done. What is in the
memory is for its users to order.

Invariants:
  1. Every page of an open segment exists: they are reserved at creation, so touching one never raises SIGBUS.
  2. `fd`, `address` and `buffer` are valid until `close`, which refuses while a view of the memory is alive.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING

from emucxl import resources
from emucxl.arguments import instance
from emucxl.closing import WithBlock
from emucxl.errors import SegmentError

if TYPE_CHECKING:
    from typing import Self

_MAX_NAME_BYTES = 249  # of memfd_create, without the terminator


class SharedSegment(WithBlock):
    """`size_bytes` of zero-filled memory, mapped here and in every process that `attach`es to it."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Takes ownership of `fd`; use `create` or `attach`."""
        self._fd = fd
        self._size_bytes = size_bytes
        try:
            self._mapping = mmap.mmap(fd, size_bytes)
        except (OSError, ValueError, OverflowError) as error:
            os.close(fd)
            raise SegmentError(f"cannot map {size_bytes:,} bytes: {error}") from error
        self._view = memoryview(self._mapping)
        self._closed = False

    @classmethod
    def create(cls, name: str, size_bytes: int) -> Self:
        """A new segment. `name` is shown in /proc/*/maps and means nothing else: it need not be unique.

        Raises:
            SegmentError: bad arguments, or the system cannot give that much memory.
        """
        _check_size(size_bytes)
        fd = empty_segment_fd(name)
        try:
            return cls.fill(fd, size_bytes)
        finally:
            os.close(fd)

    @classmethod
    def fill(cls, fd: int, size_bytes: int) -> Self:
        """Gives the empty segment behind `fd` (see `empty_segment_fd`) its size and its pages, and maps it.

        `fd` stays the caller's. Other holders of it may `attach` afterwards.

        Raises:
            SegmentError: `fd` is not an empty segment, or the system cannot give that much memory.
        """
        _check_size(size_bytes)
        _check_available(size_bytes)
        try:
            if os.fstat(fd).st_size != 0:
                raise SegmentError(
                    f"got fd {fd} of {os.fstat(fd).st_size:,} bytes; expected an empty segment"
                )
            own = os.dup(fd)
        except OSError as error:
            raise SegmentError(f"got fd {fd}: {error}; expected an empty segment") from error
        try:
            os.ftruncate(own, size_bytes)
            os.posix_fallocate(own, 0, size_bytes)
        except OSError as error:
            os.close(own)
            raise SegmentError(
                _explain(error, f"cannot reserve {size_bytes:,} bytes of shared memory")
            ) from error
        return cls(own, size_bytes)

    @classmethod
    def attach(cls, fd: int, size_bytes: int) -> Self:
        """The segment behind `fd`, which another process created (hand it on with `subprocess`'s pass_fds).

        `fd` stays the caller's: the segment keeps a duplicate.

        Raises:
            SegmentError: `fd` is not a segment of `size_bytes`.
        """
        _check_size(size_bytes)
        try:
            actual_bytes = os.fstat(fd).st_size
            own = os.dup(fd)
        except (OSError, OverflowError, TypeError) as error:
            raise SegmentError(
                f"got fd {fd}: {error}; expected the descriptor of a segment, passed on to this process (pass_fds)"
            ) from error
        if actual_bytes != size_bytes:
            os.close(own)
            raise SegmentError(f"got fd {fd} of {actual_bytes:,} bytes; expected a segment of {size_bytes:,}")
        return cls(own, size_bytes)

    @property
    def fd(self) -> int:
        """The descriptor, owned by the segment, to be passed to other processes (pass_fds)."""
        self._check_open()
        return self._fd

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def buffer(self) -> memoryview:
        """The memory as writable bytes, without a copy. Release views of it before `close`."""
        self._check_open()
        return self._view[:]

    @property
    def address(self) -> int:
        """Where the memory is mapped in this process: page aligned, valid until `close`."""
        self._check_open()
        return ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Unmaps the memory and closes the descriptor; a second call does nothing.

        Raises:
            SegmentError: a view of the memory is still alive; the segment stays open.
        """
        if self._closed:
            return
        self._view.release()
        try:
            self._mapping.close()
        except BufferError as error:
            self._view = memoryview(self._mapping)
            raise SegmentError(
                f"a segment of {self._size_bytes:,} bytes cannot be closed while a view of it is in use; "
                "release the views (and what was made of them) first"
            ) from error
        self._closed = True
        os.close(self._fd)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd {self._fd}"
        return f"<SharedSegment of {self._size_bytes:,} bytes, {state}>"

    def _check_open(self) -> None:
        if self._closed:
            raise SegmentError("the segment is closed")


def empty_segment_fd(name: str) -> int:
    """The descriptor of a segment without bytes, to be handed on before its size is known. The caller's to close.

    Raises:
        SegmentError: a bad name, or the system has no memfd.
    """
    instance("name", name, str, "text")
    if not name or "\0" in name or len(name.encode(errors="surrogatepass")) > _MAX_NAME_BYTES:
        raise SegmentError(f"got the name {name!r}; expected 1 to {_MAX_NAME_BYTES} bytes without NUL")
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except UnicodeEncodeError:
        raise SegmentError(f"got the name {name!r}; expected text without surrogates") from None
    except OSError as error:
        raise SegmentError(_explain(error, f"cannot create the segment {name!r}")) from error


def unavailable_reason() -> str | None:
    """Why segments cannot be had on this system, or None."""
    if not hasattr(os, "memfd_create"):
        return "this system has no memfd_create (Linux 3.17 or newer is needed)"
    try:
        SharedSegment.create("probe", mmap.PAGESIZE).close()
    except SegmentError as error:
        return str(error)
    return None


def _check_size(size_bytes: int) -> None:
    instance("size_bytes", size_bytes, int, "an integer")
    if size_bytes < 1:
        raise SegmentError(f"got size_bytes={size_bytes}; expected at least 1")


def _check_available(size_bytes: int) -> None:
    """Refuses what would not fit: the kernel reserves page by page, and out of memory it would kill, not refuse."""
    available_bytes = resources.available_bytes()
    if available_bytes is not None and size_bytes > available_bytes:
        raise SegmentError(
            f"got size_bytes={size_bytes:,}; expected at most the {available_bytes:,} bytes of memory that are "
            f"available ({os.strerror(errno.ENOMEM)})"
        )


def _explain(error: OSError, what: str) -> str:
    name = errno.errorcode.get(error.errno or 0, "?")
    return f"{what}: {error.strerror} ({name}); ask for less, or free memory"
