"""The coherence model: what a host sees of bytes that another host wrote.

A `Cache` stands between one host (a process, or a part of one) and memory that it shares with others. Under
`Coherence.SOFTWARE` what a host wrote stays in its cache until it flushes, and what it read is read again, however old,
until it invalidates: a program that lacks a flush or an invalidate fails here, on any machine, every time.

Only accesses through the cache are modelled; a view of the memory itself sees the memory. With a context, they also
take the time that the model says (or its virtual clock moves on by it).

Thread safety: every call may run in any number of threads, except `close`, which must be the last.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char, c_double, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache as once
from typing import TYPE_CHECKING, Any

from emucxl import abi, native
from emucxl.arguments import contents, instance, member, natural, number
from emucxl.closing import Closing
from emucxl.errors import ArgumentError, ArgumentTypeError, ClosedError

if TYPE_CHECKING:
    from emucxl.context import Context
    from emucxl.links import Link
    from emucxl.presets import Preset
    from emucxl.timing import Timing

LINE_BYTES = 64


class Coherence(IntEnum):
    """Who keeps the hosts' caches coherent."""

    HARDWARE = 0
    """The hardware: every access sees the newest bytes; flushes and invalidates do nothing."""
    SOFTWARE = 1
    """The program: it flushes what it wrote and invalidates what it is about to read."""
    UNCACHED = 2
    """Nobody needs to: every access goes to the memory, and pays for it."""


@dataclass(frozen=True)
class CacheStats:
    """Counts of a cache's accesses. Times are modelled."""

    reads: int
    """Accesses, uncached ones included."""
    writes: int
    hits: int
    """Lines that an access found in the cache."""
    misses: int
    """Lines that an access had to fetch, or to take over."""
    evictions: int
    fetched_bytes: int
    written_back_bytes: int
    """By flushes, evictions and uncached writes."""
    dropped_bytes: int
    """Written by this host, and lost by an invalidate before any flush."""
    stale_reads: int
    """Reads that returned a byte which the memory no longer held (`detect_stale`)."""
    stale_bytes: int
    lines: int
    """Held now."""
    dirty_bytes: int
    """Written by this host and not yet in the memory."""
    delayed_ns: int


class _CacheConfig(abi.SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("mode", c_uint32),
        ("base", c_void_p),
        ("size_bytes", c_uint64),
        ("region", c_void_p),
        ("capacity_bytes", c_uint64),
        ("seed", c_uint64),
        ("detect_stale", c_uint32),
        ("whole_line_writes", c_uint32),
        ("context", c_void_p),
        ("link", c_void_p),
        ("hit_latency_ns", c_double),
        ("timing", abi.RawTiming),
    )


class _Stats(ctypes.Structure):
    _fields_ = tuple((name, c_uint64) for name in CacheStats.__dataclass_fields__)


@once
def _library() -> ctypes.CDLL:
    library = native.load()
    ranged = (c_int, [c_void_p, c_uint64, c_uint64])
    native.declare(
        library,
        {
            "emx_cache_open": (c_int, [POINTER(_CacheConfig), POINTER(c_void_p)]),
            "emx_cache_close": (None, [c_void_p]),
            "emx_cache_read": (c_int, [c_void_p, c_uint64, c_void_p, c_size_t]),
            "emx_cache_write": (c_int, [c_void_p, c_uint64, c_void_p, c_size_t]),
            "emx_cache_flush": ranged,
            "emx_cache_invalidate": ranged,
            "emx_cache_flush_invalidate": ranged,
            "emx_cache_fence": (None, [c_void_p]),
            "emx_cache_load_u64": (c_int, [c_void_p, c_uint64, POINTER(c_uint64)]),
            "emx_cache_store_u64": (c_int, [c_void_p, c_uint64, c_uint64]),
            "emx_cache_get_stats": (c_int, [c_void_p, POINTER(_Stats)]),
        },
    )
    return library


