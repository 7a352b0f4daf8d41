from __future__ import annotations

from benchmarks.memory import copy


def test_every_size_and_operation_is_set_against_memcpy(monkeypatch) -> None:
    monkeypatch.setattr(copy, "QUICK_SIZES", (64, 4096))
    monkeypatch.setattr(copy, "QUICK_BYTES_PER_SAMPLE", 1 << 16)
    report = copy.run(quick=True)
    assert [row[0] for row in report.rows] == [
        "read 64 B",
        "write 64 B",
        "copy 64 B",
        "read 4 KiB",
        "write 4 KiB",
        "copy 4 KiB",
    ]
    for result in report.results.values():
        assert result["fraction_of_memcpy"]["median"] > 0
        assert result["ns_per_call"]["kind"] == "measured"


def test_progress_ascends_to_one() -> None:
    seen: list[float] = []
    copy.run(quick=True, progress=lambda fraction, _: seen.append(fraction))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
