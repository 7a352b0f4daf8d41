from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emucxl.bench.harness import Report
from emucxl.cli import bench

REPORT = Report("demo", "A demonstration", ("what", "ns"), (("read", "80"),), ("a note",), {"read_ns": 80.0})


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A benchmark named demo; the list holds whether each run was quick."""
    runs: list[Any] = []

    def run(quick: bool, progress: Any) -> Report:
        progress(0.5, "half")
        runs.append(quick)
        return REPORT

    monkeypatch.setattr(
        bench, "benchmarks", lambda: {"demo": SimpleNamespace(NAME="demo", SUMMARY="Demonstrates.", run=run)}
    )
    return runs


def test_every_benchmark_is_listed_with_what_it_does(invoke: Any) -> None:
    listed = json.loads(invoke("bench", "--list", "--json").stdout)["benchmarks"]
    assert {"kv", "queue"} <= set(listed)
    assert all(summary.endswith(".") for summary in listed.values())
    text = invoke("bench", "--list").stdout
    assert all(f"{name} " in text for name in listed)


def test_the_table_is_printed(invoke: Any, demo: list[Any]) -> None:
    result = invoke("bench", "demo")
    assert result.exit_code == 0
    for text in ("A demonstration", "read", "80", "a note"):
        assert text in result.stdout
    assert demo == [False]


def test_json_is_one_object_with_machine_and_commit(invoke: Any, demo: list[Any]) -> None:
    found = json.loads(invoke("bench", "demo", "--quick", "--json").stdout)
    assert (found["benchmark"], found["is_quick"], found["results"]) == ("demo", True, {"read_ns": 80.0})
    assert {"machine", "source"} <= set(found)
    assert demo == [True]


def test_results_are_written_where_asked(invoke: Any, demo: list[Any], tmp_path: Path) -> None:
    result = invoke("bench", "demo", "--output", str(tmp_path))
    path = next(tmp_path.glob("*/memory/demo.json"))
    assert result.stderr == f"written: {path}\n"
    assert json.loads(path.read_text())["benchmark"] == "demo"


def test_an_unknown_benchmark_is_told_which_there_are(invoke: Any) -> None:
    result = invoke("bench", "nonesuch")
    assert result.exit_code == 2
    assert "got the benchmark 'nonesuch'; expected one of" in result.stderr
