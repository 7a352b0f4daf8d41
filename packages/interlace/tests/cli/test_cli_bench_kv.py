"""`interlace bench kv`: prompts are found where the asker says; what a tier did, and how it is labelled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.bench import kv
from interlace.cli.bench.kv import TierFigures
from interlace.cli.bench.tiered import Answer, TieredEngine, room_text, tiered_config
from interlace.cli.bench.workload import PrefixShapes
from interlace.errors import BenchError

Invoke = Callable[..., Any]
SHAPES = PrefixShapes(64, 16)


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[TieredEngine]:
    config = tiered_config(
        str(tiny_model),
        SHAPES,
        [f"dram:{room_text(str(tiny_model), SHAPES, 6)}"],
        threads=1,
        dtype="float32",
        kv_fetch="always",
    )
    with closing(TieredEngine(config, SHAPES)) as made:
        made.prepare()
        yield made


def test_a_prompt_is_found_in_the_tier_in_local_memory_or_nowhere(engine: TieredEngine) -> None:
    for _ in range(2):
        assert [
            (a.num_cached, a.num_fetched) for a in (engine.hit(), engine.local_hit(), engine.computed())
        ] == [
            (64, 64),
            (64, 0),
            (0, 0),
        ]
    found = engine.hit()
    # keys and values of 2 layers with 3 heads of 16 floats
    assert found.fetched_bytes == 64 * 2 * 2 * 3 * 16 * 4
    assert 0 < found.fetch_s < found.first_s
    assert 0 <= found.waited_s <= found.fetch_s
    assert 0 < found.pass_s < found.first_s
    assert engine.computed().fetch_s == 0


def test_a_hit_is_compared_with_the_same_prompt_computed_anew(engine: TieredEngine) -> None:
    answer = engine.check_hit(end=77)
    assert (answer.num_fetched, len(answer.tokens)) == (64, 8)
    assert answer.logprobs is not None


def test_other_tokens_or_other_bits_are_told_apart() -> None:
    logprobs: Any = [{1: 0.5}]
    other: Any = [{1: 0.25}]
    Answer(1.0, [1], logprobs).check_same(Answer(2.0, [1], [*logprobs]), "here")
    with pytest.raises(BenchError, match=r"here: got the tokens \[2\]"):
        Answer(1.0, [2], logprobs).check_same(Answer(1.0, [1], logprobs), "here")
    with pytest.raises(BenchError, match="other bits of the logprobs"):
        Answer(1.0, [1], logprobs).check_same(Answer(1.0, [1], other), "here")


def test_what_a_request_waits_longer_for_is_not_hidden() -> None:
    figures = TierFigures("cxl:1GB@cxl-direct", "modelled")
    figures.answers = {
        kv.WAYS[0]: [
            Answer(0.11, [1], fetch_s=0.04, fetched_bytes=80_000_000),
            Answer(0.1, [1], fetch_s=0.04),
        ],
        kv.WAYS[1]: [Answer(0.10, [1]), Answer(0.1, [1])],
        kv.WAYS[2]: [Answer(1.0, [1]), Answer(1.0, [1])],
    }
    assert figures.hidden is not None
    assert figures.hidden.values == pytest.approx((0.75, 1.0))
    assert kv.rate_gbps(figures.answers[kv.WAYS[0]][0]) == pytest.approx(2.0)
    figures.answers[kv.WAYS[0]] = [Answer(0.1, [1])] * 2
    assert figures.hidden is None


def test_every_tier_is_measured_alone_and_says_whether_it_is_modelled(
    invoke: Invoke, tiny_model: Path, tmp_path: Path
) -> None:
    tiers = ("--kv-tier", "dram:1MB", "--kv-tier", "far:1MB@100MB/s,1us")
    options = (
        "--threads",
        "1",
        "--dtype",
        "float32",
        "--rounds",
        "1",
        "--quick",
        "--json",
        "--out",
        str(tmp_path),
    )
    result = invoke("bench", "kv", "--model", str(tiny_model), *tiers, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row[0] for row in found["rows"]] == ["dram:1MB (measured)", "far:1MB@100MB/s,1us (modelled)"]
    assert [each["fetch"]["kind"] for each in found["results"]["tiers"]] == ["measured", "modelled"]
    assert all(each["num_hits"] == 8 for each in found["results"]["tiers"])  # two hits of four blocks
    assert [*found["results"]["tiers"][0]["requests"]] == [*kv.WAYS]
    assert json.loads(next(tmp_path.glob("*/engine-kv-quick.json")).read_text()) == found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rounds", "0"), "got rounds=0"),
        (("--found", "8"), "found=8"),
        (("--quick", "--kv-tier", "dram:4KB"), "expected at least 12,288"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: tuple[str, ...], told: str, invoke: Invoke, tiny_model: Path
) -> None:
    result = invoke(
        "bench", "kv", "--model", str(tiny_model), "--threads", "1", "--dtype", "float32", *options
    )
    assert result.exit_code == 1
    assert told in result.stderr.replace("\n", " ")
