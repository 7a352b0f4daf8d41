from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenweave import native

SECTIONS = ("machine", "software", "kernels", "cuda", "communicators", "models")


def test_json_has_the_sections_of_the_text(invoke: Any) -> None:
    report = json.loads(invoke("doctor", "--json").stdout)
    assert list(report) == [*SECTIONS, "problems"]
    text = invoke("doctor").stdout
    for section in SECTIONS:
        assert f"{section}\n" in text
    assert text.endswith("Interlace can run here.\n")


def test_every_communicator_is_available_or_says_why_not(invoke: Any) -> None:
    report = json.loads(invoke("doctor", "--json").stdout)
    assert set(report["communicators"]) == {"null", "thread", "shm", "torch", "nccl", "symm_mem"}
    for said in report["communicators"].values():
        assert said == "available" or said.startswith("unavailable: ")


def test_a_missing_native_library_is_said_and_is_no_problem(
    invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "unavailable_reason", lambda: "it was not built")
    result = invoke("doctor", "--json")
    kernels = json.loads(result.stdout)["kernels"]
    assert kernels["native"] == "unavailable: it was not built"
    assert kernels["auto"] == "reference"
    assert result.exit_code == 0


def test_a_machine_without_torch_is_a_problem(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "problem: torch cannot be imported" in result.stdout


def test_fetched_models_are_listed(invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    (tmp_path / "models" / "smollm2" / "model.gguf").write_bytes(bytes(1_500_000))
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path))
    models = json.loads(invoke("doctor", "--json").stdout)["models"]
    assert models["fetched"] == ["smollm2 (1.5 MB)"]


def test_paths_are_told_from_where_the_reader_is(
    invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path)
    assert f"{'cache':<16} ./here/models\n" in invoke("doctor").stdout


def test_measured_limits_are_above_zero(invoke: Any) -> None:
    report = json.loads(invoke("doctor", "--measure", "--json").stdout)
    if native.unavailable_reason() is not None:
        pytest.skip("limits are measured by the native library, which is not here")
    for said in report["limits"].values():
        assert float(said.split()[0].replace(",", "")) > 0
