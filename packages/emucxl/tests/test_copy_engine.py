"""The copy engine: overlap, order, failures, and memory that stays where it is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import emucxl
from emucxl.calibration import Calibration
from emucxl.copy_engine import Copy, CopyEngine
from emucxl.errors import (
    ArgumentError,
    BadPointerError,
    ClosedError,
    InUseError,
    OutOfBoundsError,
    PoisonedError,
    WaitTimeout,
)
from emucxl.providers import Null
from emucxl.timing import Timing

MIB = 1 << 20
CALIBRATION = Calibration(50, 50, 1000, 1000, 20, 50_000, 60)


@pytest.fixture
def context() -> Iterator[emucxl.Context]:
    with emucxl.Context("virtual") as opened:
        opened.add_tier("local", 4 * MIB)
        opened.add_tier("far", 4 * MIB, timing=Timing(1000, 1000, 1, 1))
        yield opened


@pytest.fixture
def far(context: emucxl.Context) -> Iterator[emucxl.Buffer]:
    with context.alloc(MIB, "far") as buffer:
        yield buffer


@pytest.fixture
def local(context: emucxl.Context) -> Iterator[emucxl.Buffer]:
    with context.alloc(MIB, "local") as buffer:
        yield buffer


def test_copies_move_their_bytes(context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer) -> None:
    target = bytearray(5)
    with CopyEngine(context) as engine:
        engine.submit([(far, b"hello", 5), Copy(far, b"HELLO!", 1, 5, 5)]).wait()
        engine.submit([(local, far, 6)]).wait()
        engine.submit([Copy(target, local, source_offset=1, size=5)]).wait()
    assert target == b"ello!"


@given(
    num_pieces=st.integers(0, 6),
    size=st.integers(0, 9),
    strides=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    offsets=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    are_buffers=st.tuples(st.booleans(), st.booleans()),
)
def test_pieces_are_copied_as_one_copy_for_each_would(
    num_pieces: int,
    size: int,
    strides: tuple[int, int],
    offsets: tuple[int, int],
    are_buffers: tuple[bool, bool],
) -> None:
    """With the same bytes, the same modelled time and the same counts."""
    (to_stride, from_stride), (to_offset, from_offset) = strides, offsets
    to_stride = max(to_stride, size)

    def copied(in_pieces: bool) -> tuple[bytes, int, object]:
        with emucxl.Context("virtual") as context:
            tier = context.add_tier("far", MIB, timing=Timing(1000, 1000, 1, 1))
            memory = [context.alloc(256, "far") if is_buffer else bytearray(256) for is_buffer in are_buffers]
            to, source = memory
            memoryview(source)[:] = bytes(range(256))
            memoryview(to)[:] = bytes(256)
            copies = [
                Copy(to, source, size, to_offset + at * to_stride, from_offset + at * from_stride)
                for at in range(num_pieces)
            ]
            whole = Copy(to, source, size, to_offset, from_offset, num_pieces, to_stride, from_stride)
            with CopyEngine(context) as engine:
                engine.submit([whole] if in_pieces else copies).wait()
            return bytes(memoryview(to)), context.now_ns, tier.stats()

    assert copied(in_pieces=True) == copied(in_pieces=False)


def test_pieces_are_packed_unless_a_stride_says_otherwise(
    context: emucxl.Context, far: emucxl.Buffer
) -> None:
    target = bytearray(8)
    with CopyEngine(context) as engine:
        engine.submit([(far, bytes(range(40)))]).wait()
        engine.submit([Copy(target, far, 2, num_pieces=4, source_stride=10)]).wait()
    assert target == bytes([0, 1, 10, 11, 20, 21, 30, 31])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"num_pieces": -1}, OutOfBoundsError, "got -1 copies of 8 bytes"),
        ({"num_pieces": 3, "destination_stride": 2**62}, OutOfBoundsError, "3 copies of 8 bytes"),
        ({"num_pieces": MIB // 8, "source_stride": 9}, OutOfBoundsError, "expected ranges that lie inside"),
        ({"num_pieces": 2, "destination_stride": 4}, ArgumentError, "expected at least a piece's size"),
        ({"num_pieces": 2, "size": None}, ArgumentError, "got no size for 2 pieces"),
        ({"num_pieces": 2.0}, ArgumentError, "num_pieces"),
        ({"source_stride": -8, "num_pieces": 2}, OutOfBoundsError, "expected ranges that lie inside"),
    ],
)
def test_pieces_that_cannot_be_are_refused(
    context: emucxl.Context,
    far: emucxl.Buffer,
    local: emucxl.Buffer,
    values: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with CopyEngine(context) as engine, pytest.raises(error, match=message):
        engine.submit([Copy(**{"destination": local, "source": far, "size": 8, **values})])
    local.free()  # nothing is held in place


def test_poison_between_two_pieces_harms_neither(
    context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer
) -> None:
    context.tier("far").poison(far.address + 4096, 64)
    with CopyEngine(context) as engine:
        engine.submit([Copy(local, far, 4096, num_pieces=2, source_stride=8192)]).wait()
        with pytest.raises(PoisonedError):
            engine.submit([Copy(local, far, 4096, num_pieces=2, source_stride=4096)]).wait()


def test_computing_overlaps_copying_exactly_on_the_virtual_clock(
    context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer
) -> None:
    with CopyEngine(context) as engine:
        completion = engine.submit([(local, far, 20_000)])  # 21 us
        context.advance(20_000)
        assert not completion.done
        completion.wait()
        assert context.now_ns == 21_000
        completion = engine.submit([(local, far, 20_000)])
        context.advance(30_000)
        assert completion.done
        completion.wait()
        assert context.now_ns == 51_000


def test_a_batch_pays_its_latency_once_and_a_thread_runs_one_batch_at_a_time(
    context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer
) -> None:
    with CopyEngine(context) as engine:
        first = engine.submit([(local, far, 500), (local, far, 500)])
        second = engine.submit([(local, far, 100)])
        first.wait()
        assert context.now_ns == 1000 + 1000
        second.wait()
        assert context.now_ns == 2000 + 100 + 1000


def test_two_threads_overlap_their_latencies(
    context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer
) -> None:
    with CopyEngine(context, num_threads=2) as engine:
        copies = [Copy(local, far, 100, destination_offset=start) for start in (0, 100)]
        for completion in [engine.submit([copy]) for copy in copies]:
            completion.wait()
    assert context.now_ns == 100 + 100 + 1000


def test_waiting_with_a_timeout_advances_the_virtual_clock_by_it(
    context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer
) -> None:
    with CopyEngine(context) as engine:
        completion = engine.submit([(local, far, 9000)])
        with pytest.raises(WaitTimeout):
            completion.wait(2e-6)
        assert context.now_ns == 2000
        with pytest.raises(WaitTimeout):
            completion.wait(0)
        completion.wait(1)
    assert context.now_ns == 10_000


def test_copying_takes_the_computations_time_on_the_real_clock() -> None:
    size = 20_000_000  # 20 ms at 1 GB/s
    with emucxl.Context(calibration=CALIBRATION) as context:
        far = context.add_tier("far", 32 * MIB, timing=Timing(1000, 1000, 1, 1)).alloc(size)
        local = context.add_tier("local", 32 * MIB).alloc(size)
        with CopyEngine(context) as engine:
            took_s = min(_overlapped_s(engine, local, far) for _ in range(5))
            begin_s = time.perf_counter()
            engine.submit([(local, far, size)]).wait()
            alone_s = time.perf_counter() - begin_s
        far.free()
        local.free()
    assert took_s >= 0.0199
    assert alone_s >= 0.0199


def _overlapped_s(engine: CopyEngine, local: emucxl.Buffer, far: emucxl.Buffer) -> float:
    begin_s = time.perf_counter()
    completion = engine.submit([(local, far, None)])  # type: ignore[list-item]
    time.sleep(0.02)  # computing
    completion.wait()
    return time.perf_counter() - begin_s


def test_memory_of_a_batch_stays_until_the_batch_is_known_to_be_done(
    context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer
) -> None:
    with CopyEngine(context) as engine:
        completion = engine.submit([(local, far, 1000)])
        for forbidden in (far.free, local.free, lambda: far.resize(5), lambda: far.migrate("local")):
            with pytest.raises(InUseError):
                forbidden()
        completion.wait()
        far.resize(2 * MIB)


def test_memory_that_only_the_core_can_hold_is_in_use_too(context: emucxl.Context) -> None:
    with emucxl.Context(calibration=CALIBRATION) as real:
        buffer = real.add_tier("null", MIB, Null(), Timing(50_000_000, 50_000_000)).alloc(64)
        with CopyEngine(real) as engine:
            completion = engine.submit([(buffer, b"x" * 64, 64)])
            with pytest.raises(InUseError):
                buffer.free()
            completion.wait()
        buffer.free()


def test_a_completion_outlives_its_engine(
    context: emucxl.Context, far: emucxl.Buffer, local: emucxl.Buffer
) -> None:
    with CopyEngine(context) as engine:
        completion = engine.submit([(far, b"hello", 5)])
    assert context.now_ns == 1005  # closing waited
    assert completion.done
    completion.wait()
    assert far.read(5) == b"hello"


def test_a_batch_ends_before_the_first_copy_that_cannot_be_made(
    context: emucxl.Context, local: emucxl.Buffer
) -> None:
    blocks = [context.alloc(4096, "far") for _ in range(3)]
    with emucxl.Context(calibration=CALIBRATION) as real:
        tier = real.add_tier("far", MIB, timing=Timing(100_000_000, 100_000_000))
        first, bad, last = (tier.alloc(4096) for _ in range(3))
        with CopyEngine(real) as engine:
            busy = engine.submit([(last, b"busy", 4)])  # 100 ms, so that the next batch is queued meanwhile
            completion = engine.submit([(first, b"good", 4), (bad, b"poor", 4), (last, b"late", 4)])
            tier.poison(bad.address, 64)
            busy.wait()
            with pytest.raises(PoisonedError):
                completion.wait()
            with pytest.raises(PoisonedError):
                completion.wait()
            assert completion.done
            with pytest.raises(PoisonedError):
                engine.submit([(bad, b"poor", 4)])
        assert bytes(memoryview(first)[:4]) == b"good"
        assert bytes(memoryview(last)[:4]) == b"busy"
        for block in (first, bad, last):
            block.free()
    for block in blocks:
        block.free()


def test_what_leaves_its_memory_is_refused_and_nothing_is_queued(
    context: emucxl.Context, far: emucxl.Buffer
) -> None:
    with CopyEngine(context) as engine:
        for wrong in (
            (far, bytes(10), 11),
            (far, bytes(10), -1),
            Copy(far, bytes(10), 10, destination_offset=MIB - 9),
            Copy(far, bytes(10), 1, source_offset=-1),
        ):
            with pytest.raises(OutOfBoundsError):
                engine.submit([(far, b"hello", 5), wrong])
        with pytest.raises(ArgumentError, match="expected writable, contiguous memory"):
            engine.submit([(b"constant", far, 8)])
        with pytest.raises(TypeError):
            engine.submit([(far, "text", 4)])
    assert far.read(5) == bytes(5)
    far.resize(100)  # nothing holds it


def test_a_pointer_to_freed_memory_is_refused(context: emucxl.Context) -> None:
    buffer = context.alloc(64, "far")
    with CopyEngine(context) as engine:
        buffer.free()
        with pytest.raises((ClosedError, BadPointerError)):
            engine.submit([(buffer, b"x", 1)])


def test_a_closed_engine_takes_nothing(context: emucxl.Context, far: emucxl.Buffer) -> None:
    engine = CopyEngine(context)
    engine.close()
    engine.close()
    assert engine.closed
    with pytest.raises(ClosedError):
        engine.submit([(far, b"x", 1)])
    far.resize(10)


def test_an_engine_keeps_its_context_open() -> None:
    context = emucxl.Context("virtual")
    with CopyEngine(context), pytest.raises(InUseError):
        context.close()
    context.close()
    with pytest.raises(ClosedError):
        CopyEngine(context)


@pytest.mark.parametrize("num_threads", [0, -1, 65, 1.5])
def test_senseless_numbers_of_threads_are_refused(context: emucxl.Context, num_threads: int) -> None:
    with pytest.raises(ArgumentError, match="num_threads"):
        CopyEngine(context, num_threads)


def test_an_empty_batch_is_done_at_once(context: emucxl.Context, far: emucxl.Buffer) -> None:
    with CopyEngine(context) as engine:
        engine.submit([]).wait()
        engine.submit([(far, b"", 0)]).wait()
    assert context.now_ns == 0


def test_threads_share_an_engine(context: emucxl.Context, far: emucxl.Buffer) -> None:
    def write(engine: CopyEngine, place: int) -> None:
        for _ in range(50):
            engine.submit([Copy(far, bytes([place]) * 64, destination_offset=64 * place)]).wait()

    with CopyEngine(context, num_threads=2) as engine:
        threads = [threading.Thread(target=write, args=(engine, place)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert far.read(256) == b"".join(bytes([place]) * 64 for place in range(4))


def test_an_engine_is_closed_in_a_forks_child(context: emucxl.Context) -> None:
    engine = CopyEngine(context)
    child = os.fork()
    if child == 0:
        os._exit(0 if engine.closed else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not engine.closed
    engine.close()
