"""A woven job in which requests come and go, and in which a rank dies."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace import LLM, SamplingParams
from interlace.engine.config import EngineConfig
from interlace.engine.engine import Engine
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.errors import RankFailed
from support.engine_fakes import run_all
from support.tiny_models import make_model

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama_9_heads")


def config_of(model: Path, weave: str) -> EngineConfig:
    return EngineConfig(
        str(model), tp=2, communicator="thread", dtype="float32", num_kv_blocks=64, threads=1, weave=weave,
        max_num_batched_tokens=24, max_num_seqs=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def woven(model: Path) -> Iterator[RankGroup]:
    group = start(config_of(model, "always"))
    yield group
    group.close()


@pytest.fixture(scope="module")
def whole(model: Path) -> Iterator[RankGroup]:
    group = start(config_of(model, "never"))
    yield group
    group.close()


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    aborted=st.integers(0, 4),
    after=st.integers(0, 12),
)
def test_requests_that_end_early_leave_the_tokens_of_the_others(
    woven: RankGroup, whole: RankGroup, lengths: list[int], aborted: int, after: int
) -> None:
    """Prompts in chunks of 24 tokens, which share batches with decodes; one is aborted between two steps."""
    prompts = {str(at): [5 + (at + place) % 40 for place in range(n)] for at, n in enumerate(lengths)}
    victim = str(aborted % len(lengths))
    expected = {name: tokens_of(whole, {name: prompt})[name] for name, prompt in prompts.items()}
    found = tokens_of(woven, prompts, victim, after)
    assert found.keys() >= prompts.keys() - {victim}
    for name, tokens in found.items():
        assert tokens == expected[name]


def tokens_of(
    ranks: RankGroup, prompts: dict[str, list[int]], victim: str = "", after: int = 0
) -> dict[str, list[int]]:
    """The tokens of each request that ends by itself; `victim` is aborted after so many steps."""
    engine = Engine(ranks, EngineConfig(model="any", max_num_batched_tokens=24, max_num_seqs=8))
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, GREEDY)
    early = {}
    for _ in range(after if victim else 0):
        for chunk in engine.step():
            if chunk.output is not None:
                early[chunk.request_id] = chunk.output
    engine.abort(victim)
    outputs = early | run_all(engine)[0]
    return {name: list(output.token_ids) for name, output in outputs.items()}


def test_a_rank_killed_within_a_woven_pass_ends_the_job_with_its_name(model: Path) -> None:
    """The passes take seconds: the other rank is waiting for the link, or for the dead one, on its transfer lane."""
    with LLM(
        str(model), tp=2, communicator="shm", dtype="float32", num_kv_blocks=64, threads=1,
        weave="always", link="1MB/s,100ms",
    ) as llm:  # fmt: skip
        ranks = llm.describe()["ranks"]
        assert isinstance(ranks, list)
        killer = threading.Timer(0.7, os.kill, (ranks[1]["pid"], signal.SIGKILL))
        killer.start()
        with pytest.raises(RankFailed, match=r"rank 1 .*was killed by SIGKILL"):
            llm.generate([list(range(5, 65))], GREEDY)
        killer.join()
