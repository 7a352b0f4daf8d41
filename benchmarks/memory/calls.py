"""`make bench calls`: nanoseconds of one call from Python, unmodelled.

The same 64 bytes are read and written through a Buffer, through ctypes calling the same function of the core, through a
memoryview, and in a plain bytearray: the difference is what the way costs, and what the checks do.
"""

from __future__ import annotations

import ctypes
import timeit
from collections.abc import Callable

from emucxl import abi
from emucxl.bench.harness import Progress, Report, Samples, interleaved
from emucxl.buffer import Buffer
from emucxl.context import Context
from emucxl.errors import CorruptError

NAME = "calls"

SIZE_BYTES, OFFSET = 64, 128
CALLS, QUICK_CALLS = 20_000, 1_000  # of one value
ROUNDS, QUICK_ROUNDS = 31, 3
BOUND_NS = 500  # what a short read or write may take


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Times every way in every round, another one first each time; bytes are checked first.

    Raises:
        CorruptError: the ways do not agree on the bytes.
    """
    num_calls, rounds = (QUICK_CALLS, QUICK_ROUNDS) if quick else (CALLS, ROUNDS)
    with Context() as context:
        buffer = context.add_tier("local", 1 << 24).alloc(4096)
        with memoryview(buffer) as view:
            ways = {**_ways(buffer, view), "an empty lambda": lambda: None}
            measures = {name: _timer(way, num_calls) for name, way in ways.items()}
            samples = interleaved(measures, rounds, progress)
    return _report(samples, num_calls, rounds)


def _timer(way: Callable[[], object], num_calls: int) -> Callable[[], float]:
    """Gives ns per call of `way`."""
    timer = timeit.Timer(way)
    return lambda: timer.timeit(num_calls) / num_calls * 1e9


def _ways(buffer: Buffer, view: memoryview) -> dict[str, Callable[[], object]]:
    """Each as a lambda, whose own call is part of the time; it is in the table, too."""
    library, handle, tier = abi.load(), buffer.context.handle, buffer.tier
    data, target, plain = bytes(range(SIZE_BYTES)), bytearray(SIZE_BYTES), bytearray(len(buffer))
    end, address = OFFSET + SIZE_BYTES, buffer.address
    place = (ctypes.c_char * SIZE_BYTES).from_buffer(target)

    def write_plain() -> None:
        plain[OFFSET:end] = data

    def write_view() -> None:
        view[OFFSET:end] = data

    ways: dict[str, Callable[[], object]] = {
        "buffer.write(data, offset)": lambda: buffer.write(data, OFFSET),
        "ctypes emx_write": lambda: library.emx_write(handle, address, OFFSET, data, SIZE_BYTES),
        "a slice of a view = data": write_view,
        "a slice of a bytearray = data": write_plain,
        "buffer.read(64, offset)": lambda: buffer.read(SIZE_BYTES, OFFSET),
        "buffer.read_into(target, offset)": lambda: buffer.read_into(target, OFFSET),
        "ctypes emx_read": lambda: library.emx_read(handle, address, OFFSET, place, SIZE_BYTES),
        "bytes(a slice of a view)": lambda: bytes(view[OFFSET:end]),
        "bytes(a slice of a bytearray)": lambda: bytes(plain[OFFSET:end]),
        "memoryview(buffer)": lambda: memoryview(buffer),
        "tier.alloc(64), freed": lambda: tier.alloc(SIZE_BYTES),
        "tier.alloc(4096), freed": lambda: tier.alloc(4096),
    }
    _check(ways, target, data)
    return ways


def _check(ways: dict[str, Callable[[], object]], target: bytearray, data: bytes) -> None:
    for name, way in ways.items():
        result = way()
        if isinstance(result, bytes) and result != data:
            raise CorruptError(f"{name} gave other bytes than were written")
        if name in ("ctypes emx_read", "buffer.read_into(target, offset)"):
            if target != data:
                raise CorruptError(f"{name} gave other bytes than were written")
            target[:] = bytes(SIZE_BYTES)


def _report(samples: dict[str, Samples], num_calls: int, rounds: int) -> Report:
    plain = samples["a slice of a bytearray = data"]
    short = [samples["buffer.write(data, offset)"].median, samples["buffer.read(64, offset)"].median]
    return Report(
        name=NAME,
        title=f"ns per call, measured: median of {rounds} rounds of {num_calls:,} calls (quartiles)",
        columns=("call", "ns", "over a write to a bytearray"),
        rows=tuple((name, found.text(), found.over(plain).text(2)) for name, found in samples.items()),
        notes=(
            "Unmodelled tier, 64 bytes at an offset of 128; each time includes that of calling a lambda.",
            f"The slower of Buffer.read and write takes {max(short):,.0f} ns; the bound is {BOUND_NS} ns.",
        ),
        results={
            "size_bytes": SIZE_BYTES,
            "bound_ns": BOUND_NS,
            "calls": {name: found.to_json("ns") for name, found in samples.items()},
        },
    )
