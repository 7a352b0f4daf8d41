"""Calibration: what is measured, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import emucxl
from emucxl import calibration
from emucxl.calibration import Calibration
from emucxl.errors import ArgumentError
from emucxl.timing import Timing

KEPT = Calibration(100, 100, 10, 10, 20, 50_000, 60)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "emucxl" / "calibration.json"


@pytest.fixture(scope="module")
def measured() -> Calibration:
    return calibration.measure(0.1)


def test_measuring_finds_figures_of_a_machine(measured: Calibration) -> None:
    assert measured.read_latency_ns > 1
    assert measured.write_latency_ns > 1
    assert 0 < measured.read_bandwidth_gbps < 10_000
    assert 0 < measured.write_bandwidth_gbps < 10_000
    assert measured.clock_overhead_ns > 0
    assert measured.sleep_overshoot_ns > 0
    assert measured.num_cores >= 1


def test_real_delays_are_never_short_of_their_target(measured: Calibration) -> None:
    target_ns = 20 * measured.read_latency_ns + 20_000
    with emucxl.Context(calibration=replace(measured, exit_overhead_ns=0)) as context:
        buffer = context.add_tier("far", 1 << 20, timing=Timing(target_ns, target_ns)).alloc(64)
        for _ in range(50):
            begin_ns = context.now_ns
            buffer.read(64)
            assert context.now_ns - begin_ns >= target_ns
        buffer.free()


def test_the_report_measures_what_was_asked_for(measured: Calibration) -> None:
    (found,) = measured.report(num_samples=50, targets_ns=[200_000])
    assert (found.target_ns, found.num_samples) == (200_000, 50)
    assert found.p99_ns >= found.p50_ns >= 199_000 - measured.exit_overhead_ns
    assert found.error == pytest.approx(found.p50_ns / 200_000 - 1)


@pytest.mark.parametrize("budget_s", [0, 0.05, 11, -1])
def test_senseless_budgets_are_refused(budget_s: float) -> None:
    with pytest.raises(ArgumentError, match="budget_s"):
        calibration.measure(budget_s)


def test_the_first_one_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(calibration, "measure", lambda: asked.append(1) or KEPT)
    assert calibration.cached() is None
    assert calibration.of_this_machine() == KEPT
    assert calibration.of_this_machine() == KEPT
    assert calibration.cached() == KEPT
    assert len(asked) == 1
    assert list(cache.parent.iterdir()) == [cache]


def damaged(cache: Path, change: object) -> None:
    calibration.keep(KEPT)
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps(change(content)))  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {**content, "format": 0},
        lambda content: {**content, "machine": {**content["machine"], "kernel": "another"}},
        lambda content: {**content, "machine": {**content["machine"], "processor": "another"}},
        lambda content: {**content, "calibration": {}},
        lambda content: {**content, "calibration": {**content["calibration"], "read_latency_ns": -1}},
        lambda content: {**content, "calibration": {**content["calibration"], "read_latency_ns": "fast"}},
        lambda content: {**content, "calibration": {**content["calibration"], "unknown": 1}},
        lambda content: [],
        lambda content: "text",
    ],
)
def test_what_is_damaged_or_of_another_machine_is_measured_again(
    change: object, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(cache, change)
    fresh = replace(KEPT, read_latency_ns=123)
    monkeypatch.setattr(calibration, "measure", lambda: fresh)
    assert calibration.cached() is None
    assert calibration.of_this_machine() == fresh == calibration.cached()


def test_bytes_that_are_no_json_are_measured_again(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"\xff\x00{")
    assert calibration.cached() is None


def test_a_place_that_cannot_be_written_is_no_failure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where the directory would be")
    monkeypatch.setattr(calibration, "measure", lambda: KEPT)
    assert calibration.of_this_machine() == KEPT
    assert calibration.cached() is None


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "1"])
def test_senseless_figures_are_refused(value: float) -> None:
    with pytest.raises(ArgumentError, match="read_latency_ns"):
        replace(KEPT, read_latency_ns=value)
