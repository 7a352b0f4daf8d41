from __future__ import annotations

import pytest

from emucxl import errors
from emucxl.bench import alloc, allocators, scaling
from emucxl.bench.allocators import CHURN, Pattern


def test_every_pattern_is_set_against_malloc_and_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alloc, "QUICK_BYTES_PER_SAMPLE", 1 << 16)
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


def test_progress_ascends_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alloc, "QUICK_BYTES_PER_SAMPLE", 1 << 12)
    seen: list[float] = []
    alloc.run(quick=True, progress=lambda fraction, _: seen.append(fraction))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def test_what_an_allocator_gives_is_verified_before_it_is_timed() -> None:
    with allocators.opened() as loops:
        assert {"emucxl", "malloc", "calloc", "mmap"} <= set(loops.available())


def test_a_full_tier_is_an_error_and_no_figure() -> None:
    blocks = Pattern("too many", CHURN, 1 << 24, 1 << 24, 100)
    with allocators.opened() as loops, pytest.raises(errors.SystemMemoryError, match="emucxl could not"):
        loops.ns_per_operation("emucxl", blocks, 1, 1)
