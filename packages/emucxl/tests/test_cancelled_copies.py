"""Batches of copies that are cancelled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import emucxl
from emucxl.calibration import Calibration
from emucxl.copy_engine import Completion, CopyEngine, IndexedCopy
from emucxl.errors import CancelledError, InUseError, WaitTimeout
from emucxl.timing import Timing
from support.patience import PATIENCE_S

CALIBRATION = Calibration(50, 50, 1000, 1000, 20, 50_000, 60)
SLOWEST = Timing(0, 0, 0.001, 0.001)  # a megabyte in a second


@pytest.fixture
def context() -> Iterator[emucxl.Context]:
    with emucxl.Context("virtual") as opened:
        opened.add_tier("local", 1 << 20)
        opened.add_tier("far", 1 << 20, timing=Timing(1000, 1000, 1, 1))
        yield opened


@pytest.fixture
def real() -> Iterator[emucxl.Context]:
    with emucxl.Context(calibration=CALIBRATION) as opened:
        opened.add_tier("far", 1 << 20, timing=SLOWEST)
        opened.add_tier("local", 1 << 20)
        yield opened


def begin_for_minutes(engine: CopyEngine, target: bytearray, source: emucxl.Buffer) -> Completion:
    """A batch that writes to `target` all the time, and takes longer than a test's patience."""
    source.fill(1)
    offsets = np.arange(20_000) % 4 * 4096
    completion = engine.submit([IndexedCopy(target, source, 16_384, offsets, offsets * 0)])
    with pytest.raises(WaitTimeout):
        completion.wait(0.05)
    return completion


def test_a_batch_that_runs_stops_and_lets_go_of_its_memory(real: emucxl.Context) -> None:
    far, target = real.alloc(16_384, "far"), bytearray(32_768)
    with CopyEngine(real) as engine:
        completion = begin_for_minutes(engine, target, far)
        with pytest.raises(InUseError):
            far.free()
        completion.cancel()
        for _ in range(2):
            with pytest.raises(CancelledError, match="was cancelled"):
                completion.wait(PATIENCE_S)
        assert completion.done
        target[:] = bytes(32_768)
        far.free()
        stats = real.tier("far").stats()
        assert stats.read_bytes == 16_384 * stats.read_accesses < 16_384 * 20_000
        engine.submit([(target, b"next", 4)]).wait()
        assert target == b"next" + bytes(32_764)


def test_a_batch_that_waits_for_its_turn_is_never_begun(real: emucxl.Context) -> None:
    far, target, untouched = real.alloc(16_384, "far"), bytearray(32_768), bytearray(4)
    with CopyEngine(real) as engine:
        running = begin_for_minutes(engine, target, far)
        waiting = [engine.submit([(untouched, b"here", 4)]) for _ in range(3)]
        local = real.alloc(4, "local")
        waiting.append(engine.submit([(local, b"here", 4)]))
        for completion in (waiting[1], waiting[3], waiting[0], waiting[2]):
            completion.cancel()
            with pytest.raises(CancelledError):
                completion.wait(PATIENCE_S)
        local.free()
        assert not running.done
        last = engine.submit([(untouched, b"last", 4)])
        running.cancel()
        last.wait(PATIENCE_S)
        assert untouched == b"last"
        with pytest.raises(CancelledError):
            running.wait(PATIENCE_S)
    far.free()
    assert real.tier("local").stats().write_bytes == 0


def test_a_delay_at_the_end_is_cut_short() -> None:
    link = emucxl.Link.create(0.001, latency_ns=1e9)
    with link, emucxl.Context(calibration=CALIBRATION) as real:
        far, target = real.add_tier("far", 1 << 20, link=link).alloc(4096), bytearray(4)
        link.reserve("read", 55_000_000, real.now_ns)  # for 55 s everyone else waits
        with CopyEngine(real) as engine:
            completion = engine.submit([(target, far, 4)])
            with pytest.raises(WaitTimeout):
                completion.wait(0.05)
            completion.cancel()
            with pytest.raises(CancelledError):
                completion.wait(45)
        far.free()


def test_what_is_done_stays_done(real: emucxl.Context) -> None:
    target = bytearray(4)
    with CopyEngine(real) as engine:
        completion = engine.submit([(target, b"done", 4)])
        completion.wait()
        completion.cancel()
        completion.wait()
        outlives = engine.submit([(target, b"late", 4)])
    outlives.cancel()
    outlives.wait()
    assert target == b"late"


def test_copies_without_a_timing_can_be_cancelled(real: emucxl.Context) -> None:
    size = 20 << 20
    source, target = bytes(size), bytearray(size)
    with CopyEngine(real) as engine:
        completion = engine.submit([(target, source, size)] * 2000)  # 40 GB
        with pytest.raises(WaitTimeout):
            completion.wait(0.02)
        completion.cancel()
        with pytest.raises(CancelledError):
            completion.wait(PATIENCE_S)


def test_on_the_virtual_clock_a_cancelled_batch_takes_no_more_time(context: emucxl.Context) -> None:
    far, local = context.alloc(20_000, "far"), context.alloc(20_000, "local")
    with CopyEngine(context) as engine:
        completion = engine.submit([(local, far, 20_000)])  # 21 us
        context.advance(5000)
        completion.cancel()
        with pytest.raises(CancelledError):
            completion.wait(0)
        assert completion.done
        assert context.now_ns == 5000
        far.free()
        engine.submit([(local, b"1", 1)]).wait()
    assert context.now_ns == 5000


def test_on_the_virtual_clock_a_batch_whose_end_has_come_is_done(context: emucxl.Context) -> None:
    far, target = context.alloc(4, "far"), bytearray(b"gone")
    with CopyEngine(context) as engine:
        completion = engine.submit([(target, far, 4)])
        context.advance(1004)
        completion.cancel()
        completion.wait(0)
        assert target == bytes(4)
        context.advance(1)
        completion.cancel()
        completion.wait()


def test_on_the_virtual_clock_batches_keep_the_times_that_they_had(context: emucxl.Context) -> None:
    far, local = context.alloc(20_000, "far"), context.alloc(20_000, "local")
    with CopyEngine(context) as engine:
        first, second, third = (engine.submit([(local, far, 1000)]) for _ in range(3))
        second.cancel()
        first.wait()
        assert context.now_ns == 2000
        third.cancel()
        engine.submit([(local, b"x", 1)]).wait()  # the thread is the second's until 4000
        assert context.now_ns == 4000
        last = engine.submit([(local, far, 1000)])
        for cancelled in (second, third):
            with pytest.raises(CancelledError):
                cancelled.wait()
        last.wait()
    assert context.now_ns == 7000  # the queue of the tier is the third's until 5000


def test_closing_an_engine_does_not_pay_for_what_was_cancelled(context: emucxl.Context) -> None:
    far = context.alloc(20_000, "far")
    with CopyEngine(context, num_threads=2) as engine:
        engine.submit([(bytearray(100), far, 100)])
        engine.submit([(bytearray(20_000), far, 20_000)]).cancel()
    assert context.now_ns == 1100
