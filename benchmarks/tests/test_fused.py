"""`make bench fused` tells its figures, and its systems agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels.fused import (
    FUSED,
    GLOO,
    HIDDEN_SIZE,
    UNFUSED,
    VLLM,
    FusedFigures,
    FusedOptions,
    report,
)
from benchmarks.peers.collective import RankOfSystems
from emucxl.bench.harness import Samples
from interlace.errors import BenchError

FOUND = FusedFigures(
    "bfloat16",
    1024,
    {FUSED: Samples((1e-3, 2e-3)), UNFUSED: Samples((3e-3, 6e-3)), VLLM: Samples((2e-3, 4e-3))},
    Samples((100e9, 50e9)),
)


def test_gains_are_taken_round_by_round() -> None:
    assert FOUND.gain(UNFUSED).values == (3.0, 3.0)
    assert FOUND.gain(VLLM).values == (2.0, 2.0)


def test_bandwidth_counts_what_must_be_read_and_written() -> None:
    assert FOUND.moved_bytes == 1024 * HIDDEN_SIZE * (
        2 * 2 + 4 + 4 + 2
    )  # two parts, the residual twice, the answer
    assert FOUND.bytes_per_s == pytest.approx(FOUND.moved_bytes / 1.5e-3)
    assert FOUND.of_limit is not None
    assert FOUND.of_limit.values == pytest.approx([FOUND.moved_bytes / 1e8] * 2)


def test_missed_targets_are_told() -> None:
    made = report(FusedOptions(), [FOUND], {})
    assert any("bfloat16 1024: vLLM / fused 2.00 (wanted 3)" in note for note in made.notes)
    assert any("of the limit 0.59 (wanted 0.8)" in note for note in made.notes)
    assert not any("unfused / fused 3.00" in note for note in made.notes)


def test_a_system_that_gives_something_else_is_not_timed() -> None:
    class Wrong(RankOfSystems):
        rank, size = 0, 2

        def prepare(
            self, system: str, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
        ) -> Callable[[], tuple[torch.Tensor, range]]:
            return lambda: (hidden, range(len(hidden)))

    with pytest.raises(ArithmeticError, match="wrong in float32 is off by"):
        Wrong().begin("wrong", "float32", 3, 8)


def test_no_shapes_are_refused() -> None:
    with pytest.raises(BenchError, match="expected at least one of each"):
        FusedOptions(tokens=())


@pytest.mark.slow
def test_it_runs(tmp_path: Path, invoke: Callable[..., Any]) -> None:
    result = invoke("fused", "--quick", "--rounds", "1", "--json", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["results"]["shapes"]
    assert [shape["shape"][0] for shape in found] == [16, 256] * 2
    assert all(set(shape["seconds"]) == {FUSED, UNFUSED, GLOO} for shape in found)
    assert list(tmp_path.glob("*/fused-quick.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "nothing to measure"), ("gpu", "expected cpu or cuda")]
)
def test_a_device_that_is_not_there_is_an_error(
    invoke: Callable[..., Any], device: str, message: str
) -> None:
    result = invoke("fused", "--device", device)
    assert result.exit_code == 1
    assert message in result.stderr
