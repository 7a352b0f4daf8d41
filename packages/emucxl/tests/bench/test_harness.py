from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from emucxl.bench import harness
from emucxl.bench.harness import Report, Samples, interleaved
from emucxl.errors import ArgumentError

REPORT = Report("demo", "A demonstration", ("what", "ns"), (("read", "80"),), ("a note",), {"read_ns": 80.0})


def test_median_and_quartiles() -> None:
    samples = Samples((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (samples.low, samples.median, samples.high) == (2.0, 3.0, 4.0)
    assert samples.text(1) == "3.0 (2.0-4.0)"


def test_a_single_sample_is_its_own_quartile() -> None:
    assert (Samples((7.0,)).low, Samples((7.0,)).median, Samples((7.0,)).high) == (7.0, 7.0, 7.0)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ArgumentError, match="no samples"):
        Samples(())


def test_a_ratio_is_taken_within_a_round() -> None:
    assert Samples((2.0, 40.0)).over(Samples((1.0, 20.0))).values == (2.0, 2.0)


def test_every_round_calls_each_measure_once_and_another_one_begins() -> None:
    calls: list[str] = []
    measures = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "abc"}
    found = interleaved(measures, 3)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert found["a"].values == (1.0, 6.0, 8.0)


def test_progress_ascends_to_one() -> None:
    seen: list[float] = []
    interleaved({"a": lambda: 1.0, "b": lambda: 1.0}, 2, lambda fraction, _: seen.append(fraction))
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("measures", "rounds"), [({}, 1), ({"a": lambda: 1.0}, 0)])
def test_nothing_to_measure_is_refused(measures: dict, rounds: int) -> None:
    with pytest.raises(ArgumentError, match="at least one of each"):
        interleaved(measures, rounds)


def test_a_record_says_what_ran_where(tmp_path: Path) -> None:
    path = harness.write_report(REPORT, quick=False, output=tmp_path)
    assert path.relative_to(tmp_path).parts[1:] == ("memory", "demo.json")
    found = json.loads(path.read_text())
    assert found["benchmark"] == "demo"
    assert found["results"] == {"read_ns": 80.0}
    assert {"commit", "date", "is_modified"} == set(found["source"])
    assert found["machine"]["cores"] >= 1


def test_a_quick_run_never_replaces_a_full_one(tmp_path: Path) -> None:
    assert harness.write_report(REPORT, quick=True, output=tmp_path).name == "demo-quick.json"


def test_a_file_is_written_where_it_is_named(tmp_path: Path) -> None:
    assert harness.write_report(REPORT, quick=True, output=tmp_path / "x.json") == tmp_path / "x.json"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot write"):
        harness.write_report(REPORT, quick=True, output=tmp_path / "file" / "x.json")


def test_the_table_has_the_rows_and_the_notes() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(harness.table(REPORT))
    for text in ("A demonstration", "read", "80", "a note"):
        assert text in captured.get()


def test_a_narrow_table_breaks_figures_and_cuts_none_off() -> None:
    console = Console(width=24)
    report = Report("demo", "A demonstration", ("what", "s"), (("a workload", "(3.685-3.687)"),), (), {})
    with console.capture() as captured:
        console.print(harness.table(report))
    lines = [line.split("│") for line in captured.get().splitlines() if line.count("│") == 3]
    assert "".join(cells[2].strip() for cells in lines) == "(3.685-3.687)"
