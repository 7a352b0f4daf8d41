"""`interlace tune`: a table, its chart, and where it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.chart import chart

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
    assert found["mlp"]["tokens"][-1] == 60
    assert json.loads(Path(found["path"]).read_text())["mlp"] == found["mlp"]


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
