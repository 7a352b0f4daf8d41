from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import Lru
from interlace.engine.async_llm import AsyncLLM
from interlace.engine.llm import LLM
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import BlockTraceError, RequestError
from support.engine_fakes import FakeRanks, make_engine, run_all

ONE = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
SECRET = "a text of which nothing may leave, of three blocks"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_recording_says_which_blocks_prompts_share(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    salted = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, cache_salt="another")
    with LLM("fake", ranks=FakeRanks(), record_block_trace=path) as llm:
        llm.generate([SECRET, SECRET[:40], SECRET[:20] + SECRET], ONE)
        llm.reset_prefix_cache()
        llm.generate([SECRET, SECRET], [ONE, salted])
        with pytest.raises(RequestError):
            llm.generate("", ONE)
    found = lines_of(path)
    assert [line["input_length"] for line in found] == [50, 40, 70, 50, 50]
    assert [line["output_length"] for line in found] == [3, 3, 3, 3, 2]
    assert [line["hash_ids"] for line in found] == [[0, 1, 2], [0, 1], [0, 3, 4, 5], [0, 1, 2], [6, 7, 8]]
    assert all(word not in path.read_text() for word in SECRET.split() if len(word) > 2)


def test_a_caches_hits_on_the_recording_are_those_of_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    engine = make_engine(record_block_trace=path)
    num_cached = 0
    for number, length in enumerate((70, 20, 97, 50, 97)):
        engine.add_request(str(number), list(range(length)), ONE)
        num_cached += run_all(engine)[0][str(number)].metrics.num_cached_tokens
    engine.fail(RuntimeError("the end"))
    trace = BlockTrace.read(path, block_tokens=16)
    cache = Lru(trace, [None])
    assert num_cached == 16 * sum(sum(cache.serve(blocks)) for blocks in trace.blocks)


def test_an_aborted_request_has_the_tokens_that_it_came_to(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    engine = make_engine(record_block_trace=path)
    for request_id in ("aborted", "left"):
        engine.add_request(request_id, list(range(20)), ONE)
    engine.step()
    engine.abort("aborted")
    engine.fail(RuntimeError("the end"))
    assert [line["output_length"] for line in lines_of(path)] == [1, 0]


def test_a_full_disk_ends_the_recording_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    with LLM("fake", ranks=FakeRanks(), record_block_trace="/dev/full") as llm:
        outputs = llm.generate([SECRET, SECRET], ONE)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 3]
    assert caplog.text.count("has ended after 0 requests") == 1


def test_an_engine_in_a_thread_records_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"

    async def run() -> None:
        async with AsyncLLM("fake", ranks=FakeRanks(), record_block_trace=path) as llm:
            await asyncio.gather(*(llm.generate(SECRET, ONE) for _ in range(3)))

    asyncio.run(run())
    assert [(line["hash_ids"], line["output_length"]) for line in lines_of(path)] == [([0, 1, 2], 3)] * 3


def test_a_file_that_cannot_be_written_is_told_before_a_model_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BlockTraceError, match=r"nowhere/trace\.jsonl cannot be recorded: No such file"):
        LLM(str(tmp_path / "no model"), record_block_trace=tmp_path / "nowhere/trace.jsonl")