class Cache(Closing):
    """One host's cache before `memory`, which is shared with other hosts.

    Args:
        memory: a `SharedSegment`, a pool's `Region`, or any writable contiguous buffer that begins at a multiple of 64
            (an `emucxl.Buffer`, a NumPy array). It cannot be closed, freed or shrunk before the cache is closed. Of a
            region, every access asks whether this host may: FencedError, PoisonedError, AccessDeniedError.
        mode: who keeps the caches coherent.
        capacity_bytes: of the cache, in whole lines; 0: unlimited, nothing is ever evicted.
        seed: decides which lines are evicted.
        detect_stale: count the bytes that reads took from the cache and the memory no longer held.
        whole_line_writes: a write makes all of its line dirty, as in a processor, so that two hosts that write to one
            line overwrite each other's bytes. Without it, only the bytes that were written are written back.

        context: what the accesses cost (modelled) is charged to its clock; it cannot be closed before the cache.
        timing: of the memory: what a line costs that is fetched or written back, and an uncached access.
        link: that this traffic queues on.
        hit_latency_ns: of an access that finds all its lines.

    Raises:
        ArgumentError: an argument makes no sense.
        TooFastError: this machine is slower than `timing`.
        UnavailableError: the native core cannot be loaded.
    """

    def __init__(
        self,
        memory: Any,
        mode: Coherence = Coherence.SOFTWARE,
        *,
        capacity_bytes: int = 0,
        seed: int = 0,
        detect_stale: bool = False,
        whole_line_writes: bool = False,
        context: Context | None = None,
        timing: Timing | Preset | str | None = None,
        link: Link | None = None,
        hit_latency_ns: float = 0.0,
    ) -> None:
        self._handle: c_void_p | None = None
        self._context: Context | None = None
        self._library = _library()
        self._mode = member("mode", mode, Coherence)
        self._range = _Range(memory)
        try:
            config = _CacheConfig(
                mode=self._mode,
                base=self._range.address,
                size_bytes=self._range.size_bytes,
                region=self._range.region,
                capacity_bytes=natural("capacity_bytes", capacity_bytes),
                seed=natural("seed", seed),
                detect_stale=detect_stale,
                whole_line_writes=whole_line_writes,
                hit_latency_ns=number("hit_latency_ns", hit_latency_ns),
            )
            self._price(config, context, timing, link)
            handle = c_void_p()
            native.check(self._library.emx_cache_open(byref(config), byref(handle)))
        except BaseException:
            self._release()
            raise
        self._handle = handle

    @property
    def mode(self) -> Coherence:
        return self._mode

    @property
    def size_bytes(self) -> int:
        """The size of the memory that the cache stands before."""
        return self._range.size_bytes

    def read(self, size: int | None = None, offset: int = 0) -> bytes:
        """`size` bytes from `offset` on (to the end, if not given), as this host sees them.

        Raises:
            OutOfBoundsError: the range leaves the memory.
        """
        size = self._rest(size, offset)
        copy = (c_char * size)()
        native.check(self._library.emx_cache_read(self._open(), offset, copy, size))
        return copy.raw

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Writes `data` at `offset`: into the cache, or (hardware-coherent, uncached) for all to see.

        Raises:
            OutOfBoundsError: the range leaves the memory.
        """
        handle, copy = self._open(), contents(data)
        natural("offset", offset)
        native.check(self._library.emx_cache_write(handle, offset, copy, len(copy)))

    def flush(self, offset: int = 0, size: int | None = None) -> None:
        """Writes back what this host wrote to the lines that the range touches. They stay in the cache."""
        size = self._rest(size, offset)
        native.check(self._library.emx_cache_flush(self._open(), offset, size))

    def invalidate(self, offset: int = 0, size: int | None = None) -> None:
        """Forgets the lines that the range touches, and with them what was written to the range and not flushed."""
        size = self._rest(size, offset)
        native.check(self._library.emx_cache_invalidate(self._open(), offset, size))

    def flush_invalidate(self, offset: int = 0, size: int | None = None) -> None:
        """Writes back, then forgets, the lines that the range touches."""
        size = self._rest(size, offset)
        native.check(self._library.emx_cache_flush_invalidate(self._open(), offset, size))

    def fence(self) -> None:
        """A full barrier: others see what this thread does next after what it did before."""
        self._library.emx_cache_fence(self._open())

    def load_u64(self, offset: int) -> int:
        """The eight bytes at `offset` (a multiple of 8), straight from the memory in every mode."""
        value = c_uint64()
        natural("offset", offset)
        native.check(self._library.emx_cache_load_u64(self._open(), offset, byref(value)))
        return value.value

    def store_u64(self, offset: int, value: int) -> None:
        """Stores `value` at `offset` (a multiple of 8), straight to the memory in every mode."""
        natural("offset", offset)
        native.check(self._library.emx_cache_store_u64(self._open(), offset, natural("value", value)))

    def stats(self) -> CacheStats:
        stats = _Stats()
        native.check(self._library.emx_cache_get_stats(self._open(), byref(stats)))
        return CacheStats(*(getattr(stats, name) for name in CacheStats.__dataclass_fields__))

    @property
    def closed(self) -> bool:
        return self._handle is None

    def close(self) -> None:
        """Frees the cache; what was not flushed never reaches the memory. A second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        self._library.emx_cache_close(handle)
        self._release()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"before {self.size_bytes:,} bytes"
        return f"<Cache, {self._mode.name.lower()}, {state}>"

    def _price(
        self,
        config: _CacheConfig,
        context: Context | None,
        timing: Timing | Preset | str | None,
        link: Link | None,
    ) -> None:
        if context is None:
            if timing is not None or link is not None or config.hit_latency_ns:
                raise ArgumentError(
                    "got a timing, link or hit latency without a context; expected the context whose clock to charge"
                )
            return
        from emucxl.context import Context, resolve_timing
        from emucxl.links import Link

        instance("context", context, Context, "a Context")
        instance("link", link, Link | None, "a Link")
        resolved = resolve_timing(timing)
        if resolved is not None:
            config.timing = resolved.to_abi()
        if link is not None:
            config.link = link.handle
        if resolved is not None or link is not None:
            context.calibrate()
        config.context = context.retain()
        self._context = context

    def _release(self) -> None:
        """Lets go of what the cache kept alive."""
        self._range.release()
        context, self._context = self._context, None
        if context is not None:
            context.release()

    def _open(self) -> c_void_p:
        if self._handle is None:
            raise ClosedError("the cache is closed")
        return self._handle

    def _rest(self, size: int | None, offset: int) -> int:
        """`size`, or what there is from `offset` on; the core checks the upper bounds, but sees no sign."""
        self._open()
        natural("offset", offset)
        return max(self.size_bytes - offset, 0) if size is None else natural("size", size)


class _Range:
    """The memory of a cache. Until `release` it cannot be closed, freed or resized."""

    def __init__(self, memory: Any) -> None:
        from emucxl.pool import Region

        self._kept: Any
        self.region: int | None = None
        if isinstance(memory, Region):
            self._kept = memory.borrow()
            self.region, self.address, self.size_bytes = self._kept.handle, memory.address, memory.size_bytes
            return
        view = _bytes_of(memory)
        if view.readonly:
            raise ArgumentError("got read-only memory; expected memory that can be written to")
        self._kept = (c_char * view.nbytes).from_buffer(view)
        self.address, self.size_bytes = ctypes.addressof(self._kept), view.nbytes

    def release(self) -> None:
        if self.region is not None:
            self._kept.end()
        self._kept, self.region = None, None


def _bytes_of(memory: Any) -> memoryview:
    try:
        return memoryview(getattr(memory, "buffer", memory)).cast("B")
    except (TypeError, BufferError) as error:
        raise ArgumentTypeError(
            f"got the memory {memory!r} ({error}); expected a SharedSegment, a Region or a contiguous buffer"
        ) from None
