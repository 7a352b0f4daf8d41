"""`make bench copy`: the cost of accesses to an unmodelled tier over that of memcpy.

memcpy is given the very addresses that the call is given, and takes its turn right before or after it: the difference
is what the library adds. How fast this machine's memory is, and how it is paged, falls on both.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from ctypes import addressof, c_char, c_double, c_size_t, c_uint64, c_void_p, memmove, string_at
from dataclasses import dataclass
from typing import Any

from benchmarks.memory import loops
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of
from emucxl.context import Context
from emucxl.errors import CorruptError

NAME = "copy"

SMALL_BYTES = 64
SIZES = (SMALL_BYTES, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20)
QUICK_SIZES = (SMALL_BYTES, 4 << 10, 1 << 20)
ROUNDS, QUICK_ROUNDS = 15, 3
BYTES_PER_SAMPLE, QUICK_BYTES_PER_SAMPLE = 256 << 20, 4 << 20
MOST_CALLS = 200_000
OPERATIONS = ("read", "write", "copy")

_COPY = [c_void_p, c_void_p, c_size_t, c_uint64]
_SIGNATURES = {
    "bench_copy_memcpy": (c_double, _COPY),
    "bench_copy_read": (c_double, [c_void_p, *_COPY]),
    "bench_copy_write": (c_double, [c_void_p, *_COPY]),
    "bench_copy_copy": (c_double, [c_void_p, *_COPY]),
}


@dataclass(frozen=True)
class Places:
    """Addresses of as many bytes each: two tiers', and two buffers' of the program."""

    near: int
    far: int
    source: int
    target: int


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Every size and operation against memcpy, in turns.

    Raises:
        CorruptError: a call moved other bytes than it should.
    """
    sizes = QUICK_SIZES if quick else SIZES
    rounds = QUICK_ROUNDS if quick else ROUNDS
    sample_bytes = QUICK_BYTES_PER_SAMPLE if quick else BYTES_PER_SAMPLE
    library = loops.declared(_SIGNATURES)
    found: dict[int, dict[str, Samples]] = {}
    with Context() as context, context.held() as handle:
        tiers = [context.add_tier(name, 2 * max(sizes) + (4 << 20)) for name in ("near", "far")]
        for number, size in enumerate(sizes):
            with tiers[0].alloc(size) as near, tiers[1].alloc(size) as far:
                program = [mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
                places = Places(near.address, far.address, *map(_address, program))
                num_calls = min(max(sample_bytes // size, 1), MOST_CALLS)
                _check(library, handle, places, size)
                share = part_of(progress, number, len(sizes))
                found[size] = interleaved(_measures(library, handle, places, size, num_calls), rounds, share)
    return _report(found)


def _address(memory: mmap.mmap) -> int:
    return addressof(c_char.from_buffer(memory))


def _measures(
    library: Any, handle: int, places: Places, size: int, num_calls: int
) -> dict[str, Callable[[], float]]:
    """Nanoseconds per call of each operation, and of memcpy between the same addresses."""
    ends = {
        "read": (places.target, places.near),
        "write": (places.near, places.source),
        "copy": (places.far, places.near),
    }

    def memcpy(name: str) -> Callable[[], float]:
        return lambda: float(library.bench_copy_memcpy(*ends[name], size, num_calls))

    return {
        "read": lambda: library.bench_copy_read(handle, places.near, places.target, size, num_calls),
        "memcpy for read": memcpy("read"),
        "write": lambda: library.bench_copy_write(handle, places.near, places.source, size, num_calls),
        "memcpy for write": memcpy("write"),
        "copy": lambda: library.bench_copy_copy(handle, places.far, places.near, size, num_calls),
        "memcpy for copy": memcpy("copy"),
    }


def _check(library: Any, handle: int, places: Places, size: int) -> None:
    """Sends a pattern from the program through both tiers and back: every page is touched, every call does its work."""
    pattern = (bytes(range(251)) * (size // 251 + 1))[:size]
    memmove(places.source, pattern, size)
    library.bench_copy_write(handle, places.near, places.source, size, 1)
    library.bench_copy_copy(handle, places.far, places.near, size, 1)
    library.bench_copy_read(handle, places.far, places.target, size, 1)
    if string_at(places.target, size) != pattern:
        raise CorruptError(f"{size:,} bytes came back changed from write, copy and read")


def _report(found: dict[int, dict[str, Samples]]) -> Report:
    rows: list[tuple[str, ...]] = []
    results: dict[str, object] = {}
    for size, samples in found.items():
        for operation in OPERATIONS:
            ours, memcpy = samples[operation], samples[f"memcpy for {operation}"]
            fraction = memcpy.over(ours)
            rows.append(
                (
                    f"{operation} {_size_text(size)}",
                    *map(_text, (ours, memcpy)),
                    *_speeds(size, ours, memcpy),
                    _percent(fraction),
                )
            )
            results[f"{operation}-{size}"] = {
                "ns_per_call": ours.to_json("ns"),
                "memcpy_ns_per_call": memcpy.to_json("ns"),
                "fraction_of_memcpy": fraction.to_json("ratio"),
            }
    return Report(
        name=NAME,
        title="Accesses to unmodelled tiers against memcpy between the same addresses (measured)",
        columns=("access", "emucxl ns", "memcpy ns", "emucxl GB/s", "memcpy GB/s", "of memcpy's speed"),
        rows=tuple(rows),
        notes=(
            "Median (quartiles) of interleaved rounds; one thread; from a loop in C.",
            "What the checks cost is the difference in ns: it shows in small accesses, and vanishes in large ones.",
        ),
        results=results,
    )


def _size_text(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def _text(samples: Samples) -> str:
    return samples.text(1 if samples.median < 1000 else 0)


def _speeds(size: int, *each: Samples) -> tuple[str, ...]:
    return tuple(f"{size / samples.median:.1f}" for samples in each)


def _percent(fraction: Samples) -> str:
    return Samples(tuple(100 * value for value in fraction.values)).text() + " %"
