from __future__ import annotations

import threading
from pathlib import Path

import pytest

from benchmarks.memory import alloc, allocators, scaling
from benchmarks.memory.allocators import CHURN, STACK, Pattern
from emucxl import errors
from emucxl.bench import machine


def make_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alloc, "QUICK_BYTES_PER_SAMPLE", 1 << 12)
    monkeypatch.setattr(alloc, "FEWEST_OPERATIONS", 2)


def test_every_pattern_is_set_against_malloc_and_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    make_short(monkeypatch)
    report = alloc.run(quick=True)
    assert [row[0] for row in report.rows] == [pattern.name for pattern in alloc.PATTERNS]
    assert {"emucxl", "malloc", "calloc", "mmap"} <= set(report.columns)
    assert all(len(row) == len(report.columns) for row in report.rows)
    for result in report.results.values():
        assert result["ns_per_operation"]["emucxl"]["median"] > 0
        assert result["mmap_over_emucxl"]["kind"] == "measured"


def test_threads_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "QUICK_OPERATIONS", 500)
    report = scaling.run(quick=True)
    assert len(report.rows) == len(scaling.PATTERNS) * len(scaling.NUM_THREADS)
    assert [row[1] for row in report.rows[:3]] == ["1", "2", "4"]


def allowed_cores() -> set[str]:
    """Of each thread of this process, where it may run."""
    found = set()
    for status in Path("/proc/self/task").glob("*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue
        found |= {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list")}
    return found


def test_each_thread_stays_on_a_core_of_its_own() -> None:
    wanted = {str(core) for core in machine.cores_apart()[:2]}
    seen: set[str] = set()
    with allocators.opened() as loops:
        blocks, ended = Pattern("", STACK, 64, 64, 64), threading.Event()

        def run() -> None:
            for _ in range(100):  # each is watched for a moment, on whatever machine
                loops.ns_per_operation("emucxl", blocks, 2, 200_000)
                if wanted <= seen:
                    break
            ended.set()

        thread = threading.Thread(target=run)
        thread.start()
        while not ended.is_set():
            seen |= allowed_cores()
        thread.join()
    assert wanted <= seen


def test_progress_ascends_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    make_short(monkeypatch)
    seen: list[float] = []
    alloc.run(quick=True, progress=lambda fraction, _: seen.append(fraction))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def test_what_an_allocator_gives_is_verified_before_it_is_timed() -> None:
    with allocators.opened() as loops:
        assert {"emucxl", "malloc", "calloc", "mmap"} <= set(loops.available())


def test_a_tier_without_room_is_an_error_and_no_figure() -> None:
    blocks = Pattern("too large", CHURN, 2 * allocators.TIER_BYTES, 2 * allocators.TIER_BYTES, 1)
    with allocators.opened() as loops, pytest.raises(errors.SystemMemoryError, match="emucxl could not"):
        loops.ns_per_operation("emucxl", blocks, 1, 1)
