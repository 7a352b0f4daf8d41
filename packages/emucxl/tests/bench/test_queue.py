from __future__ import annotations

import json
from typing import Any

import pytest

from emucxl import native
from emucxl.bench import queue
from emucxl.errors import CorruptError

if native.unavailable_reason() is not None:
    pytest.skip("no native core", allow_module_level=True)


def test_both_orders_are_run_and_modelled_figures_say_so() -> None:
    report = queue.run(quick=True)
    results: Any = report.results
    json.dumps(results)
    plain = [case for case in results["cases"] if case["remote_latencies_of"] is None]
    assert [case["first"] for case in plain] == ["local", "remote"]
    assert all(case["enqueue_remote"]["kind"] == "measured" for case in plain)
    modelled = [case for case in results["cases"] if case["remote_latencies_of"] is not None]
    assert all(case["enqueue_remote"]["kind"] == "modelled" for case in modelled)
    assert all(case["enqueue_local"]["kind"] == "measured" for case in modelled)
    assert report.columns[4].endswith("modelled")


def test_the_published_figures_are_shown_for_the_order_that_was_published() -> None:
    rows = {row[0]: row[-1] for row in queue.run(quick=True).rows}
    assert rows["enqueue, local first"] == "33.5 / 37.8"
    assert rows["enqueue, remote first"] == "not run"


def test_a_wrong_value_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue.Queue, "dequeue", lambda self: b"wrong")
    with pytest.raises(CorruptError, match="other values"):
        queue.run(quick=True)


def test_a_machine_that_is_too_slow_for_every_preset_still_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_can_play", lambda name: False)
    report = queue.run(quick=True)
    assert {row[4] for row in report.rows} == {"-"}
    assert "nothing was modelled" in report.notes[1]
