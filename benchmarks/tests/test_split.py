"""`make bench split`: the splits that it sweeps and the figures that it tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.weave.split import SplitFigures, sweep
from emucxl.bench.harness import Samples
from support.tiny_models import make_model
from tokenweave.split import candidates


@given(num_tokens=st.integers(100, 5000))
def test_a_sweep_is_aligned_and_holds_every_candidate(num_tokens: int) -> None:
    splits = sweep(num_tokens, 24)
    assert set(candidates(num_tokens, 24)) <= set(splits)
    assert all(split % 24 == 0 and 0 < split < num_tokens for split in splits)
    assert len(splits) < 40


def test_the_chosen_split_is_compared_round_by_round_with_the_sweeps_winner() -> None:
    swept = {None: Samples((9.0,)), 24: Samples((9.0,)), 48: Samples((1.0,)), 72: Samples((2.0,))}
    finals = {None: Samples((4.0, 8.0)), 24: Samples((3.0, 6.0)), 48: Samples((2.0, 4.0))}
    found = SplitFigures(100, 24, swept, finals, {None: 4.0, 24: 4.5, 48: 2.0})
    assert found.best == 48
    assert found.over_best.values == (1.5, 1.5)
    assert found.over_unsplit.values == (0.75, 0.75)
    assert found.simulator_error == 0.0


@pytest.mark.slow
def test_it_runs(tmp_path: Path, invoke: Callable[..., Any]) -> None:
    model = make_model(tmp_path / "model", "llama_9_heads")
    arguments = ("--tokens", "120", "--rounds", "1", "--dtype", "float32", "--link", "10MB/s,5us")
    result = invoke("split", "--model", str(model), *arguments, "--json", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (row,) = found["results"]["tokens"]
    assert row["num_tokens"] == 120
    assert {split["split"] for split in row["splits"]} >= {None, row["chosen"], row["best"]}
    assert {split["split"] for split in row["finals"]} == {None, row["chosen"], row["best"]}
    assert list(tmp_path.glob("*/split.json"))
