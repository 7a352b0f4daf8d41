"""The benchmark of calls checks the bytes, and reports every way."""

from __future__ import annotations

import pytest

from benchmarks.memory import calls
from emucxl.errors import CorruptError


def test_a_quick_run_reports_every_way() -> None:
    seen: list[float] = []
    report = calls.run(quick=True, progress=lambda fraction, _: seen.append(fraction))
    assert report.name == "calls"
    assert {row[0] for row in report.rows} >= {
        "buffer.read(64, offset)",
        "ctypes emx_read",
        "an empty lambda",
    }
    assert all(len(row) == len(report.columns) for row in report.rows)
    assert seen[-1] == 1.0
    assert "the bound is 500 ns" in report.notes[1]


def test_bytes_that_differ_are_noticed() -> None:
    with pytest.raises(CorruptError, match="other bytes"):
        calls._check({"liar": lambda: b"other"}, bytearray(3), b"abc")
