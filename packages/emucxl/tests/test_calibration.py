"""Calibration: what is measured, and how it is kept."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest

import emucxl
from emucxl import calibration, calibration_cache
from emucxl.calibration import Calibration
from emucxl.errors import ArgumentError, TooFastError
from emucxl.timing import Timing

KEPT = Calibration(100, 100, 10, 10, 20, 50_000, 60)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "agrees", lambda kept: True)
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


def changed(content: dict[str, Any], **figures: object) -> dict[str, Any]:
    kept = {cores: {**each, **figures} for cores, each in content["calibrations"].items()}
    return {**content, "calibrations": kept}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {**content, "format": 0},
        lambda content: {**content, "format": 1},
        *(
            lambda content, name=name: {**content, "machine": {**content["machine"], name: "another"}}
            for name in ("processor", "microcode", "frequency", "kernel", "boot", "library")
        ),
        lambda content: {**content, "calibrations": {}},
        lambda content: {**content, "calibrations": []},
        lambda content: changed(content, read_latency_ns=-1),
        lambda content: changed(content, read_latency_ns="fast"),
        lambda content: changed(content, unknown=1),
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


def test_what_cannot_be_written_whole_leaves_no_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(content: object, file: TextIO, indent: int) -> None:
        file.write("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(calibration, "measure", lambda: KEPT)
    monkeypatch.setattr(json, "dump", fill_the_disk)
    assert calibration.of_this_machine() == KEPT
    assert list(cache.parent.iterdir()) == []


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "1"])
def test_senseless_figures_are_refused(value: float) -> None:
    with pytest.raises(ArgumentError, match="read_latency_ns"):
        replace(KEPT, read_latency_ns=value)


def test_error_that_cannot_be_is_refused() -> None:
    assert replace(KEPT, latency_error=-0.02).latency_error == -0.02
    with pytest.raises(ArgumentError, match="latency_error"):
        replace(KEPT, latency_error=-2)


# ---- which one is used


def test_each_set_of_cores_has_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = replace(KEPT, num_cores=1), replace(KEPT, num_cores=2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    monkeypatch.setattr(calibration, "measure", lambda: one)
    assert calibration.of_this_machine() == one
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 3})
    monkeypatch.setattr(calibration, "measure", lambda: two)
    assert calibration_cache.cores() == "0-1,3"
    assert calibration.of_this_machine() == two
    monkeypatch.setattr(calibration, "measure", lambda: pytest.fail("both are kept"))
    assert calibration.of_this_machine() == two
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert calibration.of_this_machine() == one


def test_only_the_newest_sets_of_cores_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for core in range(40):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, core=core: {core})
        calibration.keep(KEPT)
    assert list(json.loads(cache.read_text())["calibrations"]) == [str(core) for core in range(24, 40)]


def test_one_that_reads_no_longer_agree_with_is_measured_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration.keep(KEPT)
    fresh = replace(KEPT, exit_overhead_ns=11)
    monkeypatch.setattr(calibration, "_agreed", None)
    monkeypatch.setattr(calibration, "agrees", lambda kept: False)
    monkeypatch.setattr(calibration, "measure", lambda: fresh)
    assert calibration.of_this_machine() == fresh == calibration.cached()


def test_one_that_agreed_is_not_tried_out_twice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Calibration] = []
    calibration.keep(KEPT)
    monkeypatch.setattr(calibration, "_agreed", None)
    monkeypatch.setattr(calibration, "agrees", lambda kept: asked.append(kept) or True)
    assert [calibration.of_this_machine() for _ in range(3)] == [KEPT] * 3
    assert asked == [KEPT]


def test_a_latency_that_no_machine_has_disagrees_with_reads(measured: Calibration) -> None:
    assert not calibration.agrees(replace(measured, read_latency_ns=1e12))


@pytest.mark.parametrize(("early_ns", "agrees"), [(0.0, True), (10.0, True), (100.0, False)])
def test_delays_that_end_early_disagree_with_reads(
    monkeypatch: pytest.MonkeyPatch, early_ns: float, agrees: bool
) -> None:
    def reads_that_end_early(
        kept: Calibration, target_ns: float, num_samples: int, size_bytes: int = 0
    ) -> calibration.Accuracy:
        early = kept.exit_overhead_ns - KEPT.exit_overhead_ns
        median_ns = max(target_ns, KEPT.read_latency_ns) - early
        return calibration.Accuracy(target_ns, median_ns, median_ns, num_samples)

    monkeypatch.setattr(calibration, "measure_latency", reads_that_end_early)
    assert calibration.agrees(replace(KEPT, exit_overhead_ns=KEPT.exit_overhead_ns + early_ns)) is agrees


@pytest.mark.parametrize(("read_latency_ns", "agrees"), [(190, True), (250, True), (2836, False)])
def test_one_taken_while_the_machine_was_slowed_down_disagrees(
    monkeypatch: pytest.MonkeyPatch, read_latency_ns: float, agrees: bool
) -> None:
    def reads_of_190_ns(
        kept: Calibration, target_ns: float, num_samples: int, size_bytes: int = 0
    ) -> calibration.Accuracy:
        median_ns = max(target_ns, 190.0)
        return calibration.Accuracy(target_ns, median_ns, median_ns, num_samples)

    monkeypatch.setattr(calibration, "measure_latency", reads_of_190_ns)
    assert calibration.agrees(replace(KEPT, read_latency_ns=read_latency_ns)) is agrees


def test_one_that_misses_the_promise_is_measured_again_and_the_best_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = [replace(KEPT, least_latency_ns=ns, latency_error=0.01) for ns in (1100.0, 600.0, 2100.0)]
    found = iter([*off, pytest.fail])
    monkeypatch.setattr(calibration, "_measure_once", lambda budget_s: next(found))
    assert calibration.measure() == off[1]
    kept = iter([off[0], KEPT, pytest.fail])
    monkeypatch.setattr(calibration, "_measure_once", lambda budget_s: next(kept))
    assert calibration.measure() == KEPT


def test_latency_that_this_machine_misses_is_refused_with_the_least_that_it_keeps() -> None:
    off = replace(KEPT, least_latency_ns=600)
    assert off.promised_latency_ns == 600
    assert KEPT.promised_latency_ns == 350
    off.check(Timing(600, 700))
    off.check(Timing())
    KEPT.check(Timing(101, 101))
    for timing in (Timing(599, 700), Timing(700, 599)):
        with pytest.raises(TooFastError, match="within 5 % from 600 ns on"):
            off.check(timing)
