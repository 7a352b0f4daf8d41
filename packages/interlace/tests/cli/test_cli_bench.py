"""`interlace bench`: its table and its record, and the check before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emucxl.bench.harness import Samples
from interlace.cli.bench import command, workload
from interlace.cli.bench.generation import generate
from interlace.cli.bench.workload import ServeWorkload
from interlace.engine.config import EngineConfig
from interlace.engine.engine import Engine
from interlace.errors import BenchError
from support.engine_fakes import FakeRanks

Invoke = Callable[..., Any]
SHORT = (ServeWorkload("prefill", 1, 24, 1), ServeWorkload("decode", 2, 8, 3), ServeWorkload("job", 3, 8, 2))
VOCABULARY = 257  # of the fake ranks


def make_engine() -> Engine:
    ranks = FakeRanks(max_model_len=256)
    return Engine(ranks, EngineConfig("fake", max_model_len=256))


def test_exactly_the_tokens_asked_for_are_generated_and_timed() -> None:
    run = generate(make_engine(), [[1, 2, 3], [4, 5]], 5)
    assert [len(row) for row in run.tokens] == [5, 5]
    assert 2 <= run.num_at_first < 10
    assert 0 < run.first_s < run.total_s


def test_tokens_that_depend_on_the_batch_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    command.check(engine, VOCABULARY, is_batch_invariant=True)

    def of_the_batch(engine: Engine, prompts: list[list[int]], max_tokens: int) -> workload.Generated:
        return workload.Generated([[len(prompts)] * max_tokens] * len(prompts), 0.1, 1, 0.2)

    monkeypatch.setattr("interlace.cli.bench.generation.generate", of_the_batch)
    with pytest.raises(BenchError, match="nothing was timed"):
        command.check(engine, VOCABULARY, is_batch_invariant=True)
    command.check(engine, VOCABULARY, is_batch_invariant=False)


def test_every_workload_is_measured_on_a_real_model(
    invoke: Invoke, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "QUICK", SHORT)
    options = ("--threads", "1", "--dtype", "float32", "--rounds", "2", "--quick", "--json")
    result = invoke("bench", "--model", str(tiny_model), *options, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row[0] for row in found["rows"]] == ["prefill 24", "decode batch 2", "job 3 x 8+2"]
    assert all(len(each["rate"]["samples"]) == 2 for each in found["results"]["workloads"])
    assert {"machine", "source"} <= set(found)
    assert json.loads(next(tmp_path.glob("*/engine-quick.json")).read_text()) == found


def test_no_rounds_are_refused(invoke: Invoke) -> None:
    result = invoke("bench", "--rounds", "0")
    assert result.exit_code == 1
    assert "got rounds=0; expected at least 1" in result.stderr


@pytest.mark.parametrize(
    ("device", "told"), [("cpu", "1 rank of 2 threads, "), ("cuda:0 NVIDIA X", "1 rank on cuda:0 NVIDIA X, ")]
)
def test_the_table_says_where_the_ranks_are(device: str, told: str) -> None:
    ranks = {"ranks": [{}], "threads_per_rank": 2, "device": device, "weights": "none", "dtype": "float32"}
    found = command.report(ranks | {"kernels": "cuda"}, {SHORT[0]: Samples((1.0,))}, rounds=1)
    assert found.title.startswith(told)
