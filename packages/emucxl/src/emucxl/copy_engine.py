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
from ctypes import POINTER, byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from functools import cache
from typing import TYPE_CHECKING, Any

from emucxl import abi, native
from emucxl.arguments import instance, number
from emucxl.closing import Closing
from emucxl.copies import Copy, IndexedCopy, Pattern, patterns_of
from emucxl.errors import ArgumentError, ArgumentTypeError, ClosedError, WaitTimeout
from emucxl.exports import Exports
from emucxl.locks import new_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from emucxl.context import Context

__all__ = ["Completion", "Copy", "CopyEngine", "IndexedCopy"]

MAX_THREADS = 64
_FOREVER_NS = (1 << 64) - 1


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

    def submit(self, copies: Sequence[Copy | IndexedCopy | tuple[Any, Any, int]]) -> Completion:
        """Checks every copy, then queues them all as one batch.

        Raises:
            ClosedError: the engine, or a buffer, is closed.
            OutOfBoundsError: a copy leaves its memory.
            ArgumentError: a destination is read-only, or something is no contiguous memory.
            UnavailableError: there is an IndexedCopy, and no NumPy.
        """
        exports = Exports()
        try:
            table = b"".join([patterns_of(copy, exports) for copy in _each(copies)])
            return self._submit(table, exports)
        except BaseException:
            exports.release()
            raise

    def close(self) -> None:
        """Waits for what is in flight, and ends the threads. A second call does nothing."""
        with self._lock:
            if self.closed:
                return
            handle, self._handle = self._handle, None
            self._library.emx_engine_close(handle)
            self._context.release()

    def _submit(self, table: bytes, exports: Exports) -> Completion:
        num_patterns, handle = len(table) // sizeof(Pattern), c_void_p()
        patterns = (Pattern * num_patterns).from_buffer_copy(table)
        with self._lock:
            if self.closed:
                raise ClosedError("the copy engine is closed")
            submit = self._library.emx_engine_submit_patterns
            native.check(submit(self._handle, patterns, num_patterns, byref(handle)))
        return Completion(self._library, handle.value or 0, exports)

    def __repr__(self) -> str:
        return f"<CopyEngine of {self._num_threads} threads{', closed' if self.closed else ''}>"


class Completion:
    """A batch of copies under way."""

    def __init__(self, library: ctypes.CDLL, handle: int, exports: Exports) -> None:
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
            CancelledError: it was cancelled before it was done, and nothing of it is under way any more.
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

    def cancel(self) -> None:
        """Ends the batch early, unless it is done: `wait` then raises CancelledError. Returns at once.

        A batch that no thread has begun is never begun. One that runs ends between two pieces (64 KiB of memory with a
        timing, 16 MiB without), or out of its modelled delay. When `wait` has raised, or `done` is true, no byte of
        the batch is read or written any more; that takes some milliseconds at most. Some, none or all of its bytes may
        have been moved by then.

        On the virtual clock a batch is done when its modelled end has come. Waiting for a cancelled one leaves the
        clock where it is, so that a timeout is of the real clock. Its thread is free for the next batch; but batches
        that were queued behind it keep their times, and so do its bytes in the queues of tiers and links.

        Raises:
            ClosedError: in a fork's child.
        """
        if self._pid != os.getpid():
            raise ClosedError("the batch belongs to the process that this one was forked from")
        native.check(self._library.emx_completion_cancel(self._handle))

    def _poll(self, timeout_ns: int) -> Exception | type[WaitTimeout] | None:
        """Returns the outcome of the batch: None, its error, or WaitTimeout if it has not ended in time."""
        if self._pid != os.getpid():
            raise ClosedError("the batch belongs to the process that this one was forked from")
        status = self._library.emx_completion_wait(self._handle, timeout_ns)
        outcome = native.error_of(status) if status else None
        if isinstance(outcome, WaitTimeout):
            return WaitTimeout
        with self._lock:
            exports, self._exports = self._exports, Exports()
            self._finished = True
        exports.release()
        return outcome

    def __del__(self) -> None:
        if getattr(self, "_handle", None) and self._pid == os.getpid():
            self._library.emx_completion_release(self._handle)
            self._exports.release()

    def __repr__(self) -> str:
        return f"<Completion, {'done' if self._finished else 'not known to be done'}>"


def _each(copies: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(copies)
    except TypeError:
        raise ArgumentTypeError(
            f"got the copies {copies!r}; expected a list of Copy, or of (destination, source, size)"
        ) from None


@cache
def _load() -> ctypes.CDLL:
    library = abi.load()
    native.declare(
        library,
        {
            "emx_engine_create": (c_int, [c_void_p, c_uint32, POINTER(c_void_p)]),
            "emx_engine_close": (None, [c_void_p]),
            "emx_engine_submit_patterns": (
                c_int,
                [c_void_p, POINTER(Pattern), c_size_t, POINTER(c_void_p)],
            ),
            "emx_completion_cancel": (c_int, [c_void_p]),
            "emx_completion_wait": (c_int, [c_void_p, c_uint64]),
            "emx_completion_release": (None, [c_void_p]),
        },
    )
    return library
