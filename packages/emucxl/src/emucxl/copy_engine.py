"""The copy engine: copies that run while the caller computes.

    with CopyEngine(context) as engine:
        completion = engine.submit([Copy(local, cxl, 1 << 20)])
        compute()
        completion.wait()

On the real clock the engine's threads take the time that the model says, sleeping through most of it. On the virtual
clock a batch's end is known when it is submitted, and `wait` moves the clock there: time that the program spent
computing meanwhile (`Context.advance`) is not paid twice.

Thread safety: every call may run in any number of threads.

Invariants:
  1. Memory that a batch reads or writes stays where it is until the batch is known to be done: `free`, `resize` and
     `migrate` raise InUseError until `wait` returned, or `done` was seen to be true.
  2. An engine keeps its context open; a completion outlives its engine.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from emucxl import abi, native
from emucxl.arguments import instance, number
from emucxl.buffer import Buffer
from emucxl.closing import Closing
from emucxl.errors import (
    ArgumentError,
    ArgumentTypeError,
    ClosedError,
    EmucxlError,
    OutOfBoundsError,
    WaitTimeout,
)
from emucxl.locks import new_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from emucxl.context import Context

MAX_THREADS = 64
_FOREVER_NS = (1 << 64) - 1
_SIMPLE, _WRITABLE = 0, 1  # PyBUF_*


@dataclass(frozen=True)
class Copy:
    """`size` bytes from `source` to `destination`: buffers of the engine's context, whose side is priced, or any other
    contiguous memory (`bytes` as a source, `bytearray`, NumPy arrays), whose side is not."""

    destination: Any
    source: Any
    size: int | None = None
    """Everything that fits both, where it is left out."""
    destination_offset: int = 0
    source_offset: int = 0


class _Request(ctypes.Structure):
    _fields_ = (("destination", c_void_p), ("source", c_void_p), ("size_bytes", c_size_t))


class _PyBuffer(ctypes.Structure):
    """Py_buffer, of the interpreter's stable ABI."""

    _fields_ = (
        ("buf", c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", c_int),
        ("ndim", c_int),
        ("format", ctypes.c_char_p),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    )


class _Export:
    """Memory of an object that speaks the buffer protocol, held in place until `release`."""

    def __init__(self, target: Any, writable: bool) -> None:
        self._view: _PyBuffer | None = None
        self._owner = target
        if isinstance(target, Buffer) and not _has_memory(target):
            self.address, self.size_bytes = target.address, target.size_bytes  # the core alone keeps it
            return
        view = _PyBuffer()
        flags = _WRITABLE if writable else _SIMPLE
        try:
            ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(target), byref(view), flags)
        except EmucxlError:
            raise  # one of our own buffers says what is wrong with it
        except (TypeError, BufferError, ValueError) as error:
            kind = ArgumentTypeError if isinstance(error, TypeError) else ArgumentError
            raise kind(
                f"got {target!r} ({error}); expected {'writable' if writable else 'readable'}, contiguous memory"
            ) from None
        self._view = view
        self.address, self.size_bytes = view.buf or 0, view.len

    def release(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            ctypes.pythonapi.PyBuffer_Release(byref(view))
        self._owner = None


def _has_memory(buffer: Buffer) -> bool:
    from emucxl.tiers import is_touchable

    return is_touchable(buffer.tier.provider)


class CopyEngine(Closing):
    """Threads that copy. Batches begin in the order in which they are submitted; each thread runs one at a time."""

    def __init__(self, context: Context, num_threads: int = 1) -> None:
        """
        Raises:
            ArgumentError: not 1 to 64 threads.
            ClosedError: the context is closed.
        """
        if not isinstance(num_threads, int) or not 1 <= num_threads <= MAX_THREADS:
            raise ArgumentError(f"got num_threads={num_threads!r}; expected 1 to {MAX_THREADS}")
        from emucxl.context import Context

        instance("context", context, Context, "a Context")
        self._library = _load()
        self._context, self._num_threads = context, num_threads
        self._lock = new_lock()
        self._pid = os.getpid()
        self._handle: int | None = None
        handle = c_void_p()
        native_context = context.retain()
        try:
            native.check(self._library.emx_engine_create(native_context, num_threads, byref(handle)))
        except BaseException:
            context.release()
            raise
        self._handle = handle.value

    @property
    def context(self) -> Context:
        return self._context

    @property
    def num_threads(self) -> int:
        return self._num_threads

    @property
    def closed(self) -> bool:
        """Also in a fork's child, where its threads are not."""
        return self._handle is None or self._pid != os.getpid()

    def submit(self, copies: Sequence[Copy | tuple[Any, Any, int]]) -> Completion:
        """Checks every copy, then queues them all as one batch.

        Raises:
            ClosedError: the engine, or a buffer, is closed.
            OutOfBoundsError: a copy leaves its memory.
            ArgumentError: a destination is read-only, or something is no contiguous memory.
        """
        exports: list[_Export] = []
        try:
            requests = [_request(copy, exports) for copy in _each(copies)]
            return self._submit(requests, exports)
        except BaseException:
            _release(exports)
            raise

    def close(self) -> None:
        """Waits for what is in flight, and ends the threads. A second call does nothing."""
        with self._lock:
            if self.closed:
                return
            handle, self._handle = self._handle, None
            self._library.emx_engine_close(handle)
            self._context.release()

    def _submit(self, requests: list[_Request], exports: list[_Export]) -> Completion:
        array, handle = (_Request * len(requests))(*requests), c_void_p()
        with self._lock:
            if self.closed:
                raise ClosedError("the copy engine is closed")
            native.check(self._library.emx_engine_submit(self._handle, array, len(requests), byref(handle)))
        return Completion(self._library, handle.value or 0, exports)

    def __repr__(self) -> str:
        return f"<CopyEngine of {self._num_threads} threads{', closed' if self.closed else ''}>"


class Completion:
    """A batch of copies under way."""

    def __init__(self, library: ctypes.CDLL, handle: int, exports: list[_Export]) -> None:
        """Takes over a native completion; `CopyEngine.submit` makes them."""
        self._library, self._handle, self._exports = library, handle, exports
        self._pid = os.getpid()
        self._lock = new_lock()
        self._finished = False

    @property
    def done(self) -> bool:
        """Whether every copy is there, or the batch failed. Asking does not move the virtual clock."""
        return self._poll(0) is not WaitTimeout

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns when every copy of the batch is there. On the virtual clock it advances that to the batch's end.

        Raises:
            WaitTimeout: `timeout_s` passed first (on the context's clock).
            PoisonedError, FencedError: a copy could not be made; those before it in the batch were, those after it not.
        """
        if timeout_s is not None and not number("timeout_s", timeout_s) >= 0:
            raise ArgumentError(f"got timeout_s={timeout_s!r}; expected at least 0")
        timeout_ns = (
            _FOREVER_NS if timeout_s is None else round(min(timeout_s * 1e9, float(_FOREVER_NS - 4095)))
        )
        outcome = self._poll(timeout_ns)
        if outcome is WaitTimeout:
            raise WaitTimeout(f"waited {timeout_s} s for a batch of copies that is not done")
        if isinstance(outcome, Exception):
            raise outcome

    def _poll(self, timeout_ns: int) -> Exception | type[WaitTimeout] | None:
        """Returns the outcome of the batch: None, its error, or WaitTimeout if it has not ended in time."""
        if self._pid != os.getpid():
            raise ClosedError("the batch belongs to the process that this one was forked from")
        status = self._library.emx_completion_wait(self._handle, timeout_ns)
        outcome = native.error_of(status) if status else None
        if isinstance(outcome, WaitTimeout):
            return WaitTimeout
        with self._lock:
            exports, self._exports = self._exports, []
            self._finished = True
        _release(exports)
        return outcome

    def __del__(self) -> None:
        if getattr(self, "_handle", None) and self._pid == os.getpid():
            self._library.emx_completion_release(self._handle)
            _release(self._exports)

    def __repr__(self) -> str:
        return f"<Completion, {'done' if self._finished else 'not known to be done'}>"


def _each(copies: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(copies)
    except TypeError:
        raise ArgumentTypeError(
            f"got the copies {copies!r}; expected a list of Copy, or of (destination, source, size)"
        ) from None


def _request(copy: Copy | tuple[Any, Any, int], exports: list[_Export]) -> _Request:
    if not isinstance(copy, Copy) and not (isinstance(copy, tuple | list) and 2 <= len(copy) <= 5):
        raise ArgumentTypeError(f"got the copy {copy!r}; expected a Copy, or (destination, source, size)")
    wanted = copy if isinstance(copy, Copy) else Copy(*copy)
    for name, figure in (
        ("size", wanted.size),
        ("destination_offset", wanted.destination_offset),
        ("source_offset", wanted.source_offset),
    ):
        if figure is not None or name != "size":
            instance(name, figure, int, "an integer")
    to = _Export(wanted.destination, writable=True)
    exports.append(to)
    source = _Export(wanted.source, writable=False)
    exports.append(source)
    room = min(to.size_bytes - wanted.destination_offset, source.size_bytes - wanted.source_offset)
    size = room if wanted.size is None else wanted.size
    if min(wanted.destination_offset, wanted.source_offset, size) < 0 or size > room:
        raise OutOfBoundsError(
            f"got a copy of {size:,} bytes from offset {wanted.source_offset:,} of {source.size_bytes:,} to offset "
            f"{wanted.destination_offset:,} of {to.size_bytes:,}; expected ranges that lie inside"
        )
    return _Request(to.address + wanted.destination_offset, source.address + wanted.source_offset, size)


def _release(exports: list[_Export]) -> None:
    for export in exports:
        export.release()


@cache
def _load() -> ctypes.CDLL:
    library = abi.load()
    native.declare(
        library,
        {
            "emx_engine_create": (c_int, [c_void_p, c_uint32, POINTER(c_void_p)]),
            "emx_engine_close": (None, [c_void_p]),
            "emx_engine_submit": (c_int, [c_void_p, POINTER(_Request), c_size_t, POINTER(c_void_p)]),
            "emx_completion_wait": (c_int, [c_void_p, c_uint64]),
            "emx_completion_release": (None, [c_void_p]),
        },
    )
    ctypes.pythonapi.PyObject_GetBuffer.argtypes = [ctypes.py_object, POINTER(_PyBuffer), c_int]
    ctypes.pythonapi.PyObject_GetBuffer.restype = c_int
    ctypes.pythonapi.PyBuffer_Release.argtypes = [POINTER(_PyBuffer)]
    ctypes.pythonapi.PyBuffer_Release.restype = None
    return library
