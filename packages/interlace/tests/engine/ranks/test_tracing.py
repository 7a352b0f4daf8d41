"""A trace of a real run: every step of every rank, on one clock."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.errors import EngineError, RankFailed
from support.engine_fakes import FakeRanks
from support.tiny_models import make_model
from tokenweave.errors import TraceError
from tokenweave.plan import Lane, plan_forward
from tokenweave.trace import Trace, summarise

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPT = list(range(40))


@pytest.fixture(scope="module", params=["shm", "thread", "torch"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    model = make_model(tmp_path_factory.mktemp("traced") / "model", "llama")
    with LLM(
        str(model),
        tp=2,
        communicator=request.param,
        weave="always",
        threads=1,
        num_kv_blocks=32,
        prefix_cache=False,
    ) as llm:
        yield llm


def test_every_step_of_both_ranks_is_in_the_file(llm: LLM, tmp_path: Path) -> None:
    llm.generate([PROMPT], GREEDY)  # not recorded
    with llm.trace(tmp_path / "out.json"):
        (output,) = llm.generate([PROMPT], GREEDY)
    assert len(output.token_ids) == 4
    trace = Trace.read(tmp_path / "out.json")
    prefill = trace.recordings[0].passes[0].plan
    assert prefill.split is not None
    expected = [plan_forward(2, 40, prefill.split), *[plan_forward(2, 1)] * 3]
    for recording in trace.recordings:
        assert [done.plan for done in recording.passes] == expected
    assert len(trace.recordings) == 2
    found = summarise(trace)
    assert all(figures.blocked_s > 0 and figures.compute_s > 0 for figures in found.ranks.values())


def test_the_ranks_times_are_those_of_one_clock(llm: LLM, tmp_path: Path) -> None:
    """No rank ends a reduction before the other has begun it; but what has no wanted row ends with its last keys."""
    with llm.trace(tmp_path / "out.json"):
        llm.generate([PROMPT], GREEDY)
    one, two = Trace.read(tmp_path / "out.json").recordings
    for of_one, of_two in zip(one.passes, two.passes, strict=True):
        for a, b in zip(of_one.spans(), of_two.spans(), strict=True):
            is_done = of_one.plan.split is not None and a.step.layer == 1 and a.step.part == 0
            if a.step.lane is Lane.TRANSFER and a.step.norm is not None and not is_done:
                assert a.end_s >= b.start_s - 1e-6
                assert b.end_s >= a.start_s - 1e-6


@pytest.mark.parametrize(
    ("write", "moved"), [("back", {"evict", "fetch"}), ("through", {"fetch", "store"})], ids=str
)
def test_a_pass_that_fetches_shows_what_it_moves(write: str, moved: set[str], tmp_path: Path) -> None:
    """Of three prompts the local cache holds little more than one, so the first, longer now, is fetched."""
    model = make_model(tmp_path / "model", "llama")
    prompts = [[1] * 90, [2] * 90, [3] * 90, [1] * 106]
    options: dict[str, Any] = {"kv_tiers": ["dram:4MiB"], "kv_tier_write": write, "kv_fetch": "always"}
    with LLM(str(model), num_kv_blocks=8, max_model_len=120, threads=1, **options) as llm:
        for prompt in prompts[:-1]:
            llm.generate([prompt], GREEDY)
        with llm.trace(tmp_path / "out.json"):
            (output,) = llm.generate([prompts[-1]], GREEDY)
    assert output.metrics.num_fetched_tokens == 80
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    on_lane = [each for each in events if each.get("cat") == "memory"]
    (fetching,) = {each["args"]["pass"] for each in on_lane if each["args"]["op"] == "fetch"}
    names = {each["name"] for each in on_lane if each["args"]["pass"] == fetching}
    assert names == {f"{op}[{layer}]" for op in moved for layer in range(2)}
    found = summarise(Trace.read(tmp_path / "out.json"))
    assert found.moves.keys() == moved
    total = found.total
    assert 0 <= total.memory_hidden_s <= total.memory_s
    assert total.memory_blocked_s <= total.blocked_s + 1e-9


def test_one_trace_at_a_time_and_nothing_is_attached_after_it(llm: LLM, tmp_path: Path) -> None:
    with llm.trace(tmp_path / "outer.json"):
        with pytest.raises(TraceError, match="is being recorded"), llm.trace(tmp_path / "inner.json"):
            pass
        llm.generate([PROMPT], GREEDY)
    assert [path.name for path in tmp_path.iterdir()] == ["outer.json"]
    assert llm._ranks.runner.recorder is None  # type: ignore[attr-defined]


def test_a_block_that_raises_still_leaves_its_trace(llm: LLM, tmp_path: Path) -> None:
    def run() -> None:
        with llm.trace(tmp_path / "out.json"):
            llm.generate([PROMPT], GREEDY)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert len(Trace.read(tmp_path / "out.json").recordings) == 2


def test_a_killed_rank_ends_the_trace_with_its_name_and_leaves_no_file(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    with LLM(str(model), tp=2, communicator="shm", num_kv_blocks=32, threads=1) as llm:
        ranks = llm.describe()["ranks"]
        assert isinstance(ranks, list)

        def run() -> None:
            with llm.trace(tmp_path / "out.json"):
                os.kill(ranks[1]["pid"], signal.SIGKILL)
                llm.generate([PROMPT], GREEDY)

        with pytest.raises(RankFailed, match="rank 1"):
            run()
    assert not (tmp_path / "out.json").exists()


def test_a_file_that_cannot_be_written_is_refused_before_the_ranks_hear_of_it(tmp_path: Path) -> None:
    ranks = FakeRanks()
    llm = LLM("fake", ranks=ranks)
    with pytest.raises(TraceError, match="cannot write"), llm.trace(tmp_path / "nowhere" / "out.json"):
        pytest.fail("the block was entered")
    assert not ranks.is_traced


def test_a_closed_llm_records_nothing(tmp_path: Path) -> None:
    llm = LLM("fake", ranks=FakeRanks())
    with llm.trace(tmp_path / "out.json"):
        pass
    assert json.loads((tmp_path / "out.json").read_text())["traceEvents"] == []
    llm.close()
    with pytest.raises(EngineError, match="closed"), llm.trace(tmp_path / "out.json"):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_steps_of_woven_ranks_lie_within_the_hosts_time_and_behind_their_edges(
    tmp_path: Path,
) -> None:
    model = make_model(tmp_path / "model", "llama")
    options: dict[str, Any] = {"device": "cuda", "communicator": "thread", "weave": "always"}
    with LLM(str(model), tp=2, num_kv_blocks=32, **options) as llm:
        llm.generate([PROMPT], GREEDY)  # compiles
        ranks: Any = llm._ranks  # type: ignore[attr-defined]
        ranks.start_trace()
        begun_s = time.perf_counter()
        llm.generate([PROMPT], GREEDY)
        trace = ranks.end_trace()
        ended_s = time.perf_counter()
    assert "devices' events placed on it within" in trace.clock
    for recording in trace.recordings:
        assert recording.passes[0].plan.split is not None
        for done in recording.passes:
            spans = list(done.spans())
            assert [span.step for span in spans] == list(done.plan.steps)
            for span in spans:
                assert begun_s - 1e-4 <= span.start_s <= span.end_s <= ended_s + 1e-4
                assert all(spans[other].end_s <= span.start_s + 1e-6 for other in span.step.waits_for)
