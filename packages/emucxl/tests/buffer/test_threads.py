"""Buffers that threads use while others free them, and what they leave behind: nothing."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable

import pytest

from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import ArgumentError, ClosedError, InUseError, OutOfBoundsError
from emucxl.tiers import Tier

MIB = 1 << 20


@pytest.mark.parametrize(("size", "frees"), [(64, 200), (1 << 20, 5)])
def test_threads_that_use_a_buffer_while_another_frees_it_get_errors(
    tier: Tier, size: int, frees: int
) -> None:
    """With short calls that keep the GIL, and with long ones that don't."""
    unexpected: list[BaseException] = []
    data, target = bytes(size), bytearray(size)
    pause_s = 1e-5 if size < 16384 else 1e-3

    def use(call: Callable[[Buffer], object]) -> None:
        while not stop.is_set():
            try:
                call(shared[0])
            except (ClosedError, InUseError):
                pass
            except BaseException as error:
                unexpected.append(error)
            time.sleep(pause_s)  # so that the buffer is out of use at times

    calls: list[Callable[[Buffer], object]] = [
        lambda buffer: buffer.read(),
        lambda buffer: buffer.write(data),
        lambda buffer: buffer.read_into(target),
        lambda buffer: buffer.fill(1, 0, size),
        lambda buffer: memoryview(buffer).release(),
        lambda buffer: buffer.migrate("shared"),
        lambda buffer: buffer.resize(size),
    ]
    shared, stop = [tier.alloc(size)], threading.Event()
    threads = [threading.Thread(target=use, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    refused = freed = 0
    try:
        while not unexpected and (freed < frees or (size > 16384 and refused == 0)):
            try:
                shared[0].free()
                freed += 1
                shared[0] = tier.alloc(size)
            except InUseError:
                refused += 1
            time.sleep(1e-5)  # or this thread alone would have the GIL for as long as nobody is in the way
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not unexpected
    tier.context.check()


def test_closing_a_context_that_threads_use_is_refused_or_done() -> None:
    for _ in range(20):
        context = Context()
        tier = context.add_tier("local", 4 * MIB)
        buffer = tier.alloc(MIB)
        started = threading.Event()

        def use(buffer: Buffer = buffer, tier: Tier = tier, started: threading.Event = started) -> None:
            with contextlib.suppress(ClosedError):
                while True:
                    buffer.read()
                    tier.alloc(100_000).free()
                    started.set()
                    time.sleep(1e-5)

        thread = threading.Thread(target=use)
        thread.start()
        started.wait()
        while not context.closed:
            with contextlib.suppress(InUseError):
                context.close()
        thread.join()


def test_nothing_leaks_over_many_operations(context: Context, tier: Tier) -> None:
    buffer, data, target = tier.alloc(64), bytes(64), bytearray(64)

    def once() -> None:
        buffer.write(data, offset=0)
        buffer.read(64, offset=0)
        buffer.read_into(target)
        buffer.fill(0)
        buffer.copy_from(buffer, size=10)
        memoryview(buffer).release()
        context.write_batch([(buffer, 0, data)])
        context.read_batch([(buffer, 0, target)])
        with tier.alloc(100) as other:
            other.resize(200)
            other.migrate("shared")
        for bad in (lambda: buffer.read(65), lambda: buffer.write(b"x", -1), lambda: buffer.write("x")):  # type: ignore[arg-type]
            try:
                bad()
            except (OutOfBoundsError, ArgumentError, TypeError):
                pass
            else:
                pytest.fail("no error")
        with memoryview(buffer), contextlib.suppress(InUseError):
            buffer.free()
        buffer.__dlpack__(max_version=(1, 0))
        buffer.__dlpack__(copy=True)

    watched = [
        buffer,
        data,
        target,
        tier,
        context,
        Buffer,
        type(tier),
        context.tiers["shared"],
        None,
        "shared",
    ]
    for _ in range(100):
        once()
    gc.collect()
    references = [sys.getrefcount(thing) for thing in watched]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(6_000):  # of some twenty operations each
        once()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000  # less than a byte per operation
    for thing, count in zip(watched, references, strict=True):
        assert abs(sys.getrefcount(thing) - count) < 50, thing
    assert tier.stats().num_allocations == 1
    buffer.free()
