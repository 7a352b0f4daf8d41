"""`make bench alloc`: allocating and freeing in a tier against malloc, mimalloc, UMF, and an mmap per block.

The published system maps whole pages for each block. mimalloc and unified-memory-framework (UMF) take part where the
system finds libmimalloc.so.2 and libumf.so.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.memory.allocators import ALLOCATORS, CHURN, STACK, Loops, Pattern, opened
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of

NAME = "alloc"

PATTERNS = (
    Pattern("64 B, one at a time", STACK, 64, 64, 1),
    Pattern("64 B, 64 at a time", STACK, 64, 64, 64),
    Pattern("1 KiB, 64 at a time", STACK, 1024, 1024, 64),
    Pattern("16 KiB, 64 at a time", STACK, 16384, 16384, 64),
    Pattern("1 MiB, one at a time", STACK, 1 << 20, 1 << 20, 1),
    Pattern("16-128 B, 10,000 live", CHURN, 16, 128, 10_000),
    Pattern("16-1024 B, 10,000 live", CHURN, 16, 1024, 10_000),
    Pattern("16 B-16 KiB, 1,000 live", CHURN, 16, 16384, 1_000),
)
ROUNDS, QUICK_ROUNDS = 15, 2
BYTES_PER_SAMPLE, QUICK_BYTES_PER_SAMPLE = 256 << 20, 1 << 20
MOST_OPERATIONS, FEWEST_OPERATIONS = 1_000_000, 256
FEWEST_MMAPS = 64
PAGES_SLOWER = 50  # an mmap per block is timed that many times less often


def run(quick: bool = False, progress: Progress | None = None) -> Report:
    """Every pattern with every allocator that is installed, in turns.

    Raises:
        CorruptError: an allocator's blocks overlapped, or were not zero where it says so.
    """
    rounds = QUICK_ROUNDS if quick else ROUNDS
    sample_bytes = QUICK_BYTES_PER_SAMPLE if quick else BYTES_PER_SAMPLE
    found: dict[str, dict[str, Samples]] = {}
    with opened() as loops:
        names = loops.available()
        for number, pattern in enumerate(PATTERNS):
            measures = {name: _measure(loops, name, pattern, sample_bytes) for name in names}
            found[pattern.name] = interleaved(
                measures, rounds, part_of(progress, number, len(PATTERNS), pattern.name)
            )
    return _report(found, names, rounds)


def _measure(loops: Loops, name: str, pattern: Pattern, sample_bytes: int) -> Callable[[], float]:
    mean_bytes = (pattern.smallest_bytes + pattern.largest_bytes) // 2
    num_operations = min(max(sample_bytes // (mean_bytes + 64), FEWEST_OPERATIONS), MOST_OPERATIONS)
    if name == "mmap":
        num_operations = max(num_operations // PAGES_SLOWER, min(num_operations, FEWEST_MMAPS))
    return lambda: loops.ns_per_operation(name, pattern, 1, num_operations)


def _best(samples: Mapping[str, Samples], names: list[str]) -> Samples:
    return min((samples[name] for name in names), key=lambda one: one.median)


def _report(found: dict[str, dict[str, Samples]], names: list[str], rounds: int) -> Report:
    general = [name for name in names if name not in ("emucxl", "mmap")]
    zeroing = [name for name in general if ALLOCATORS[name]]
    rows, results = [], {}
    for pattern, samples in found.items():
        ours = samples["emucxl"]
        ratios = {
            "over_best_zeroing": ours.over(_best(samples, zeroing)),
            "over_best": ours.over(_best(samples, general)),
            "mmap_over_emucxl": samples["mmap"].over(ours),
        }
        digits = 1 if ours.median < 1000 else 0
        cells = [f"{samples[name].median:,.{digits}f}" for name in names]
        rows.append(
            (
                pattern,
                *cells,
                *(ratio.text(2 if number < 2 else 0) for number, ratio in enumerate(ratios.values())),
            )
        )
        results[pattern] = {
            "ns_per_operation": {name: samples[name].to_json("ns") for name in names},
            **{name: ratio.to_json("ratio") for name, ratio in ratios.items()},
        }
    return Report(
        name=NAME,
        title="One allocation with its free, every line of the block written to between: ns (measured)",
        columns=(
            "blocks",
            *names,
            "/ best zeroing",
            "/ best",
            "mmap /",
        ),
        rows=tuple(rows),
        notes=(
            f"Medians of {rounds} interleaved rounds, one thread, C loop; ratios round by round, with quartiles.",
            f"These hand out zeroed memory: {', '.join(name for name in names if ALLOCATORS[name])}. The others don't.",
            "/ best: emucxl over the best of the others, mmap left out. mmap /: mmap over emucxl.",
            "mmap: whole pages for each block, shared, as the published system maps them.",
            *_missing(names),
        ),
        results=dict(results),
    )


def _missing(names: list[str]) -> tuple[str, ...]:
    missing = [name for name in ALLOCATORS if name not in names]
    return (f"Not installed here: {', '.join(missing)}.",) if missing else ()
