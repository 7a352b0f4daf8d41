from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emucxl import calibration
from emucxl.errors import TooFastError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_json_has_the_figures_and_the_error_that_is_left(invoke: Any) -> None:
    found = json.loads(invoke("calibrate", "--budget", "0.2", "--json").stdout)
    assert list(found) == ["calibration", "kept_at", "verification"]
    assert found["calibration"]["read_latency_ns"] > 0
    assert found["calibration"]["read_bandwidth_gbps"] > 0
    targets = [accuracy["target_ns"] for accuracy in found["verification"]]
    kept = calibration.Calibration(**found["calibration"])
    assert targets[0] == kept.promised_latency_ns >= kept.read_latency_ns + 250
    assert targets[1:] == [1_000, 10_000, 100_000]
    for accuracy in found["verification"]:
        assert accuracy["kind"] == "modelled"
        assert accuracy["error"] == accuracy["p50_ns"] / accuracy["target_ns"] - 1


def test_what_was_measured_is_kept(invoke: Any) -> None:
    found = json.loads(invoke("calibrate", "--budget", "0.1", "--json").stdout)
    assert Path(found["kept_at"]).exists()
    kept = calibration.cached()
    assert kept is not None
    assert kept.read_latency_ns == found["calibration"]["read_latency_ns"]


def test_the_text_names_measured_and_modelled(invoke: Any) -> None:
    text = invoke("calibrate", "--budget", "0.1").stdout
    assert "This machine, measured" in text
    assert "Modelled reads of 64 bytes" in text
    assert "least latency that is promised" in text
    assert "its error, when tried out" in text
    assert "GB/s" in text


def test_a_machine_that_can_not_is_told_in_one_line(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(budget_s: float) -> Any:
        raise TooFastError("this machine is slower than that")

    monkeypatch.setattr(calibration, "measure", refuse)
    result = invoke("calibrate")
    assert (result.exit_code, result.stderr) == (1, "error: this machine is slower than that\n")
