"""`interlace tune`: a table, its chart, and where it is kept."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlace.cli import tune as command
from interlace.cli.chart import chart
from support.fake_gpus import FakeGpus
from support.tiny_models import make_gguf, make_model
from tokenweave.kernels import ReferenceKernels

Invoke = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path))
    return tmp_path


def tune(invoke: Invoke, model: Path, *arguments: str) -> Any:
    few = ("--tp", "2", "--threads", "1", "--max-tokens", "60", "--seconds", "0.1")
    return invoke("tune", str(model), *few, *arguments)


def test_it_prints_the_waves_and_keeps_the_table(invoke: Invoke, tiny_model: Path, cache: Path) -> None:
    result = tune(invoke, tiny_model)
    assert result.exit_code == 0, result.output
    assert "every step up is one more wave" in result.stdout
    assert "projections" in result.stdout
    (path,) = (cache / "tune").glob("*.json")
    assert path.name in result.stdout.replace("\n", "")


def test_json_is_the_table(invoke: Invoke, tiny_model: Path) -> None:
    result = tune(invoke, tiny_model, "--json", "--dtype", "float32")
    found = json.loads(result.stdout)
    assert found["key"]["dtype"] == "float32"
    assert len(found["key"]["ranks"]) == 2
    (kind,) = found["kinds"]
    assert kind["mlp"]["tokens"][-1] == 60
    assert json.loads(Path(found["path"]).read_text())["kinds"] == found["kinds"]


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_measured(
    invoke: Invoke, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "file"))
    result = tune(invoke, tiny_model)
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert "INTERLACE_CACHE" in result.stderr


def test_a_table_that_cannot_be_kept_is_printed(
    invoke: Invoke, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tokenweave.wave_table.WaveTable.save", full)
    result = tune(invoke, tiny_model, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["path"] is None
    assert "No space left" in result.stderr


def test_layers_that_differ_are_shown_apart_and_their_plan_is_priced(invoke: Invoke, tmp_path: Path) -> None:
    """Gemma 3 has a window in some layers, and the same MLP in all."""
    model = make_model(tmp_path / "model", "gemma3")
    shown = tune(invoke, model, "--dtype", "float32").stdout
    assert "layers with a window of 24 keys, with an MLP of" in shown
    assert "layers that see all keys, with an MLP of" in shown
    assert shown.count("every step up is one more wave") == 1
    assert shown.count("projections") == 2
    plan = invoke("plan", "show", str(model), "--tp", "2", "--dtype", "float32", "--split", "none", "--tuned")
    assert plan.exit_code == 0, plan.output
    assert "this machine's wave table" in plan.stdout


def test_a_files_own_blocks_are_measured_and_priced(invoke: Invoke, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    make_gguf(model, "Q4_K", formats={"down": "Q6_K"})
    result = tune(invoke, model, "--quantize", "stored", "--dtype", "float32", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["key"]["kernels"].endswith(", stored+q4_k+q6_k weights")
    show = ("plan", "show", str(model), "--tp", "2", "--dtype", "float32", "--tuned")
    plan = invoke(*show, "--quantize", "stored")
    assert plan.exit_code == 0, plan.output
    other = invoke(*show, "--quantize", "int8")
    assert other.exit_code == 1
    assert "interlace tune MODEL --tp 2 --dtype float32 --quantize int8" in other.stderr.replace("\n", " ")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that the command finds, played by the processor."""
    monkeypatch.setattr("interlace.engine.ranks.device.resolve_device", lambda config: "cuda")
    monkeypatch.setattr("interlace.engine.ranks.connect.kernels_for", lambda *_: ReferenceKernels(1))
    monkeypatch.setattr(
        "interlace.engine.weaving.gpu_stages.CudaGpus", lambda size, kernels: FakeGpus(size, num_sms=132)
    )


@pytest.mark.usefixtures("two_gpus")
def test_a_gpus_table_has_the_ctas_of_reductions_and_prices_plans(invoke: Invoke, tiny_model: Path) -> None:
    job = (str(tiny_model), "--tp", "2", "--device", "cuda", "--dtype", "float32")
    show = ("plan", "show", *job, "--tuned", "--tokens", "16", "--split", "8")
    missing = invoke(*show)
    assert missing.exit_code == 1
    assert "interlace tune MODEL --tp 2 --dtype float32 --device cuda" in missing.stderr.replace("\n", " ")

    shown = invoke("tune", *job, "--max-tokens", "16", "--seconds", "0.1")
    assert shown.exit_code == 0, shown.output
    assert "of the host to issue a step" in shown.stdout
    table = shown.stdout.partition("a reduction, ms, by the CTAs that it takes")[2]
    heading, sixteen = table.splitlines()[1:3]
    assert heading.split() == ["tokens", "2", "4", "8", "16", "whole", "woven"]
    assert sixteen.split()[:6] == ["16", "64.000", "16.000", "16.000", "16.000", "4"]

    plan = invoke(*show)
    assert plan.exit_code == 0, plan.output
    assert "this machine's wave table, lanes are streams of" in plan.stdout.replace("\n", " ")


def test_cuda_without_a_gpu_is_an_error_with_the_reason(invoke: Invoke, tiny_model: Path) -> None:
    result = tune(invoke, tiny_model, "--device", "cuda")
    assert result.exit_code == 1
    assert "device='cuda'; it cannot be had here" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("arguments", [("--tp", "0"), ("--max-tokens", "0"), ("--seconds", "0")])
def test_nonsense_is_refused(invoke: Invoke, tiny_model: Path, arguments: tuple[str, ...]) -> None:
    result = invoke("tune", str(tiny_model), *arguments)
    assert result.exit_code == 1
    assert "expected positive numbers" in result.stderr


def test_a_chart_has_its_extremes_in_its_corners() -> None:
    lines = chart([(1, 10), (2, 20)], width=10, height=4)
    assert lines[0].startswith("20 │")
    assert lines[0].endswith("⠈")
    assert lines[3].startswith("10 │⡀")
    assert lines[-1].split() == ["1", "2"]


def test_a_chart_of_one_point_is_drawn() -> None:
    assert any("⡀" in line for line in chart([(5, 5)], width=4, height=2))
