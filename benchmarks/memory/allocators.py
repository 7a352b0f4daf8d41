"""The allocators that benchmarks compare, and the loops that time them (native/alloc_loops.c)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_double, c_int, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from benchmarks.memory import loops
from emucxl import native
from emucxl.abi import SizedStructure
from emucxl.bench import machine
from emucxl.context import Context
from emucxl.errors import CorruptError, SystemMemoryError

# In the order of bench_allocator; the value tells whether it hands out zeroed memory.
ALLOCATORS = {
    "emucxl": True,
    "malloc": False,
    "calloc": True,
    "mi_malloc": False,
    "mi_zalloc": True,
    "umf": False,
    "mmap": True,
}
STACK, CHURN, HAND_OVER = range(3)
TIER_BYTES = 1 << 30
UNAVAILABLE, FAILED, WRONG = 2, 3, 4
_MAX_THREADS = 64


class _Tier(ctypes.Structure):
    _fields_ = (("context", c_void_p), ("number", c_uint32))


class _Config(SizedStructure):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("allocator", c_uint32),
        ("pattern", c_uint32),
        ("num_threads", c_uint32),
        ("smallest_bytes", c_uint64),
        ("largest_bytes", c_uint64),
        ("num_blocks", c_uint64),
        ("num_operations", c_uint64),
        ("tier", _Tier),
        ("num_cores", c_uint32),
        ("cores", c_uint32 * _MAX_THREADS),
    )


_SIGNATURES: native.Signatures = {
    "bench_alloc": (c_int, [POINTER(_Config), POINTER(c_double)]),
    "bench_alloc_verify": (c_int, [POINTER(_Config)]),
}


@dataclass(frozen=True)
class Pattern:
    """The blocks that a loop allocates. `num_blocks` are live at once, of `smallest_bytes` to `largest_bytes`."""

    name: str
    kind: int
    smallest_bytes: int
    largest_bytes: int
    num_blocks: int


class Loops:
    """Times allocators; emucxl allocates in a tier of its own."""

    def __init__(self, handle: int, tier: int) -> None:
        self._library: Any = loops.declared(_SIGNATURES)
        self._tier = _Tier(handle, tier)
        self._cores = machine.cores_apart()[:_MAX_THREADS]

    def available(self) -> list[str]:
        """The allocators that are installed here, in the order of ALLOCATORS."""
        return [name for name in ALLOCATORS if self.verify(name)]

    def verify(self, allocator: str) -> bool:
        """Whether it is installed here; its blocks must not overlap, and be zero where it says so.

        Raises:
            CorruptError: they did, or were not.
        """
        verdict = self._library.bench_alloc_verify(
            self._config(allocator, Pattern("", CHURN, 1, 5000, 1), 1, 1)
        )
        if verdict == WRONG:
            raise CorruptError(f"{allocator} gave blocks that overlap, or are not zero")
        _require_memory(verdict, allocator)
        return bool(verdict == 0)

    def ns_per_operation(
        self, allocator: str, pattern: Pattern, num_threads: int, num_operations: int
    ) -> float:
        """Nanoseconds of one allocation with its free, touching each line between, in each of the threads.

        Thread i stays on the i-th core of `machine.cores_apart()`: where threads land decides what they share.
        """
        found = c_double()
        config = self._config(allocator, pattern, num_threads, num_operations)
        _require_memory(self._library.bench_alloc(config, ctypes.byref(found)), allocator)
        return found.value

    def _config(self, allocator: str, pattern: Pattern, num_threads: int, num_operations: int) -> _Config:
        return _Config(
            allocator=list(ALLOCATORS).index(allocator),
            pattern=pattern.kind,
            num_threads=num_threads,
            smallest_bytes=pattern.smallest_bytes,
            largest_bytes=pattern.largest_bytes,
            num_blocks=pattern.num_blocks,
            num_operations=num_operations,
            tier=self._tier,
            num_cores=len(self._cores),
            cores=(c_uint32 * _MAX_THREADS)(*self._cores),
        )


@contextmanager
def opened() -> Iterator[Loops]:
    """Loops over a context that lives as long as they do."""
    with Context() as context, context.held() as handle:
        tier = context.add_tier("local", TIER_BYTES)
        yield Loops(handle, tier.number)


def _require_memory(verdict: int, allocator: str) -> None:
    if verdict == FAILED:
        raise SystemMemoryError(f"{allocator} could not allocate; free some memory and measure again")
