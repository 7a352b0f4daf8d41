from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emucxl import calibration, doctor, native


def report(invoke: Any) -> dict[str, Any]:
    return json.loads(invoke("doctor", "--json").stdout)


def test_json_has_the_sections_of_the_text(invoke: Any) -> None:
    found = report(invoke)
    sections = ["tiers", "machine", "library", "providers", "numa", "cxl", "timing"]
    assert list(found) == [*sections, "problems"]
    text = invoke("doctor").stdout
    for section in sections:
        assert f"{section}\n" in text
    assert text.endswith("emucxl can work here.\n")


def test_every_provider_is_available_or_says_why_not(invoke: Any) -> None:
    providers = report(invoke)["providers"]
    assert list(providers) == ["anon", "shm", "numa", "dax", "null"]
    for provider in providers.values():
        assert provider["available"] == (provider["reason"] is None)
    assert providers["anon"]["available"]


def test_a_tier_is_said_to_be_real_or_modelled(invoke: Any) -> None:
    tiers = report(invoke)["tiers"]
    assert list(tiers) == ["local", "other NUMA node", "cxl"]
    assert all(text.startswith(("real", "modelled")) for text in tiers.values())


def test_a_library_that_can_not_be_loaded_is_a_problem(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unavailable_reason", lambda: "cannot load the native core")
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "problem: cannot load the native core" in result.stdout
    assert result.stdout.endswith("emucxl cannot work here.\n")
    assert report(invoke)["providers"] == {}


def test_whether_a_calibration_is_kept_is_told_and_nothing_is_measured(
    invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert report(invoke)["timing"]["calibration"] is None
    assert "none yet" in invoke("doctor").stdout
    assert list(tmp_path.rglob("*")) == []
    calibration.of_this_machine()
    assert report(invoke)["timing"]["calibration"]["read_latency_ns"] > 0
    assert "ns read" in invoke("doctor").stdout


def test_a_calibration_that_was_disturbed_is_told_with_what_to_do(
    invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = calibration.Calibration(90, 90, 9, 9, 20, 50, 10)
    monkeypatch.setattr(calibration, "cached", lambda: quiet)
    assert "disturbed" not in invoke("doctor").stdout
    monkeypatch.setattr(
        calibration, "cached", lambda: replace(quiet, latency_error=0.2, least_latency_ns=900.0)
    )
    text = invoke("doctor").stdout
    assert "latencies below 900 ns are not modelled exactly; run `emucxl calibrate`" in text


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two NUMA nodes, one of them CXL memory, and a dax device."""
    files = {
        "sys/devices/system/node/node0/cpulist": "0-7",
        "sys/devices/system/node/node0/distance": "10 21",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:  1000 kB\nNode 0 MemFree:  10 kB",
        "sys/devices/system/node/node10/cpulist": "",
        "sys/devices/system/node/node10/distance": "21 10",
        "sys/devices/system/node/node10/meminfo": "Node 10 MemTotal:  2000 kB",
        "sys/bus/cxl/devices/mem0/ram/size": "0x10000000",
        "sys/bus/cxl/devices/mem0/numa_node": "1",
        "sys/bus/cxl/devices/region0/size": "0x10000000",
        "sys/bus/dax/devices/dax0.0/size": "268435456",
        "dev/dax0.0": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(doctor, "SYSTEM", tmp_path / "sys")
    monkeypatch.setattr(doctor, "DEVICES", tmp_path / "dev")
    return tmp_path


def test_nodes_and_devices_are_found(machine: Path, invoke: Any) -> None:
    found = report(invoke)
    assert found["numa"]["memory_only_nodes"] == [10]
    assert found["numa"]["nodes"][1] == {
        "node": 10, "cores": "", "memory_bytes": 2_048_000, "distances": [21, 10],
    }  # fmt: skip
    assert found["cxl"]["memory_devices"] == [
        {"name": "mem0", "volatile_bytes": 1 << 28, "persistent_bytes": None, "numa_node": 1}
    ]
    assert found["cxl"]["regions"] == ["region0"]
    assert found["cxl"]["dax_devices"] == [
        {"path": str(machine / "dev/dax0.0"), "size_bytes": 1 << 28, "may_open": True}
    ]
    assert found["tiers"]["cxl"].startswith(f"real, through {machine / 'dev/dax0.0'}")
    assert "unknown persistent" in invoke("doctor").stdout


def test_a_node_with_memory_and_no_cores_is_taken_for_cxl(machine: Path, invoke: Any) -> None:
    (machine / "dev/dax0.0").unlink()
    assert report(invoke)["tiers"]["cxl"].startswith("real, on NUMA node 10")


def test_cxl_devices_that_are_not_set_up_are_told(machine: Path, invoke: Any) -> None:
    (machine / "dev/dax0.0").unlink()
    (machine / "sys/devices/system/node/node10/cpulist").write_text("8-15\n")
    assert "there are CXL devices, but" in report(invoke)["tiers"]["cxl"]


def test_a_machine_without_any_of_it_says_what_is_missing(
    invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SYSTEM", tmp_path)
    monkeypatch.setattr(doctor, "DEVICES", tmp_path)
    found = report(invoke)
    assert found["tiers"]["cxl"].startswith("modelled: there is no CXL device")
    assert "no memory-only NUMA node" in found["tiers"]["cxl"]
    assert (found["numa"]["nodes"], found["cxl"]["driver"]) == ([], False)
    assert invoke("doctor").exit_code == 0
