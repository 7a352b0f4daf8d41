"""`make bench scaling`: threads that allocate and free in one tier at once, against malloc and mimalloc."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.memory.allocators import CHURN, HAND_OVER, STACK, Loops, Pattern, opened
from emucxl import resources
from emucxl.bench import machine
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of

NAME = "scaling"

PATTERNS = (
    Pattern("64 B, 64 at a time", STACK, 64, 64, 64),
    Pattern("16-1024 B, 10,000 live per thread", CHURN, 16, 1024, 10_000),
    Pattern("256 B, freed by any thread", HAND_OVER, 256, 256, 4096),
)
NUM_THREADS = (1, 2, 4)
NAMES = ("emucxl", "calloc", "mi_zalloc")  # all of them zero
ROUNDS, QUICK_ROUNDS = 11, 2
OPERATIONS, QUICK_OPERATIONS = 300_000, 5_000


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Every pattern and number of threads, the allocators in turns.

    Raises:
        CorruptError: an allocator's blocks overlapped, or were not zero.
    """
    rounds, num_operations = (QUICK_ROUNDS, QUICK_OPERATIONS) if quick else (ROUNDS, OPERATIONS)
    found: dict[tuple[str, int], dict[str, Samples]] = {}
    cases = [(pattern, num_threads) for pattern in PATTERNS for num_threads in NUM_THREADS]
    with opened() as loops:
        names = [name for name in loops.available() if name in NAMES]
        for number, (pattern, num_threads) in enumerate(cases):
            measures = {name: _measure(loops, name, pattern, num_threads, num_operations) for name in names}
            share = part_of(progress, number, len(cases), f"{pattern.name}, {num_threads} threads")
            found[pattern.name, num_threads] = interleaved(measures, rounds, share)
    return _report(found, names, rounds)


def _measure(
    loops: Loops, name: str, pattern: Pattern, num_threads: int, num_operations: int
) -> Callable[[], float]:
    """Millions of allocations per second, of all threads together."""
    return lambda: 1e3 * num_threads / loops.ns_per_operation(name, pattern, num_threads, num_operations)


def _report(found: dict[tuple[str, int], dict[str, Samples]], names: list[str], rounds: int) -> Report:
    rows: list[tuple[str, ...]] = []
    results: dict[str, object] = {}
    for (pattern, num_threads), samples in found.items():
        speedup = samples["emucxl"].over(found[pattern, NUM_THREADS[0]]["emucxl"])
        cells = (samples[name].text(1) for name in names)
        rows.append((pattern, str(num_threads), *cells, speedup.text(2)))
        results[f"{pattern}, {num_threads} threads"] = {
            "million_per_second": {name: samples[name].to_json("1e6/s") for name in names},
            "speedup": speedup.to_json("ratio"),
        }
    return Report(
        name=NAME,
        title="Millions of allocations with their frees per second, of all threads together (measured)",
        columns=("blocks", "threads", *names, "emucxl / 1 thread"),
        rows=tuple(rows),
        notes=(
            f"Median (quartiles) of {rounds} interleaved rounds, on {resources.num_threads()} cores.",
            f"Thread by thread on the cores {', '.join(map(str, machine.cores_apart()))}, and from the first again.",
            "All of them hand out zeroed memory, and every line of each block is written to.",
        ),
        results=results,
    )
