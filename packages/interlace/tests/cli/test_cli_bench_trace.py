"""`interlace bench trace`: a block trace on a live engine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interlace.cache.scaled_trace import ScaledTrace
from interlace.cli.bench.replay import Pace, Replayed, replay
from interlace.engine.engine import Engine
from interlace.engine.ranks import launch
from interlace.errors import EngineError
from support.block_traces import BLOCK_TOKENS, random_trace, row, rows, write
from support.engine_fakes import VOCAB_SIZE, FakeRanks, make_engine

Invoke = Callable[..., Any]


class BusyRanks(FakeRanks):
    """Ranks that are described, for `interlace bench trace` to start."""

    def describe(self) -> dict[str, object]:
        return {"ranks": [{"rank": 0}], "weights": "none", "dtype": "float32"}


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> FakeRanks:
    found = BusyRanks(num_blocks=400, max_model_len=640)
    monkeypatch.setattr(launch, "start", lambda config: found)
    return found


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return str(write(tmp_path / "trace.jsonl", rows(5, 40)))


def played(engine: Engine, pace: Pace, scaled: ScaledTrace) -> Replayed:
    prompts = [scaled.prompt(request, VOCAB_SIZE) for request in range(scaled.num_requests)]
    return replay(engine, prompts, scaled.output_tokens, pace)


def scaled_trace(seed: int) -> ScaledTrace:
    trace = random_trace(seed, 40)
    return ScaledTrace.of(trace, 16, 640, 1)


@pytest.mark.parametrize("seed", [1, 2])
def test_one_at_a_time_a_live_engine_finds_all_that_the_trace_allows(seed: int) -> None:
    scaled = scaled_trace(seed)
    found = played(make_engine(FakeRanks(400, 640)), Pace(1), scaled)
    allowed = scaled.lru_hit_rate(None)
    assert allowed > 0.3
    assert sum(found.num_cached) == 16 * allowed * len(scaled.in_engine_blocks.asked)
    assert (len(found.ttft_s), found.num_output_tokens) == (40, 40)


def test_no_more_requests_than_were_asked_for_are_unfinished() -> None:
    engine, most = make_engine(FakeRanks(400, 640)), 0
    step = engine.step

    def counted() -> Any:
        nonlocal most
        most = max(most, engine.stats().num_running + engine.stats().num_waiting)
        return step()

    engine.step = counted  # type: ignore[method-assign]
    played(engine, Pace(3), scaled_trace(1))
    assert most == 3


def test_prompts_wait_until_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still while nobody sleeps."""
    slept_s: list[float] = []
    clock = SimpleNamespace(perf_counter=lambda: math.fsum(slept_s), sleep=slept_s.append)
    monkeypatch.setattr("interlace.cli.bench.replay.time", clock)
    found = replay(make_engine(), [[1, 2], [3, 4], [5, 6]], [1, 1, 1], Pace(math.inf, [0.0, 2.0, 2.5]))
    assert slept_s == [2.0, 0.5]
    assert (found.total_s, found.num_output_tokens) == (2.5, 3)


def test_a_request_that_fails_ends_the_replay() -> None:
    ranks = FakeRanks()
    ranks.failure = EngineError("a rank is gone")
    with pytest.raises(EngineError, match="a rank is gone"):
        replay(make_engine(ranks), [[1, 2]], [1], Pace(1))


def test_the_json_has_the_live_rate_beside_the_curve(
    invoke: Invoke, ranks: FakeRanks, trace: str, tmp_path: Path
) -> None:
    recording = tmp_path / "recorded.jsonl"
    options = ("--block-tokens", str(BLOCK_TOKENS), "--concurrency", "1", "--output-tokens", "1")
    result = invoke("bench", "trace", trace, *options, "--json", "--record-block-trace", str(recording))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    live, by_blocks = found["live"], {point["blocks"]: point["lru_hit_rate"] for point in found["curve"]}
    assert live["hit_rate"] == pytest.approx(by_blocks[None])
    assert (live["of_lru"], live["of_unlimited"]) == (pytest.approx(1), pytest.approx(1))
    assert live["num_cached_tokens"] == 16 * round(live["hit_rate"] * found["scaled"]["num_asked"])
    assert found["capacity_blocks"] == {"local": 400, "tiers": {}, "total": 400}
    assert 400 in by_blocks
    assert len(by_blocks) > 5
    assert ranks.closed
    again = json.loads(
        invoke("kv-sim", str(recording), "--block-tokens", "16", "--sizes", "unlimited", "--json").stdout
    )
    assert again["points"][0]["hit_rate"] == pytest.approx(live["hit_rate"])


def test_the_table_marks_what_is_measured(invoke: Invoke, ranks: FakeRanks, trace: str) -> None:
    result = invoke(
        "bench", "trace", trace, "--block-tokens", str(BLOCK_TOKENS), "--requests", "20", "--speed", "9"
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("trace     trace.jsonl: 2")
    assert lines[2] == "engine    smollm2, 1 rank, float32; 400 blocks of 16 tokens"
    assert lines[3].startswith("replayed  by their timestamps, 9 times as fast in ")
    (measured,) = (line for line in lines if line.split()[:1] == ["400"])
    assert measured.count("%") == 2
    assert lines[-1].startswith("live: ")


def test_what_tiers_gave_is_part_of_what_was_found(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, trace: str
) -> None:
    ranks = BusyRanks(num_blocks=24, max_model_len=640, tier_capacities=[400])
    monkeypatch.setattr(launch, "start", lambda config: ranks)
    arguments = ("bench", "trace", trace, "--block-tokens", str(BLOCK_TOKENS), "--concurrency", "1")
    tier = ("--kv-tier", "cxl:1GB@cxl-direct")
    found = json.loads(invoke(*arguments, *tier, "--json").stdout)
    assert found["capacity_blocks"] == {"local": 24, "tiers": {"cxl": 400}, "total": 424}
    assert 0 < found["live"]["hit_rate_of_tiers"] < found["live"]["hit_rate"]
    shown = invoke(*arguments, *tier).stdout.splitlines()
    assert shown[2] == "engine    smollm2, 1 rank, float32; 24 blocks of 16 tokens, 400 in cxl"
    assert shown[-1].endswith(" % came from tiers")


def test_a_trace_without_a_prefix_in_common_is_told(invoke: Invoke, ranks: FakeRanks, tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", [row(0, [0]), row(1, [1])])
    result = invoke("bench", "trace", str(path), "--block-tokens", str(BLOCK_TOKENS))
    assert result.stdout.splitlines()[-1].startswith("no prompt has a block of an earlier one")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--speed", "0"), "got speed=0; expected a number above 0"),
        (("--tokens-per-block", "20"), "got 20 tokens per block; expected a multiple of 16"),
        (("--output-tokens", "639"), "expected fewer tokens per block or of output"),
        (("--block-tokens", "512"), " tokens; expected "),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_an_error_in_one_line(
    invoke: Invoke, ranks: FakeRanks, trace: str, arguments: tuple[str, ...], says: str
) -> None:
    result = invoke("bench", "trace", trace, "--block-tokens", str(BLOCK_TOKENS), *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert says in result.stderr.replace("\n", " ")


def test_options_of_bench_before_the_subcommand_are_refused(invoke: Invoke, trace: str) -> None:
    result = invoke("bench", "--quick", "trace", trace)
    assert result.exit_code == 1
    assert "got --quick before trace; expected its options behind it" in result.stderr
